"""Files of a small shop's texts, and the settings of a task over them."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysys.config import parse_settings
from raysys.stages.text_settings import TextSettings
from tests.synthetic import BRANDS, CATEGORIES

MOODS = {1: ("stale", "broken"), 3: ("fine", "usual"), 5: ("fresh", "lovely")}


def write_titles(path: Path, n: int = 240, seed: int = 0) -> Path:
    """CSV: title, department, category; the title names its category most of the time."""
    rng = np.random.default_rng(seed)
    lines: list[Sequence[Any]] = [("title", "department", "category")]
    for at in range(n):
        category = list(CATEGORIES)[at % len(CATEGORIES)]
        department, kinds = CATEGORIES[category]
        kind, brand = rng.choice(kinds.split()), rng.choice(BRANDS)
        lines.append((f"{brand} {kind} {category} {at}", department, category))
    return _write(path, lines)


def write_reviews(path: Path, n: int = 240, seed: int = 0) -> Path:
    """CSV: review, stars, moment; two rows are empty and one has no stars."""
    rng = np.random.default_rng(seed)
    lines: list[Sequence[Any]] = [("review", "stars", "moment")]
    for at in range(n):
        stars = int(rng.choice(list(MOODS)))
        words = [*rng.choice(MOODS[stars], 2), rng.choice(list(CATEGORIES)), str(at)]
        lines.append((" ".join(words), stars, f"2024-01-01 {at // 60:02}:{at % 60:02}:00"))
    lines += [("", 5, "2024-01-02"), ("   ", 1, "2024-01-02"), ("no stars", "", "2024-01-02")]
    return _write(path, lines)


def write_attributes(path: Path, n: int = 200, seed: int = 0) -> Path:
    """JSON lines: title, and its attributes; one value is not in its title."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(n):
        category = list(CATEGORIES)[at % len(CATEGORIES)]
        kind = str(rng.choice(CATEGORIES[category][1].split()))
        brand = str(rng.choice(BRANDS)).title()
        title = f"{brand} {kind} {category}, {at} g"
        rows.append({"title": title, "attributes": {"brand": brand, "kind": [kind]}})
    rows[7]["attributes"] = {"brand": "Nobody"}
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_judgements(path: Path, n_queries: int = 30, seed: int = 0) -> Path:
    """CSV: query, title, grade from 1 to 3."""
    rng = np.random.default_rng(seed)
    known = [(kind, c) for c, (_, kinds) in CATEGORIES.items() for kind in kinds.split()]
    lines: list[Sequence[Any]] = [("query", "title", "grade")]
    for kind, category in itertools.islice(known, n_queries):
        for grade in (1, 2, 3, 1, 2, 3):
            far = [pair for pair in known if pair[1] != category]
            said = {3: (kind, category), 2: ("any", category)}.get(
                grade, far[int(rng.integers(len(far)))]
            )
            lines.append((f"{kind} {category}", f"{rng.choice(BRANDS)} {said[0]} {said[1]}", grade))
    return _write(path, lines)


def settings_of(task: str, path: Path, learners: dict[str, Any], **more: Any) -> TextSettings:
    """Of a task over the files that are written above."""
    columns: dict[str, dict[str, Any]] = {
        "classify": {"text": "title", "label": ["department", "category"]},
        "sentiment": {"text": "review", "rating": "stars", "time": "moment"},
        "entities": {"text": "title", "attributes": "attributes"},
        "relevance": {"text": "title", "query": "query", "grade": "grade"},
    }
    source = {"kind": "files", "paths": str(path), **columns[task]}
    content = {"task": task, "sources": source, "learners": learners, "resamples": 100, **more}
    return parse_settings(TextSettings, content, where="test")


def _write(path: Path, lines: list[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path
