"""The files that a model is made of: told apart from other models, and taken along."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

from raysys.storage import file_digest
from raysys.text.compression.runtime import is_compressed
from raysys.text.models import WANTED, open_tokenizer

_COMPRESSED: Final = ("**/*.json", "**/*.onnx", "**/*.safetensors", "**/*.npy")


def files_of_model(folder: Path) -> list[Path]:
    """What of a model's folder is read when it is opened: paths within it, sorted."""
    patterns = (*WANTED, *_COMPRESSED) if is_compressed(folder) else WANTED
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found)


def model_digest(folder: Path) -> str:
    """32 hexadecimal digits by which models are the same, wherever they lie."""
    told = hashlib.sha256()
    for path in files_of_model(folder):
        told.update(f"{path.as_posix()} {file_digest(folder / path)}\n".encode())
    return told.hexdigest()[:32]


def copy_model(folder: Path, to: Path, *, where: str) -> None:
    """Take a model along: what is read of it, into a new folder, in formats that bundles hold.

    Args:
        folder: as `model_folder` gives it.
        to: the new folder.
        where: the setting that names the model.

    Raises:
        UserError: its tokenizer cannot be opened.
    """
    fresh = to.with_name(f".{to.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was cut off
    files = files_of_model(folder)
    for path in files:
        if path.suffix == ".model":  # of SentencePiece; tokenizer.json says the same
            continue
        (fresh / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, fresh / path)
    if not (fresh / "tokenizer.json").is_file():
        saved = fresh / ".tokenizer"
        open_tokenizer(folder, str(folder), where).save_pretrained(saved)
        for path in saved.glob("*.json"):  # templates and vocabularies of other kinds stay behind
            path.replace(fresh / path.name)
        shutil.rmtree(saved)
    fresh.rename(to)
