from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.evaluation.metrics import brier, quantile_bins, reliability
from raysys.features.negatives import (
    SOURCES,
    NegativeSettings,
    Positives,
    Touched,
    corrected_logits,
    corrected_probabilities,
    inverse_weights,
    sample_negatives,
)


def touched(items, sessions=None, times=None) -> Touched:
    n = len(items)
    return Touched(
        np.array(items, np.int32),
        np.array(sessions if sessions is not None else range(n), np.int64),
        np.array(times if times is not None else range(n), np.int64),
    )


def positives(n: int, item: int = 0, retrieved=None, time: int = 1000) -> Positives:
    """n requests of the same kind: what differs is only their name."""
    return Positives(
        item=np.full(n, item, np.int32),
        request=np.arange(n),
        session=np.full(n, -1, np.int64),
        time=np.full(n, time, np.int64),
        name=np.arange(n, dtype=np.uint64) * np.uint64(2_654_435_761),
        retrieved=None if retrieved is None else np.tile(np.array(retrieved, np.int32), (n, 1)),
    )


POPULARITY = np.array([50.0, 40, 30, 20, 10, 5, 5, 2, 1, 1, 0, 0])
LOG = touched([1, 1, 1, 2, 2, 7, 0, 8, 11, -1])


def test_items_are_drawn_as_often_as_their_probability_says():
    n = 20_000
    how = NegativeSettings(per_positive=7, ranks=(2, 7), shares={"hard": 0.4})
    found = sample_negatives(positives(n, 0, [9, 8, 7, 6, 5, 4, 3, 2]), LOG, POPULARITY, how)
    for item in range(12):
        rows = found.item == item
        if item in (0, 10):  # the positive; what no source knows
            assert not rows.any()
            continue
        p = found.probability[rows]
        assert np.ptp(p) < 1e-12
        assert abs(rows.sum() / n - p[0]) <= 4.5 * np.sqrt(p[0] * (1 - p[0]) / n) + 1e-9, item
    assert found.own[0] > 0.5 and np.ptp(found.own) < 1e-12
    assert {SOURCES[code] for code in np.unique(found.source)} == set(SOURCES)
    every = inverse_weights(found.probability).sum() / n
    assert every == pytest.approx(10, rel=0.02)  # 12 items but for those two


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 3), st.integers(0, 20)), max_size=30),
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 3), st.integers(0, 20)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_what_holds_of_all_negatives(events, wanted, per_positive, rng):
    events = sorted(events, key=lambda event: event[2])
    log = touched(*([event[at] for event in events] for at in range(3)))
    item, request, session, time = (np.array(column) for column in zip(*wanted, strict=True))
    p = len(item)
    asked = Positives(
        *(item.astype(np.int32), request.astype(np.int64), session.astype(np.int64)),
        *(time.astype(np.int64), np.arange(p, dtype=np.uint64)),
        np.array([[(i + j) % 9 for j in range(6)] for i in item], np.int32),
    )
    how = NegativeSettings(per_positive=per_positive, window=5, ranks=(2, 5))
    found = sample_negatives(asked, log, np.arange(9.0), how)
    assert (np.bincount(found.positive, minlength=p) <= per_positive).all()
    assert ((found.probability > 0) & (found.probability <= 1)).all()
    pairs = set()
    for positive, negative, source in zip(found.positive, found.item, found.source, strict=True):
        assert negative not in item[request == request[positive]]
        assert (positive, negative) not in pairs
        pairs.add((positive, negative))
        if SOURCES[source] == "in_session":
            assert any(
                other == negative and whose != session[positive] and when < time[positive]
                for other, whose, when in events
            )
        if SOURCES[source] == "hard":
            assert negative in asked.retrieved[positive, 1:5]
    # neither the order of the positives nor what comes later changes anything
    order = np.array(rng.sample(range(p), p))
    shuffled = replace(asked, **{name: getattr(asked, name)[order] for name in vars(asked)})
    again = sample_negatives(shuffled, log, np.arange(9.0), how)
    assert set(zip(order[again.positive], again.item, again.probability, strict=True)) == set(
        zip(found.positive, found.item, found.probability, strict=True)
    )
    until = log.time < time.max()
    early = Touched(log.item[until], log.session[until], log.time[until])
    same = sample_negatives(asked, early, np.arange(9.0), how)
    np.testing.assert_array_equal(same.item, found.item)


def test_nothing_to_draw_from_gives_nothing():
    none = sample_negatives(positives(3), touched([]), np.zeros(4), NegativeSettings())
    assert len(none) == 0
    short = positives(3, 0, [1, 2, 3])  # shorter than the band of ranks begins
    assert len(sample_negatives(short, touched([]), np.zeros(4), NegativeSettings())) == 0


def test_the_log_must_be_in_time_order():
    with pytest.raises(ValueError, match="time order"):
        sample_negatives(
            positives(1), touched([1, 2], times=[5, 3]), POPULARITY, NegativeSettings()
        )


def clicks(n: int, rng: np.random.Generator):
    """Rows with their true probability of a click, about 4%."""
    x = rng.normal(size=(n, 3))
    truth = 1 / (1 + np.exp(-(x @ [1.0, -0.7, 0.4] - 3.8)))
    return x, truth, (rng.random(n) < truth).astype(np.float32)


def errors(probability, label) -> tuple[float, float]:
    """Brier score and expected calibration error."""
    p = probability.astype(np.float32)
    return float(brier(p, label).mean()), reliability(quantile_bins(p, 15), p, label).error


def test_probabilities_fitted_on_few_negatives_are_calibrated_after_correction():
    rng = np.random.default_rng(5)
    x, _, label = clicks(300_000, rng)
    new, _, fresh = clicks(200_000, rng)
    rate = 0.05
    kept = (label > 0) | (rng.random(len(label)) < rate)
    fitted = LogisticRegression().fit(x[kept], label[kept]).predict_proba(new)[:, 1]
    raw_brier, raw_error = errors(fitted, fresh)
    right_brier, right_error = errors(corrected_probabilities(fitted, rate), fresh)
    assert raw_error > 0.2 and right_error < 0.004
    whole = LogisticRegression().fit(x, label).predict_proba(new)[:, 1]
    assert right_brier == pytest.approx(errors(whole, fresh)[0], rel=0.01)
    assert right_brier < raw_brier / 2


def test_a_rate_of_one_corrects_nothing():
    p = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(corrected_probabilities(p, 1.0), p)
    np.testing.assert_allclose(corrected_probabilities(p, np.ones(9)), p)


@pytest.mark.long
def test_inverse_weights_calibrate_whatever_the_sources():
    """Popular items are drawn more often as negatives; unweighted they would look unwanted."""
    rng = np.random.default_rng(5)
    n_items, n = 60, 6000
    popularity = 2000.0 / np.arange(1, n_items + 1)
    quality = rng.normal(size=n_items)
    truth = 1 / (1 + np.exp(-(quality - 3.0)))  # of each item, whoever is asked
    wanted = rng.random((n, n_items)) < truth
    request, item = np.nonzero(wanted)
    asked = Positives(
        *(item.astype(np.int32), request, request),
        *(np.full(len(item), 9), request.astype(np.uint64)),  # one draw a request
    )
    how = NegativeSettings(per_positive=12, shares={"in_session": 0, "hard": 0}, alpha=1)
    found = sample_negatives(asked, touched([]), popularity, how)
    first = np.unique(request, return_index=True)[1]
    one = np.isin(found.positive, first)
    rows = np.concatenate([item, found.item[one]])
    label = np.concatenate([np.ones(len(item)), np.zeros(one.sum())])
    weight = np.concatenate([np.ones(len(item)), inverse_weights(found.probability[one])])
    x = quality[rows, None]

    def error(weight):
        fitted = LogisticRegression(C=1e6).fit(x, label, weight)
        p = fitted.predict_proba(quality[:, None])[:, 1].astype(np.float32)
        # requests that want nothing have no positive to draw for, as in a log
        asked_for = wanted[np.unique(request)]
        every, label_of = np.tile(p, len(asked_for)), asked_for.ravel().astype(np.float32)
        return reliability(quantile_bins(every, 15), every, label_of).error

    assert error(weight) < 0.006
    assert error(np.ones(len(rows))) > 0.1


def test_the_logq_correction_undoes_popularity():
    """Sampled softmax over items whose choice is not what the negatives are drawn by."""
    rng = np.random.default_rng(5)
    n_items, n = 60, 40_000
    logits = rng.normal(size=n_items)
    chosen = rng.choice(n_items, n, p=np.exp(logits) / np.exp(logits).sum())
    popularity = 100.0 / np.arange(1, n_items + 1)
    asked = replace(positives(n), item=chosen.astype(np.int32))
    how = NegativeSettings(per_positive=4, shares={"in_session": 0, "hard": 0}, alpha=0.75)
    found = sample_negatives(asked, touched([]), popularity, how)
    rows = np.concatenate([np.arange(n), found.positive])
    items = np.concatenate([chosen, found.item])
    probability = np.concatenate([found.own, found.probability])

    def fit(correct: bool):
        def loss(scores):
            z = corrected_logits(scores[items], probability) if correct else scores[items]
            total = np.bincount(rows, np.exp(z), n)
            gradient = np.bincount(items, np.exp(z) / total[rows], n_items)
            gradient -= np.bincount(chosen, minlength=n_items)
            return np.log(total).sum() - z[:n].sum(), gradient

        return minimize(loss, np.zeros(n_items), jac=True, method="L-BFGS-B").x

    def distance(scores):
        return np.abs((scores - scores.mean()) - (logits - logits.mean())).mean()

    assert distance(fit(correct=True)) < 0.1
    assert distance(fit(correct=False)) > 0.4


@pytest.mark.parametrize(
    "bad",
    [
        {"per_positive": 0},
        {"ranks": [5, 2]},
        {"shares": {"in_session": 0, "popular": 0, "hard": 0}},
        {"alpha": -1},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError):
        parse_settings(NegativeSettings, bad, where="features.yaml")
