"""Imports point one way, as `pyproject.toml` lists the rooms."""

import sys
import tomllib
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent


def test_imports_point_one_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_every_learner_is_kept_from_those_who_must_not_know_one():
    from raysys.learners import LEARNERS

    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    forbidden = {name for rule in rules["contracts"] for name in rule.get("forbidden_modules", ())}
    assert {target.partition(":")[0] for target in LEARNERS.values()} <= forbidden
