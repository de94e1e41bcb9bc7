"""What a model's folder costs to run: milliseconds and memory, measured in a process of its own.

It is measured on the CPU, be there a GPU or not.

`python -m raysys.text.compression.probe FOLDER '{"shapes": …}'` prints JSON: a fresh process, so
that neither what ran before nor what else is loaded is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raysys.errors import UserError

ROUNDS = 15
SECONDS = 3.0
"""A shape is run so often, or for so long, whichever is over first (at least thrice)."""
TIMEOUT_S = 300


@dataclass(frozen=True)
class Cost:
    """Of one model.

    Attributes:
        milliseconds: median of a batch, by shape (texts × tokens, such as `1x16`).
        memory_mb: resident memory that opening and running the model added.
        disk_mb: of its folder.
    """

    milliseconds: dict[str, float]
    memory_mb: float
    disk_mb: float


def cost_of(folder: Path, shapes: Sequence[tuple[int, int]], *, threads: int) -> Cost:
    """Measure a model's folder.

    Args:
        folder: that `open_model` reads.
        shapes: (texts, tokens) of the batches.
        threads: of the program that runs it.

    Raises:
        UserError: it cannot be run here; says why.
    """
    given = json.dumps({"shapes": [list(shape) for shape in shapes], "threads": threads})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "raysys.text.compression.probe", str(folder), given],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"not timed within {TIMEOUT_S:g} s", where=str(folder), mend="time smaller `shapes`"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"cannot be run here: {last[0]}", where=str(folder))
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure(folder: Path, shapes: Sequence[Sequence[int]], threads: int) -> Cost:
    import psutil
    import torch
    import transformers.models.bert  # noqa: F401  what every model needs is no model's own

    from raysys.text.half_weights import halve
    from raysys.text.models import open_model

    torch.set_num_threads(threads)
    process = psutil.Process()
    before = process.memory_info().rss
    backbone, tokenizer = open_model(str(folder), where="model")
    halve(backbone)  # as everything that only reads
    rows = max(tokenizer.get_vocab().values())
    milliseconds = {}
    with torch.inference_mode():
        for texts, tokens in shapes:
            ids = torch.randint(5, rows, (texts, tokens), generator=torch.manual_seed(0))
            mask = torch.ones_like(ids)
            backbone(input_ids=ids, attention_mask=mask)
            spent: list[float] = []
            while len(spent) < ROUNDS and (len(spent) < 3 or sum(spent) < SECONDS):
                began = time.perf_counter()
                backbone(input_ids=ids, attention_mask=mask)
                spent.append(time.perf_counter() - began)
            milliseconds[f"{texts}x{tokens}"] = round(1000 * statistics.median(spent), 3)
    grown = process.memory_info().rss - before
    disk = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Cost(milliseconds, round(grown / 2**20, 1), round(disk / 2**20, 3))


def main() -> None:
    """See the module."""
    given = json.loads(sys.argv[2])
    print(json.dumps(asdict(_measure(Path(sys.argv[1]), given["shapes"], given["threads"]))))


if __name__ == "__main__":
    main()
