"""Models that are taken along: whole or not at all, and in formats that bundles hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from raysys.registry import SAFE
from raysys.text.encoder import Encoder
from raysys.text.model_files import copy_model, files_of_model, model_digest
from tests.text.tiny import write_tiny_bert


def test_a_copy_that_was_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, to = write_tiny_bert(tmp_path / "model"), tmp_path / "copy"
    copyfile = shutil.copyfile

    def full(source: Any, target: Any) -> Any:
        if Path(source).name == "model.safetensors":
            Path(target).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space"):
            copy_model(model, to, where="here")
    assert not to.exists()
    copy_model(model, to, where="here")
    assert model_digest(to) == model_digest(model)
    encoder = Encoder.open(str(to), 16, None, where="here")
    assert encoder.encode(["milk"]).shape[0] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_notes_beside_a_model_are_not_taken_along(tmp_path: Path) -> None:
    model = write_tiny_bert(tmp_path / "model")
    before = model_digest(model)
    (model / "README.md").write_text("Ours.")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "runtime.json").write_text('{"backend": "torch"}')
    assert {path.suffix for path in files_of_model(model)} <= SAFE
    (model / "runtime.json").unlink()
    assert model_digest(model) == before
    copy_model(model, tmp_path / "copy", where="here")
    assert {path.suffix for path in (tmp_path / "copy").rglob("*") if path.is_file()} <= SAFE
