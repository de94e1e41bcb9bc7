"""Base scores with a planted truth: what each member knows, and how noisily it says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raysys.ensemble import BaseScores, Judgements


def planted(
    noise: Mapping[str, float],
    n_requests: int = 600,
    n_candidates: int = 40,
    folds: tuple[int, ...] = (1, 2),
    seed: int = 0,
) -> BaseScores:
    """Relevance follows a hidden taste; each member sees it under noise and a scale of its own."""
    rng = np.random.default_rng(seed)
    sizes = np.full(n_requests, n_candidates)
    sizes[::50] = 1  # some requests have hardly anything to rank
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(offsets[-1])
    truth = rng.normal(size=n)
    label = (rng.random(n) < 1 / (1 + np.exp(-3 * (truth - 1.5)))).astype(np.float32)
    owner = np.repeat(np.arange(n_requests), sizes)
    found = np.bincount(owner, weights=label, minlength=n_requests)
    item = np.concatenate([rng.permutation(200)[:size] for size in sizes]).astype(np.int32)
    base = {}
    for place, (name, spread) in enumerate(noise.items()):
        level = rng.normal(size=n_requests)[owner] * 100  # means something within a request only
        base[name] = ((truth + rng.normal(size=n) * spread) * 10.0 ** (place - 1) + level).astype(
            np.float32
        )
    return BaseScores(
        request=np.arange(n_requests, dtype=np.int32),
        fold=np.sort(np.resize(np.asarray(folds), n_requests)).astype(np.int32),
        judgements=Judgements(
            item, label, offsets, (found + rng.integers(0, 3, n_requests)).astype(np.int32)
        ),
        base=base,
    )
