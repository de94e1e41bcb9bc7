"""Imports point one way, as `pyproject.toml` lists the rooms."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_point_one_way():
    # in a process of its own: it sets up logging, which silences every logger there is
    linter = Path(sys.executable).parent / "lint-imports"
    command = [linter, "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_learner_is_kept_from_those_who_must_not_know_one():
    from raysys.learners import LEARNERS

    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    forbidden = {name for rule in rules["contracts"] for name in rule.get("forbidden_modules", ())}
    assert {target.partition(":")[0] for target in LEARNERS.values()} <= forbidden
