"""A bundle judged on what another one showed: its policy place by place, and its value."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raysys.cli import app as cli
from raysys.errors import UserError
from raysys.eventlog.entries import NewEntry
from raysys.eventlog.local import LocalLog
from raysys.eventlog.settings import LogSettings
from raysys.learners import baselines
from raysys.registry import Registry
from raysys.serving.asking import Context
from raysys.serving.shown_lists import find_shown
from raysys.serving.slots import Explore, Slots
from raysys.serving.would_show import POLICY, would_show
from tests.serving.test_arms import copy
from tests.serving.test_shown_lists import ASKED, serve

N = 12


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1.0, 0.6]),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.sampled_from([None, 0.5]),
)
def test_the_probability_of_what_came_is_the_one_that_was_told(
    seed: int, relevance: float, cap: int | None, pinned: bool, temperature: float | None
) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(-1, 4, N).astype(np.int32)
    slots = Slots(
        np.sort(rng.random(N).astype(np.float32))[::-1],
        pins={2: 7} if pinned else {},
        caps=[("category", kinds, cap)] if cap else [],
        relevance=relevance,
        vectors=None,
        alike=[kinds],
        explore=Explore(0.5, 1, 5, temperature),
    )
    filled = slots.fill(8, seed)
    options = slots.given(filled.chosen.tolist())
    for at, told, (open_to, share) in zip(filled.chosen, filled.propensities, options, strict=True):
        assert share.sum() == pytest.approx(1) and len(set(open_to.tolist())) == len(open_to)
        assert share[open_to.tolist().index(at)] == told


def test_shares_are_how_often_it_happens() -> None:
    slots = Slots(
        np.linspace(1, 0, 6, dtype=np.float32), {}, [], 1.0, None, [], Explore(0.6, 0, 4, None)
    )
    drawn = Counter(int(slots.fill(1, seed).chosen[0]) for seed in range(4000))
    open_to, share = slots.given([0])[0]
    for at, probability in zip(open_to.tolist(), share.tolist(), strict=True):
        assert drawn[at] / 4000 == pytest.approx(probability, abs=0.03)


def test_somebody_beside_the_candidates_leaves_them_all_free() -> None:
    slots = Slots(np.linspace(1, 0, 4, dtype=np.float32), {}, [], 0.5, None, [np.zeros(4)], None)  # type: ignore[list-item]
    assert [int(open_to[0]) for open_to, _ in slots.given([-1, -1, 0])] == [0, 0, 0]
    assert len(slots.given([0, 1, 2, 3, -1])) == 4  # nobody is left for a fifth place


@pytest.fixture(scope="module")
def shown(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of the champion, with a little chance, and all features."""
    folder = tmp_path_factory.mktemp("shown")
    service = serve(registry, folder, shown_lists={"folder": str(folder), "inputs_share": 1})
    for _ in range(4):
        for asked in ASKED:
            service.answer(asked, Context(time.perf_counter()))
    service.close()
    return folder


def propensities(folder: Path, policy: pl.DataFrame) -> dict[tuple[str, int], tuple[str, float]]:
    """(request, position) → item shown and its recorded propensity."""
    found: dict[tuple[str, int], tuple[str, float]] = {}
    for request in policy["request_id"].unique():
        record = find_shown(folder, request)
        pairs = zip(record["item_ids"], record["propensities"], strict=True)
        for at, (item, propensity) in enumerate(pairs, start=1):
            found[request, at] = (item, propensity)
    return found


def test_the_bundle_that_showed_would_show_it_as_probably_as_it_did(
    registry: Registry, shown: Path
) -> None:
    found = would_show(shown, "champion")
    assert found.lists == 4 * len(ASKED) and not found.left_out
    assert dict(found.policy.schema) == POLICY
    recorded = propensities(shown, found.policy)
    told = {
        (row["request_id"], row["position"], row["item_id"]): row["probability"]
        for row in found.policy.to_dicts()
    }
    assert len(recorded) > 80 and any(0 < p < 1 for _, p in recorded.values())
    for (request, position), (item, propensity) in recorded.items():
        assert told[request, position, item] == pytest.approx(propensity, abs=1e-12)
    sums = found.policy.group_by("request_id", "position").agg(pl.col("probability").sum())
    np.testing.assert_allclose(sums["probability"], 1)


def test_another_bundle_has_another_taste(registry: Registry, shown: Path) -> None:
    def by_price(folder: Path) -> None:
        copy(registry.path("champion"), folder)
        for name in ("popular", "repeat_purchase", "co_occurrence"):
            told = {"column": "price", "floor": -1.0, "tie_break": None}
            (folder / "learners" / name / baselines.FILE).write_text(json.dumps(told))

    families = dict(registry.load("champion").families)
    challenger = registry.publish(by_price, name_hint="dear", learners=families)
    found = would_show(shown, challenger)
    recorded = propensities(shown, found.policy)
    best = found.policy.sort("probability", descending=True).unique(
        ["request_id", "position"], keep="first", maintain_order=True
    )
    agreed = [
        recorded[row["request_id"], row["position"]][0] == row["item_id"]
        for row in best.to_dicts()
        if (row["request_id"], row["position"]) in recorded
    ]
    assert 0 < np.mean(agreed) < 1


def test_the_command_values_a_bundle_by_events_of_the_log(
    registry: Registry, shown: Path, tmp_path: Path
) -> None:
    policy = would_show(shown, "champion").policy
    rows: list[dict[str, Any]] = [
        {"event_id": f"{request}-{item}", "event_type": "click", "request_id": request}
        | {"item_id": item, "user_id": "u1", "timestamp": 1_780_000_000_000}
        for (request, position), (item, _) in propensities(shown, policy).items()
        if position <= 2
    ]
    log = LocalLog(tmp_path / "eventlog", LogSettings())
    log.append([NewEntry(row["event_id"], row["timestamp"], "event", row) for row in rows])
    log.close()
    words = ["experiment", "off-policy", str(shown), "--bundle", "champion", "--events"]
    words += [str(tmp_path / "eventlog"), "--output", str(tmp_path / "out"), "--resamples", "100"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "out" / "manifest.json").read_text())["figures"]
    clicked = len(rows) / len(propensities(shown, policy))
    assert figures["ips"]["value"] == pytest.approx(clicked)  # its own policy: weights of one


def test_what_cannot_be_judged_is_refused(registry: Registry, tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(cli, ["experiment", "off-policy", str(tmp_path), "--bundle", "champion"])
    assert done.exit_code == 2 and "--events" in done.output
    done = run(cli, ["experiment", "off-policy", str(tmp_path)])
    assert done.exit_code == 2 and "say what is judged" in done.output
    with pytest.raises(UserError, match="none at all"):
        would_show(tmp_path, "champion", registry=registry.root)
    service = serve(registry, tmp_path / "bare")  # no features recorded
    service.answer(ASKED[0], Context(time.perf_counter()))
    service.close()
    with pytest.raises(UserError, match="1 without recorded features"):
        would_show(tmp_path / "bare", "champion")
