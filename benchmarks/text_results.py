"""One result file of the text tasks, `text.json`, that several scripts fill, each its own part.

A script writes `results/text/SCRIPT.json`, the same format as any result; see `parts`.
`python -m benchmarks.text_results` puts the parts together, after a merge of branches say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks import result
from benchmarks.parts import merge_parts, write_part
from benchmarks.result import Figure


def write_text_result(figures: list[Figure], seconds: float, part: str = "") -> Path:
    """Write the part of the script that runs, and `text.json` anew; see `write_part`.

    What was fitted on a GPU stands in `text_gpu`: it is another machine.
    """
    name = "text_gpu" if torch.cuda.is_available() else "text"
    return write_part(name, figures, seconds, part)


def over_seeds(runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Figures of several runs as one: means, from the lowest low to the highest high of any.

    So an interval holds what chance does to the test texts and to the split, seed and fit. Where
    there was none it is the least and the most. A single run stays as it is.
    """
    if len(runs) == 1:
        return list(runs[0])
    found = []
    for same in zip(*runs, strict=True):
        first = same[0]
        if any(each.name != first.name for each in same):
            raise ValueError(f"the runs have figures of their own: {[each.name for each in same]}")
        lows = [each.value if each.low is None else each.low for each in same]
        highs = [each.value if each.high is None else each.high for each in same]
        note = f"mean of {len(runs)} splits and seeds, from the lowest to the highest end of any"
        if first.low is None:
            note = f"mean, least and most of {len(runs)} splits and seeds"
        reference = f"{first.reference}; {note}" if first.reference else note
        value = fmean(each.value for each in same)
        found.append(
            replace(first, value=value, low=min(lows), high=max(highs), reference=reference)
        )
    return found


def merge_text_results(folder: Path = result.RESULTS) -> Path:
    """Write `text.json` from its parts; see `merge_parts`."""
    return merge_parts("text", folder)


if __name__ == "__main__":
    print(f"written to {merge_text_results().relative_to(result.ROOT)}")
