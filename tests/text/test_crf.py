from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from raysys.text.crf import Chain
from raysys.text.span_probabilities import FLOOR, Candidate, apart, candidates
from raysys.text.tags import Scheme, Tags
from raysys.text.units import Splitter


def _chain(tags: Tags, lengths: list[int], seed: int = 0) -> Chain:
    generator = torch.Generator().manual_seed(seed)
    k = len(tags)
    moves = torch.randn(k + 1, k + 1, generator=generator)
    moves = moves.masked_fill(~torch.from_numpy(tags.allowed()), -torch.inf)
    emissions = torch.randn(len(lengths), max(lengths), k, generator=generator)
    return Chain(emissions, moves, torch.tensor(lengths))


def _all_scores(chain: Chain, row: int) -> dict[tuple[int, ...], float]:
    """Every tag sequence there may be, with its score, added up by hand."""
    k, n = chain.emissions.shape[2], int(chain.lengths[row])
    found = {}
    for tags in itertools.product(range(k), repeat=n):
        total, before = 0.0, k
        for at, tag in enumerate(tags):
            total += float(chain.transitions[before, tag]) + float(chain.emissions[row, at, tag])
            before = tag
        total += float(chain.transitions[before, k])
        if np.isfinite(total):
            found[tags] = total
    return found


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_the_recursions_are_sums_over_all_sequences(scheme: Scheme) -> None:
    tags = Tags(("brand", "size") if scheme == "bio" else ("brand",), scheme)
    chain = _chain(tags, [4, 1, 3])
    total, marginals = chain.forward()[1], chain.marginals()
    for row, length in enumerate([4, 1, 3]):
        scores = _all_scores(chain, row)
        expected = np.logaddexp.reduce(list(scores.values()))
        assert float(total[row]) == pytest.approx(expected, abs=1e-4)
        for at, tag in itertools.product(range(length), range(len(tags))):
            share = sum(np.exp(s - expected) for path, s in scores.items() if path[at] == tag)
            assert float(marginals[row, at, tag]) == pytest.approx(share, abs=1e-4)
        path = max(scores, key=lambda each: scores[each])
        padded = torch.zeros(3, 4, dtype=torch.int64)
        padded[row, :length] = torch.tensor(path)
        assert float(chain.score(padded)[row]) == pytest.approx(scores[path], abs=1e-4)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_a_span_is_as_probable_as_all_sequences_that_say_exactly_it(scheme: Scheme) -> None:
    tags = Tags(("brand", "size") if scheme == "bio" else ("brand",), scheme)
    chain = _chain(tags, [5, 2], seed=1)
    found = candidates(chain, tags, longest=5)
    for row, length in enumerate([5, 2]):
        units = Splitter()(" ".join("abcde"[:length]))
        scores = _all_scores(chain, row)
        total = np.logaddexp.reduce(list(scores.values()))
        expected: dict[tuple[int, int, str], float] = {}
        for path, score in scores.items():
            for span in tags.decode(units, path):
                place = (span.start // 2, span.end // 2 + 1, span.label)
                expected[place] = expected.get(place, 0.0) + float(np.exp(score - total))
        said = {(c.first, c.last, tags.labels[c.label]): c.probability for c in found[row]}
        assert {k for k, p in expected.items() if p > FLOOR + 1e-4} <= set(said)
        for place, probability in said.items():
            assert probability == pytest.approx(expected[place], abs=1e-4)


def test_a_long_sequence_of_sure_tags_stays_finite() -> None:
    tags = Tags(("a", "b"), "bioes")
    chain = _chain(tags, [512], seed=2)
    sure = Chain((chain.emissions * 8).requires_grad_(), chain.transitions, chain.lengths)
    path = torch.zeros(1, 512, dtype=torch.int64)
    loss = sure.negative_log_likelihood(path).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and sure.emissions.grad is not None
    assert torch.isfinite(sure.emissions.grad).all()
    assert torch.allclose(sure.marginals().sum(2), torch.ones(1, 512), atol=1e-2)


def test_of_spans_that_share_units_the_likeliest_is_kept() -> None:
    spans = [Candidate(0, 3, 0, 0.4), Candidate(2, 4, 1, 0.5), Candidate(4, 5, 0, 0.1)]
    assert apart(spans) == [spans[1], spans[2]]
