"""Folders of outcomes: what they may replace, and where they may lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys.cli import app
from raysys.errors import UserError
from raysys.storage import Manifest, outcome_folder, replacing

EXPERIMENTS = Path(__file__).parents[1] / "serve_configs" / "experiments" / "home.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ("experiment", "analyse", str(EXPERIMENTS)),
        ("experiment", "off-policy", "log.parquet", "--target", "p"),
        ("monitor", "report"),
        ("simulate",),
    ],
)
@pytest.mark.parametrize("output", ["mine", "."])
def test_an_output_of_other_things_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], output: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--workspace", "runs", "--output", output])
    assert done.exit_code == 2
    assert "the folder holds other things" in done.stderr and "a new --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_outcome_takes_the_place_of_nothing_or_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new"):
        folder = outcome_folder(Path(name), "simulate")
        assert folder == tmp_path / name
        with replacing(folder) as fresh:
            Manifest("simulate").write(fresh)
    with pytest.raises(UserError, match="holds other things"):
        outcome_folder(Path("new"), "experiment")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file stands there"):
        outcome_folder(Path("file"), "simulate")
