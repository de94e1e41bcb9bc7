"""What a bundle says of itself, and the proof that its files are those it was published with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raysys.errors import UserError
from raysys.storage import MANIFEST, digest, file_digest

SAFE = frozenset(
    {
        ".arrow",
        ".json",
        ".npy",
        ".onnx",
        ".parquet",
        ".safetensors",
        ".txt",
        ".ubj",
        ".usearch",
        ".yaml",
    }
)
"""What a bundle may hold: formats whose readers run no code of the file."""


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle says of itself.

    Attributes:
        id: its folder's name.
        surface: which lists it was trained for.
        learners: name -> family of every learner in it, in the ensemble's order.
        files: path -> {"sha256", "size"} of every file but the manifest itself.
        data: fingerprints of what it was trained on.
        settings: those of the training.
        figures: what the training measured.
        versions: Python and packages that wrote it.
        created: UTC, ISO 8601; not part of the id.
    """

    id: str
    surface: str
    learners: dict[str, str]
    files: dict[str, dict[str, Any]]
    data: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def content_hash(self) -> str:
        """Hex, over everything but the id and the time of writing."""
        return digest({k: v for k, v in self.__dict__.items() if k not in ("id", "created")})

    @classmethod
    def read(cls, folder: Path) -> BundleManifest:
        """The manifest in a bundle's folder.

        Raises:
            UserError: missing or damaged.
        """
        path = folder / MANIFEST
        mend = "publish the bundle again (`raysys train`) or roll back to another one"
        if not path.is_file():
            raise UserError("the bundle has no manifest", where=str(path), mend=mend)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"damaged manifest: {error}", where=str(path), mend=mend) from None


def verify(folder: Path) -> BundleManifest:
    """The manifest of a bundle whose every file is as it was published.

    Raises:
        UserError: a file is missing, was added or was changed, or the manifest was; names it.
    """
    manifest = BundleManifest.read(folder)
    mend = "publish the bundle again (`raysys train`) or roll back to another one"
    if manifest.id != folder.name or not manifest.id.endswith(f"-{manifest.content_hash}"):
        raise UserError(
            "the manifest was changed after the bundle was published",
            where=str(folder / MANIFEST),
            mend=mend,
        )
    present = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    present.pop(MANIFEST, None)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise UserError("a file of the bundle is missing", where=str(folder / name), mend=mend)
    for name in sorted(present.keys() - manifest.files.keys()):
        raise UserError(
            "the bundle holds a file that was not published with it",
            where=str(folder / name),
            mend=f"remove it, or {mend}",
        )
    for name, path in present.items():
        expected = manifest.files[name]
        same = path.stat().st_size == expected["size"] and file_digest(path) == expected["sha256"]
        if not same:
            raise UserError(
                "the file was changed after the bundle was published", where=str(path), mend=mend
            )
    return manifest


def _walk(folder: Path) -> Iterator[Path]:
    """Every file under a bundle; links are refused, they lead out of what was hashed."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(
                "a bundle holds plain files only, this is a link or a device",
                where=str(path),
                mend="copy the file itself into the bundle",
            )
        if path.is_file():
            yield path


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file, after checking that its format is safe."""
    files = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix not in SAFE or name == MANIFEST:
            raise UserError(
                f"a bundle may not hold {name!r}",
                where=str(folder),
                mend=f"write safe formats only: {', '.join(sorted(SAFE))}; no manifest",
            )
        if path.suffix == ".npy":
            _refuse_objects(path, name)
        path.chmod(0o444)  # what is hashed stays as it is; and safetensors writes for one user only
        files[name] = {"sha256": file_digest(path), "size": path.stat().st_size}
    return files


def _refuse_objects(path: Path, name: str) -> None:
    """A .npy file of Python objects is a pickle in disguise."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{name!r} is not a plain array: {error}", where=str(path.parent)) from None
