"""Counts that add up whatever the split, windows on disk, and what drift they tell of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raysys.errors import UserError
from raysys.features.drift import Cut, drift_of, population_stability_index
from raysys.monitoring.drift import compare, served_drift
from raysys.monitoring.reference import Reference, drawn_rows, variables_of
from raysys.monitoring.settings import Thresholds
from raysys.monitoring.tally import Grid, Tally
from raysys.monitoring.windows import Stretch, Window, Windows

NAN = np.float32(np.nan)
CODES = frozenset({"code"})
HOUR = 3_600_000


def tables(*special: float) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 60), st.just(3)),
        elements=st.one_of(
            st.floats(-5, 5, width=32), st.sampled_from([NAN, -0.0, 0.0, 1.0, *special])
        ),
    )


table, wild = tables(), tables(np.inf, -np.inf)


def reference(values: np.ndarray, requests: int = 1000) -> Reference:
    """Of three features: two numbers, one code."""
    columns = dict(zip(("one", "two", "code"), values.astype(np.float32).T, strict=True))
    variables = variables_of("feature", columns, CODES)
    return Reference("recommend", 0, 1, requests, requests, len(values), 10, variables)


def told(values: np.ndarray, grid: Grid, people: str = "u") -> Tally:
    """A request a row."""
    tally = Tally.empty(grid.size)
    for number, row in enumerate(values.astype(np.float32)):
        tally = tally.add(grid.count(row[None]), 1, f"{people}{number}")
    return tally


def drawn(shift: float = 0.0, missing: float = 0.0, n: int = 1500, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.stack(
        [rng.normal(shift, 1, n), rng.exponential(1, n), rng.integers(0, 4, n)], axis=1
    )
    values[rng.random(n) < missing, 1] = np.nan
    return values


@given(table, table, st.lists(st.integers(0, 3), min_size=60, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_sum_of_replicas_is_the_whole(old, new, owners) -> None:
    known = reference(old)
    owner = np.array(owners[: len(new)])
    parts = [told(new[owner == replica], known.grid, f"{replica}-") for replica in range(4)]
    merged = sum(parts[1:], parts[0])
    whole = known.grid.count(new)
    assert (merged.counts == whole).all()
    assert merged.requests == len(new)
    backwards = sum(parts[-2::-1], parts[-1])
    assert (backwards.people == merged.people).all()
    # and PSI of the counts is that of the rows themselves
    window = Window(0, 1, 4, merged)
    found = {each.name: each for each in compare("b", known, window, Thresholds()).moved}
    for at, name in enumerate(("one", "two", "code")):
        direct = drift_of(name, old[:, at], new[:, at], categorical=name in CODES)
        assert found[name].histogram == direct.histogram
        p, q = (np.array(s) for s in (direct.histogram.reference, direct.histogram.current))
        epsilon = 0.5 / min(len(old), found[name].rows, merged.n_people)
        assert found[name].psi == pytest.approx(population_stability_index(p, q, epsilon))


@given(table, wild)
@settings(max_examples=80, deadline=None)
def test_all_variables_at_once_are_counted_as_each_alone(old, new) -> None:
    cuts = [Cut.of(old[:, at], categorical=at == 2) for at in range(3)]
    by_hand = [
        np.bincount(cut.place(new[:, at]), minlength=cut.bins) for at, cut in enumerate(cuts)
    ]
    grid = Grid(cuts)
    assert (grid.count(new) == np.concatenate(by_hand)).all()
    some = grid.count(new[:, [2, 0]], [2, 0])
    assert (some == np.concatenate([by_hand[0], 0 * by_hand[1], by_hand[2]])).all()


@pytest.mark.parametrize("people", [1, 50, 3000])
def test_people_are_estimated_across_replicas(people: int) -> None:
    counts = np.zeros(1, np.int64)
    tallies = [Tally.empty(1), Tally.empty(1)]
    for visit in range(2 * people):
        who = visit % people
        tallies[visit % 2] = tallies[visit % 2].add(counts, 1, f"user {who}")
    both = tallies[0] + tallies[1]
    assert both.n_people == pytest.approx(people, rel=0.05)
    assert str(people) not in str(both.people.tobytes())  # a bitmap, no names


def test_what_moved_is_named_and_what_chance_explains_is_not() -> None:
    known = reference(drawn())
    window = Window(0, 1, 1, told(drawn(shift=1, missing=0.3, seed=2), known.grid))
    found = compare("b", known, window, Thresholds())
    by_name = {each.name: each for each in found.moved}
    assert [each.name for each in found.moved] == ["two", "one", "code"]
    assert by_name["one"].level == "large"
    assert by_name["two"].missing_over and by_name["two"].missing[1] == pytest.approx(0.3, abs=0.05)
    assert by_name["code"].level == "stable" and not by_name["code"].over
    assert found.drifted and found.max_psi == by_name["two"].psi > by_name["one"].psi > 0.25
    assert "one" in found.sentence and "two is missing in" in found.sentence
    assert compare("b", known, window, Thresholds(psi=9, missing=0.9)).drifted is False

    same = Window(0, 1, 1, told(drawn(seed=3), known.grid))
    calm = compare("b", known, same, Thresholds())
    assert not calm.drifted and calm.share_over == 0 and "No drift" in calm.sentence

    few = Window(0, 1, 1, told(drawn(shift=1, n=30, seed=4), known.grid))
    assert not compare("b", known, few, Thresholds()).enough
    assert "Too few" in compare("b", known, few, Thresholds()).sentence


def test_few_people_prove_little_however_often_they_come() -> None:
    known = reference(drawn())
    mine = drawn(n=5, seed=5)[np.arange(1500) % 5]  # five people, three hundred visits each
    tally = Tally.empty(known.grid.size)
    for number, row in enumerate(mine.astype(np.float32)):
        tally = tally.add(known.grid.count(row[None]), 1, f"u{number % 5}")
    found = compare("b", known, Window(0, 1, 1, tally), Thresholds())
    assert found.max_psi > 0.25 and not found.drifted


def test_windows_are_those_of_a_time_and_of_all_replicas(tmp_path: Path) -> None:
    known = reference(drawn())
    bundle = tmp_path / "registry" / "b-1"
    bundle.mkdir(parents=True)
    assert Reference.load(bundle) is None
    with pytest.raises(UserError, match="does not say how"):
        served_drift(bundle, tmp_path / "monitor")
    known.save(bundle)
    again = Reference.load(bundle)
    assert again is not None and again.variables[0].cut.labels == known.variables[0].cut.labels
    assert served_drift(bundle, tmp_path / "monitor") is None

    writers = [Windows(tmp_path / "monitor", "b-1", known) for _ in range(2)]
    calm, moved = (told(drawn(shift=s, seed=7), known.grid) for s in (0, 2))
    half = told(drawn(seed=8, n=600), known.grid)
    writers[0].write(Stretch(0, HOUR - 1, "r0", half))
    writers[0].write(Stretch(0, HOUR - 1, "r0", calm))  # the same stretch, further on
    writers[1].write(Stretch(0, HOUR - 1, "r1", calm))
    writers[1].write(Stretch(5 * HOUR, 6 * HOUR - 1, "r1", moved))
    reader = Windows(tmp_path / "monitor", "b-1", again)
    first = reader.window(0, HOUR)
    assert first is not None and first.replicas == 2 and first.tally.requests == 3000
    assert (first.tally.counts == 2 * calm.counts).all()
    parts = reader.parts(0, 9 * HOUR, 24)
    assert [(part.since, part.replicas) for part in parts] == [(0, 2), (5 * HOUR, 1)]
    (whole,) = reader.parts(0, 9 * HOUR, 1)
    assert whole.tally.requests == sum(part.tally.requests for part in parts) == 4500
    assert reader.window(2 * HOUR, 4 * HOUR) is None
    early = served_drift(bundle, tmp_path / "monitor", hours=1, until=HOUR)
    late = served_drift(bundle, tmp_path / "monitor", hours=1, until=6 * HOUR)
    assert early is not None and late is not None
    assert not early.drifted and late.drifted and late.window.since == 5 * HOUR

    (tmp_path / "monitor" / "b-1" / "0000000000009-cut.parquet").write_bytes(b"PAR1")
    assert reader.window(0, HOUR) is not None  # a torn file costs itself alone
    reader.forget(before=2**62)
    assert reader.window(0) is None


def test_a_damaged_reference_is_told(tmp_path: Path) -> None:
    reference(drawn()).save(tmp_path)
    path = tmp_path / "monitoring" / "reference.json"
    for content in ("{", "{}", path.read_text().replace('"format": 1', '"format": 9')):
        path.write_text(content)
        with pytest.raises(UserError) as told_:
            Reference.load(tmp_path)
        assert str(path) in str(told_.value)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 6))
def test_equally_many_rows_of_each_request(sizes, most) -> None:
    sizes = np.array(sizes, np.int64)
    rows = drawn_rows(sizes, most)
    group = np.repeat(np.arange(len(sizes)), sizes)
    assert len(np.unique(rows)) == len(rows)
    assert (np.bincount(group[rows], minlength=len(sizes)) == np.minimum(sizes, most)).all()
