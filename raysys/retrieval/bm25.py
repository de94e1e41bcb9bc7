"""The library bm25s, imported so that it leaves GPUs alone.

Where jax is installed bm25s runs a function of it when imported, and jax then takes three quarters
of a GPU's memory, in every process: nothing would be left to train in. Nothing here needs jax.
"""

from __future__ import annotations

import sys
from typing import Any

_there = "jax" in sys.modules  # by somebody who wants it
if not _there:
    sys.modules["jax"] = None  # type: ignore[assignment]  # to Python: not installed
try:
    import bm25s
finally:
    if not _there:
        del sys.modules["jax"]

BM25: Any = bm25s.BM25
