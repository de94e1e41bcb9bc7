"""May a bundle take the champion's place; and the journal of what names meant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.registry import BundleManifest, Registry
from raysys.registry.gate import judge_figures, judge_learned, judge_paired, main_figures
from raysys.registry.listing import judge_known
from raysys.stages import life
from raysys.storage import Workspace

SPREAD = {"value": 0.25, "low": 0.24, "high": 0.26}


def manifest(figure: Any, surface: str = "recommend") -> BundleManifest:
    figures = {} if figure is None else {"ndcg10": {"full": figure}}
    return BundleManifest("x-1", surface, {"a": "tree"}, {}, figures=figures)


@pytest.mark.parametrize(
    ("challenger", "champion", "passes", "how"),
    [
        (0.245, SPREAD, True, "intervals"),  # worse, within the noise
        (0.240, SPREAD, True, "intervals"),
        (0.239, SPREAD, False, "intervals"),
        ({"value": 0.3, "low": 0.1, "high": 0.5}, SPREAD, True, "intervals"),
        (0.25, 0.25, True, "points"),
        (0.249, 0.25, False, "points"),
        (0.26, {"value": 0.25, "low": None, "high": None}, True, "points"),
        (None, SPREAD, False, "none"),
        (0.3, None, False, "none"),
        ("high", SPREAD, False, "none"),
        (True, SPREAD, False, "none"),
    ],
)
def test_figures_of_manifests(challenger: Any, champion: Any, passes: bool, how: str) -> None:
    judged = judge_figures(manifest(challenger), manifest(champion))
    assert (judged.passes, judged.how) == (passes, how) and judged.reason


def test_another_surface_is_no_match() -> None:
    judged = judge_figures(manifest(0.9, "search"), manifest(0.1))
    assert not judged.passes and "surface" in judged.reason


def test_a_text_task_is_judged_by_its_criterion() -> None:
    figures = {
        "criterion": "macro_f1",
        "chosen": "b",
        "test": {"a": {"macro_f1": {"value": 0.1}}, "b": {"macro_f1": {"value": 0.7}, "x": 3}},
    }
    found = main_figures(BundleManifest("t-1", "text", {"b": "linear"}, {}, figures=figures))
    assert [(name, value.value) for name, value in found.items()] == [("macro_f1", 0.7)]


@given(value=st.floats(-1, 1), below=st.floats(0, 0.5), above=st.floats(0, 0.5))
def test_paired_refuses_only_what_is_surely_worse(value: float, below: float, above: float) -> None:
    judged = judge_paired("ndcg@10", 0.2, 0.3, Interval(value, value - below, value + above))
    assert judged.passes == (value + above >= 0)


@pytest.mark.parametrize("better", [True, False])
def test_where_nothing_can_be_compared_nothing_passes(better: bool) -> None:
    nothing = Bootstrap(np.arange(9)).difference(np.full(9, np.nan), np.full(9, np.nan))
    judged = judge_paired("ndcg@10", np.nan, np.nan, nothing, better=better)
    assert not judged.passes and "nothing could be compared" in judged.reason


@pytest.mark.parametrize(
    ("value", "better", "passes"),
    [(-0.1, False, False), (0.1, False, True), (-0.1, True, False), (0.1, True, False)],
)
def test_without_an_interval_nothing_is_better(value: float, better: bool, passes: bool) -> None:
    nan = float("nan")
    judged = judge_paired("ndcg@10", 0.2, 0.3, Interval(value, nan, nan), better=better)
    assert judged.passes == passes
    assert "no interval" in judged.reason and "nan" not in judged.reason


def test_pairing_sees_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    easy = rng.beta(2, 3, 600)  # requests differ much more than the two bundles
    worse = easy - 0.01 + rng.normal(0, 0.01, 600)
    draws = Bootstrap(np.arange(600))
    champion, challenger = draws.mean(easy), draws.mean(worse)
    apart = judge_figures(manifest(challenger.to_dict()), manifest(champion.to_dict()))
    assert apart.passes
    paired = judge_paired("ndcg@10", 0, 0, draws.difference(worse, easy))
    assert not paired.passes and paired.how == "paired"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Workspace(tmp_path).registry and Registry(tmp_path / "registry")


def published(registry: Registry, figure: Any) -> str:
    def write(folder: Path) -> None:
        (folder / "a.json").write_text(json.dumps(str(figure)))

    return registry.publish(write, learners={"a": "tree"}, figures={"ndcg10": {"full": figure}})


def test_promotion_and_the_way_back(registry: Registry) -> None:
    workspace = Workspace(registry.root.parent)
    good, bad, same = (published(registry, f) for f in (SPREAD, 0.2, 0.2400001))
    assert life.promote(workspace, good, None, force=False).passes  # the first of its name
    with pytest.raises(UserError, match="--force") as caught:
        life.promote(workspace, bad, None, force=False)
    assert "even the lower end" in str(caught.value)
    assert registry.resolve("champion") == good
    assert not life.promote(workspace, bad, None, force=True, look=True).passes
    assert registry.resolve("champion") == good  # only looked
    life.promote(workspace, same, None, force=False)
    life.promote(workspace, bad, None, force=True)
    assert registry.resolve("champion") == bad
    assert life.rollback(workspace, "champion") == same
    assert life.rollback(workspace, "champion") == good
    causes = [change.cause for change in registry.journal("champion")]
    assert [cause.split(" by ")[0] for cause in causes] == [
        "promoted",
        "promoted",
        "promoted",
        "rolled back",
        "rolled back",
    ]
    assert "forced" in causes[2] and "forced" not in causes[1]
    moves = [(change.before, change.after) for change in registry.journal()]
    assert moves == [("", good), (good, same), (same, bad), (bad, same), (same, good)]


def test_a_rollback_meanwhile_is_not_undone(registry: Registry, monkeypatch) -> None:
    workspace = Workspace(registry.root.parent)
    old, bad, new = (published(registry, figure) for figure in (SPREAD, 0.1, 0.3))
    registry.point("champion", old)
    registry.point("champion", bad)
    judge = life.judge

    def slowly(*told: Any) -> Any:
        judged = judge(*told)
        registry.rollback("champion")
        return judged

    monkeypatch.setattr(life, "judge", slowly)
    with pytest.raises(UserError, match="means another bundle by now"):
        life.promote(workspace, new, None, force=True)
    assert registry.resolve("champion") == old


@pytest.mark.parametrize("damage", ["deleted", "manifest"])
def test_a_champion_that_cannot_be_read_is_replaced_by_who_insists(
    registry: Registry, damage: str
) -> None:
    workspace = Workspace(registry.root.parent)
    old, new = published(registry, SPREAD), published(registry, 0.3)
    registry.point("champion", old)
    if damage == "deleted":
        shutil.rmtree(registry.bundles / old)
    else:
        (registry.bundles / old / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"champion cannot be read: .*manifest"):
        life.promote(workspace, new, None, force=False)
    judged = judge_known(registry, registry.verify(new), old)
    assert (judged.passes, judged.how) == (False, "none")
    assert not life.promote(workspace, new, None, force=True).passes
    assert registry.resolve("champion") == new


@pytest.mark.parametrize("name", ["../champion", "a/b", "..", "/etc/passwd", "x\x00"])
def test_names_that_lead_elsewhere_are_not_promoted(registry: Registry, name: str) -> None:
    good = published(registry, 0.3)
    for bundle, pointer in ((name, None), (good, name)):
        with pytest.raises(UserError, match="is not a name"):
            life.promote(Workspace(registry.root.parent), bundle, pointer, force=True)


def test_a_journal_that_was_cut_off_goes_on(registry: Registry) -> None:
    first, second = published(registry, 0.1), published(registry, 0.2)
    registry.point("champion", first)
    path = registry.root / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "20')
    registry.point("champion", second)
    assert [change.after for change in registry.journal("champion")] == [first, second]
    assert registry.journal("other") == ()


@pytest.mark.long
def test_the_command_line(registry: Registry) -> None:
    good, bad = published(registry, SPREAD), published(registry, 0.2)
    registry.point("champion", good)
    tampered = published(registry, 0.3)
    path = registry.bundles / tampered / "manifest.json"
    path.write_text("{")

    def raysys(*words: str) -> subprocess.CompletedProcess[str]:
        where = ("-w", str(registry.root.parent))
        command = [sys.executable, "-m", "raysys", *words, *where]
        return subprocess.run(command, capture_output=True, text=True)

    rows = {row["bundle"]: row for row in json.loads(raysys("bundles", "--json").stdout)}
    assert rows[good]["names"] == ["champion"] and rows[good]["interval"] == [0.24, 0.26]
    assert rows[bad]["figure"] == 0.2 and "damaged" in rows[tampered]
    refused = raysys("promote", bad)
    assert refused.returncode == 2 and "lower end" in refused.stderr
    registry.point("champion", bad)
    assert good in raysys("rollback").stdout


@pytest.mark.parametrize(
    ("low", "high", "passes"), [(0.001, 0.01, True), (0.0, 0.01, False), (-0.02, -0.01, False)]
)
def test_better_must_be_sure(low: float, high: float, passes: bool) -> None:
    judged = judge_paired("ndcg@10", 0.3, 0.2, Interval((low + high) / 2, low, high), better=True)
    assert judged.passes == passes and judged.reason


def test_what_was_measured_against_this_champion_counts() -> None:
    figures = {
        "ndcg10": {"full": 0.9},
        "gate": {
            "against": "x-1",
            "metric": "mrr",
            "challenger": 0.4,
            "champion": 0.5,
            "difference": {"value": -0.1, "low": -0.2, "high": -0.05},
        },
    }
    challenger = BundleManifest("y-1", "recommend", {"a": "tree"}, {}, figures=figures)
    judged = judge_learned(challenger, manifest(0.1))
    assert judged is not None and not judged.passes and judged.metric == "mrr"
    another = BundleManifest("z-1", "recommend", {"a": "tree"}, {})
    assert judge_learned(challenger, another) is None
    assert judge_learned(manifest(0.1), another) is None
