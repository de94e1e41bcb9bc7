"""Benchmark figures in the docs come from the results, and results keep their one format."""

from __future__ import annotations

import json

import pytest

from benchmarks.page import PAGE, README, page, readme
from benchmarks.result import RESULTS

RESULT_FILES = sorted(RESULTS.glob("*.json"))


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m benchmarks.page`"
    assert README.read_text(encoding="utf-8") == readme(), "run `python -m benchmarks.page`"


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_results_keep_their_format(path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.keys() == {"command", "commit", "date", "machine", "seconds", "figures"}
    assert content["machine"].keys() == {"cpu", "cores", "memory_gb", "gpu"}
    names = [figure["name"] for figure in content["figures"]]
    assert len(names) == len(set(names)) > 0
    for figure in content["figures"]:
        assert figure.keys() == {"name", "value", "low", "high", "unit", "aim", "reference"}
        assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"]
