"""One result file of the text tasks, `text.json`, that several scripts fill, each its own part.

A script writes `results/text/SCRIPT.json`, the same format as any result; see `parts`.
`python -m benchmarks.text_results` puts the parts together, after a merge of branches say.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import result
from benchmarks.parts import merge_parts, write_part
from benchmarks.result import Figure


def write_text_result(figures: list[Figure], seconds: float, part: str = "") -> Path:
    """Write the part of the script that runs, and `text.json` anew; see `write_part`."""
    return write_part("text", figures, seconds, part)


def merge_text_results(folder: Path = result.RESULTS) -> Path:
    """Write `text.json` from its parts; see `merge_parts`."""
    return merge_parts("text", folder)


if __name__ == "__main__":
    print(f"written to {merge_text_results().relative_to(result.ROOT)}")
