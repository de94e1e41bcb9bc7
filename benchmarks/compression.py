"""A bundle's transformer in every way `raysys compress` knows: quality lost, milliseconds, memory.

Needs the workspace of a finished `raysys demo` (or `--workspace`), which stays as it is. About
fifteen minutes on two cores; most of it makes vectors of items anew with every variant.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.result import Figure, write_result
from raysys.config import find_config, load_settings
from raysys.registry import Registry
from raysys.stages.compress import CompressSettings, run
from raysys.storage import Workspace

WHOLE = "torch_fp32"


def figures_of(content: dict) -> list[Figure]:
    """Of every way to run the transformer, then of every way to keep vectors."""
    figures = []
    for row in content["transformers"]:
        name, reference = row["name"], "" if row["name"] == WHOLE else WHOLE
        loss = row["loss"]
        figures += [
            Figure(f"{name}_loss", loss["value"], "of NDCG@10", loss["low"], loss["high"],
                   reference=reference),
            *(
                Figure(f"{name}_ms_{shape.replace(' ', '')}", spent, "ms", reference=reference)
                for shape, spent in row["milliseconds"].items()
            ),
            Figure(f"{name}_memory_mb", row["memory_mb"], "MB", reference=reference),
        ]  # fmt: skip
    for row in content["vectors"]:
        loss = row["loss"]
        figures += [
            Figure(f"vectors_{row['name']}_loss", loss["value"], "of NDCG@10", loss["low"],
                   loss["high"], reference="float32"),
            Figure(f"vectors_{row['name']}_mb", row["size_mb"], "MB", reference="float32"),
        ]  # fmt: skip
    chosen = next(
        row for row in content["transformers"] if row["name"] == content["chosen"]["transformers"]
    )
    whole = content["transformers"][0]
    first = next(iter(whole["milliseconds"]))
    ratio = whole["milliseconds"][first] / chosen["milliseconds"][first]
    loss = chosen["loss"]
    return [
        Figure("chosen_speed_ratio", ratio, f"times ({chosen['name']})", reference=WHOLE),
        Figure("chosen_loss", loss["value"], "of NDCG@10", loss["low"], loss["high"], "<= .005",
               WHOLE),
        *figures,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("runs/demo"))
    parser.add_argument("--requests", type=int, default=400)
    arguments = parser.parse_args()
    started = time.monotonic()
    settings = load_settings(CompressSettings, find_config("complete_journey", "compress"))
    settings = settings.model_copy(update={"requests": arguments.requests})
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "workspace"
        place.mkdir()
        for name in ("features", "ingest"):
            (place / name).symlink_to((arguments.workspace / name).resolve())
        shutil.copytree(arguments.workspace / "registry", place / "registry")
        bundle = Registry(place / "registry").verify(settings.bundle)
        for note in bundle.figures.get("compressed", {}).values():
            settings = settings.model_copy(update={"bundle": note["of"]})  # the whole one
        manifest = run(settings, Workspace(place))
    write_result("compression", figures_of(manifest.figures), time.monotonic() - started)


if __name__ == "__main__":
    main()
