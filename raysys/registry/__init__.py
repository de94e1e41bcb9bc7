"""Where bundles live: immutable folders of safe formats, verified before they are loaded.

    registry/bundles/<id>/manifest.json   every file with SHA-256 and size, causes, figures
    registry/bundles/<id>/features/       LiveFeatures: catalogue, plan and state
    registry/bundles/<id>/learners/NAME/  one folder a fitted learner
    registry/bundles/<id>/ensemble.json   weights of the full ensemble and of every fallback
    registry/bundles/<id>/search/         words and vectors of the catalogue
    registry/bundles/<id>/reranker/       a cross-encoder for the best few, where there is one
    registry/bundles/<id>/text.json, model/  of a text task, instead of all these: see `TextBundle`
    registry/champion.json                a pointer: which bundle has this name, and had it before
    registry/journal.jsonl                every change of a pointer, and why

A bundle is written beside its place, hashed, then renamed into it: readers see all of it or
nothing. Its id ends with a hash of its manifest, which holds the hashes of all files, so that
neither a file nor the manifest can change without notice. Hashes guard against damage and
mix-ups; who can write into the registry can publish a bundle, so guard the folder as you guard
the programs that read it.
"""

from raysys.registry.bundle import (
    MODEL_FOLDER,
    RERANKER_FOLDER,
    TEXT,
    TEXT_FILE,
    Bundle,
    Reranking,
    TextBundle,
    Transformers,
    load_transformers,
    write_reranker,
    write_search,
    write_text,
)
from raysys.registry.manifest import SAFE, BundleManifest, verify
from raysys.registry.store import Change, Moved, Registry

__all__ = [
    "MODEL_FOLDER",
    "RERANKER_FOLDER",
    "SAFE",
    "TEXT",
    "TEXT_FILE",
    "Bundle",
    "BundleManifest",
    "Change",
    "Moved",
    "Registry",
    "Reranking",
    "TextBundle",
    "Transformers",
    "load_transformers",
    "verify",
    "write_reranker",
    "write_search",
    "write_text",
]
