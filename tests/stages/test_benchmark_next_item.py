"""Benchmarks of the next item on small files: no leak, the budget, what the figures say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from raysys.cli import app
from raysys.datasets.sequence_lists import Lists
from raysys.datasets.sequences import Case
from raysys.ensemble.next_item import Candidates, NextItemEnsemble
from raysys.errors import UserError
from raysys.learners.sequence_protocol import SequenceContext
from raysys.learners.sequences import make_sequence_learner
from raysys.stages import benchmark_next_item, benchmark_sequences, benchmark_sessions
from raysys.stages.next_item_members import Member
from raysys.stages.next_item_problem import LONGEST, discounted, hits, reciprocal
from raysys.stages.next_item_report import figures_of
from tests.learners.sequence_suite import walks


def lists(n: int, seed: int) -> list[list[str]]:
    told = walks(n, seed)
    return [[f"i{item}" for item in told[i]] for i in range(len(told))]


def test_measures() -> None:
    ranks = np.array([1, 2, 10, 11])
    np.testing.assert_allclose(hits(10)(ranks), [1, 1, 1, 0])
    np.testing.assert_allclose(reciprocal(10)(ranks), [1, 0.5, 0.1, 0])
    np.testing.assert_allclose(discounted(10)(ranks), [1, 1 / np.log2(3), 1 / np.log2(11), 0])


def test_sessions_validate_on_the_last_ones_only() -> None:
    sessions = lists(200, 0)
    cases = [Case(["i1", "new"], "i2"), Case(["new"], "new too")]
    problem = benchmark_sessions.divided(sessions, cases)
    n = len(problem.fit)
    names = list(dict.fromkeys(item for session in sessions for item in session))
    told = [[names[i] for i in problem.fit[s]] for s in range(n)]
    assert told == sessions[:n] and len(problem.whole) == 200
    expected = [s[: i + 1] for s in sessions[n:] for i in range(len(s) - 1)]
    asked = problem.validation.prefixes
    assert [[names[i] for i in asked[c]] for c in range(len(asked))] == expected
    share = len(problem.validation) / sum(len(s) - 1 for s in sessions)
    assert 0.03 < share < 0.08
    assert problem.test.targets.tolist() == [names.index("i2"), -1]
    assert [len(problem.test.prefixes[i]) for i in (0, 1)] == [1, 0]
    counts = problem.counts
    assert counts["test_clicks_unknown"] == 2 and counts["test_labels_unknown"] == 1


def test_cases_of_one_session_are_found() -> None:
    cases = [
        Case(["a", "b"], "c"),
        Case(["a"], "b"),
        Case(["d"], "a"),
        Case(["d", "a"], "x"),
        Case(["a"], "b"),
    ]
    assert benchmark_sessions.same_session(cases).tolist() == [0, 0, 1, 1, 2]


def test_sequences_never_learn_what_they_are_asked() -> None:
    sequences = [["a", "b", "c", f"last{i}"] for i in range(30)] + [["only"]]
    problem = benchmark_sequences.divided(sequences, {"a": ["x"], "unheard": ["y"]})
    assert problem.n_items == 4  # a, b, c, only: what comes last has no number
    assert (problem.test.targets == -1).all() and len(problem.test) == 30
    held = len(problem.validation)
    assert held == 15
    assert len(problem.whole.items) - len(problem.fit.items) == held
    assert (problem.validation.targets == 2).all()
    assert problem.facts.n_attributes == 1
    assert problem.counts["users_not_asked"] == 1
    with pytest.raises(UserError, match="3 users with three items"):
        benchmark_sequences.divided(sequences[:3], {})


@pytest.mark.long
def test_a_session_of_thousands_of_clicks_is_no_square_of_them() -> None:
    """All prefixes of such sessions would be a thousand million clicks."""
    rng = np.random.default_rng(0)
    sessions = [[f"i{item}" for item in rng.integers(0, 50, 30_000)] for _ in range(12)]
    problem = benchmark_sessions.divided(sessions, [Case(sessions[0], "i1")])
    asked = problem.validation.prefixes
    assert len(asked) == 2 * benchmark_next_item.VALIDATION_CASES
    assert problem.counts["validation_cases"] == 29_999
    assert asked.sizes.max() == LONGEST == problem.test.prefixes.sizes.max()
    # each is what led to its target
    late = [int(item[1:]) for item in sessions[-1]]
    names = list(dict.fromkeys(item for session in sessions for item in session))
    last = [int(names[item][1:]) for item in asked[len(asked) - 1][-8:]]
    target = int(names[problem.validation.targets[-1]][1:])
    places = [at for at in range(8, len(late)) if late[at - 8 : at] == last]
    assert target in [late[at] for at in places]


def test_where_all_are_hits_the_second_measure_says_who_is_best() -> None:
    """Of twelve items everybody's first twenty hold the right one."""
    problem = benchmark_sessions.divided(lists(40, 0), [Case(["i1"], "i2")])
    ranks = {"first": np.array([9, 9, 8]), "second": np.array([1, 2, 1])}
    model = make_sequence_learner("recent_popularity", {}).fit(
        problem.fit, SequenceContext(problem.n_items)
    )
    members = {name: Member("recent_popularity", {}, model, 0.0, 0.0) for name in ranks}
    ensemble = NextItemEnsemble(tuple(ranks), "average", np.array([0.5, 0.5]))
    ranks["ensemble"] = np.array([1, 1, 1])
    found = figures_of(problem, members, ensemble, ranks, np.arange(3), 0)
    assert found["best_member"] == "second"
    assert found["gain"]["MRR@20"]["value"] == pytest.approx(1 - 2.5 / 3)


@pytest.mark.long
def test_nothing_twice_is_learned_where_nobody_takes_a_thing_twice() -> None:
    """Long users who never come back: what is near a user's items is what the user had."""
    rng = np.random.default_rng(0)
    users = []
    for _ in range(150):
        start = int(rng.integers(0, 60))
        users.append([f"i{start + step}" for step in rng.permutation(25)])
    problem = benchmark_sequences.divided(users, {})
    trial = benchmark_next_item.Trial(problem, minutes=60)
    trial._neighbours()
    for name in ("recent_popularity", "item_knn", "session_knn"):
        member = trial.members[name]
        assert member.settings["seen"] == 0.0
        plain = trial._tried(name, {**member.settings, "seen": 1.0})
        assert member.value > plain.value + 0.02
    back = benchmark_sessions.divided(
        [["i1", "i2"] * 4, ["i3", "i4"] * 4] * 20, [Case(["i1"], "i2")]
    )
    trial = benchmark_next_item.Trial(back, minutes=60)
    trial._neighbours()
    assert all(member.settings.get("seen", 1.0) == 1.0 for member in trial.members.values())


@pytest.mark.long
def test_what_the_ensemble_takes_is_measured_without_what_it_takes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = benchmark_sessions.divided(lists(400, 0), [Case(["i1"], "i2")] * 50)
    trial = benchmark_next_item.Trial(problem, minutes=60)
    trial._neighbours()
    now, joins = [0.0], []

    def join(candidates: Candidates, group: np.ndarray, seconds: float) -> None:
        joins.append(len(group))
        now[0] += 50.0 * (len(joins) == 1) + 5.0 + 0.01 * len(group)  # an import, a start, cases

    monkeypatch.setattr(trial, "_join", join)
    monkeypatch.setattr(benchmark_next_item.time, "monotonic", lambda: now[0])
    few = problem.validation.sample(100, 0)
    models = {name: member.model for name, member in trial.members.items()}
    found, _ = trial._collect(models, few)
    assert trial._joining(found, few.group) == pytest.approx(0.01)
    assert len(joins) == 4


def test_whole_sequences_are_learned_where_their_ends_are_a_part_only() -> None:
    def whole(sessions: list[list[str]]) -> bool:
        problem = benchmark_sessions.divided(sessions, [Case(["i1"], "i2")])
        trial = benchmark_next_item.Trial(problem, minutes=60)
        trial.members["session_knn"] = trial._tried("session_knn", {})
        settings = trial._transformer_settings()
        assert settings["start"] == "spectral"
        trial.minutes = 1e-6
        assert trial._transformer_settings()["start"] == "random"
        return bool(settings["whole"])

    short, rng = lists(200, 0), np.random.default_rng(0)
    long = [[f"i{item}" for item in rng.integers(0, 30, 200)] for _ in range(60)]
    assert whole(long) and not whole(short)


def test_a_slow_start_does_not_cost_test_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece compiles; all the rest is judged if its own pace allows, else its part."""
    problem = benchmark_sessions.divided(lists(200, 0), [Case(["i1"], "i2")])
    trial = benchmark_next_item.Trial(problem, minutes=60)
    now = [0.0]
    monkeypatch.setattr(benchmark_next_item.time, "monotonic", lambda: now[0])

    def judged(seconds: float) -> int:
        now[0], trial.end, done = 0.0, seconds, []
        for piece in trial._chunks(20_000):
            now[0] += len(piece) * (0.04 if not done else 0.01)
            done.extend(piece.tolist())
        assert len(set(done)) == len(done) and now[0] <= max(seconds, 10.24)
        return len(done)

    assert judged(1.0) == benchmark_next_item.PROBE
    assert judged(300.0) == 20_000
    assert 4100 < judged(50.0) <= 4232  # 10 s for the first 256, then a hundred a second


@pytest.mark.long
def test_a_member_that_diverges_is_dropped_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    problem = benchmark_sessions.divided(lists(200, 0), [Case(["i1"], "i2")])
    trial = benchmark_next_item.Trial(problem, minutes=30)
    settings = {"learning_rate": 1e30, "width": 8, "negatives": 0}
    monkeypatch.setattr(trial, "_transformer_settings", lambda: settings)
    trial._transformers(trial.end)
    assert not trial.members and "lower learning_rate" in trial.dropped["transformer"]

    settings |= {"learning_rate": 1e-3, "epochs": 1}
    trial._transformers(trial.end)
    assert "transformer" in trial.members and "transformer" not in trial.dropped


def test_one_item_is_no_ranking() -> None:
    with pytest.raises(UserError, match="one and the same item"):
        benchmark_sessions.divided([["a", "a"]] * 20, [Case(["a"], "a")])
    with pytest.raises(UserError, match="one and the same item"):
        benchmark_sequences.divided([["a", "a", "b"]] * 20, {})


def test_attributes_lie_beside(tmp_path: Path) -> None:
    path = tmp_path / "shop.txt.gz"
    assert benchmark_sequences.beside(path) is None
    (tmp_path / "shop_attributes.json.gz").touch()
    assert benchmark_sequences.beside(path) == tmp_path / "shop_attributes.json.gz"


@pytest.mark.long
def test_the_command_prints_figures(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("\n".join(json.dumps(s) for s in lists(300, 0)))
    cases = [{"session": s[:-1], "label": s[-1]} for s in lists(80, 1)]
    test.write_text("\n".join(json.dumps(case) for case in cases))
    out = tmp_path / "figures.json"
    command = ["benchmark", "sessions", str(train), str(test), "--minutes", "0.15", "-q"]
    done = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert report["counts"]["test_cases_judged"] == 80
    assert {"recent_popularity", "item_knn", "session_knn"} <= report["members"].keys()
    hit = report["ensemble"]["P@20"]
    assert 0.6 < hit["value"] <= 1 and hit["low"] <= hit["value"] <= hit["high"]
    best = report["members"][report["best_member"]]
    for measure, gain in report["gain"].items():
        apart = report["ensemble"][measure]["value"] - best[measure]["value"]
        assert gain["value"] == pytest.approx(apart, abs=1e-9)


def events(lists_: list[list[str]], begin: int, head: str = "SessionId\tItemId\tTime\n") -> str:
    """Rows of sessions that end one after the other, an hour apart."""
    rows = [
        (f"s{begin}_{s}", item, begin + 3600 * s + at)
        for s, items in enumerate(lists_)
        for at, item in enumerate(items)
    ]
    return head + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def test_events_and_cases_of_the_same_are_the_same_problem(tmp_path: Path) -> None:
    train, test = lists(200, 0), [*lists(30, 1), ["i1"], ["i1", "new", "i2", "new"]]
    cases = [Case(s[:stop], s[stop]) for s in test for stop in range(1, len(s))]
    expected = benchmark_sessions.divided(train, cases)
    rows, more = tmp_path / "train", tmp_path / "test"
    rows.write_text(events(train, 1_400_000_000))
    more.write_text(events(test, 1_500_000_000))
    found, read_as = benchmark_sessions.read(rows, more)
    for name in ("fit", "whole"):
        np.testing.assert_array_equal(getattr(found, name).items, getattr(expected, name).items)
    for mine, other in ((found.validation, expected.validation), (found.test, expected.test)):
        np.testing.assert_array_equal(mine.prefixes.items, other.prefixes.items)
        np.testing.assert_array_equal(mine.prefixes.offsets, other.prefixes.offsets)
        np.testing.assert_array_equal(mine.targets, other.targets)
    counts = found.counts
    assert {**counts, **expected.counts} == counts
    assert counts["test_sessions_of_one_click"] == 1 and counts["test_labels_unknown"] == 2
    assert "SessionId, ItemId, by Time" in read_as["train"]


def test_the_last_day_is_the_test_where_no_file_is(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(events(lists(100, 0), 1_400_000_000))
    problem, read_as = benchmark_sessions.read(path)
    assert problem.counts["test_sessions"] in (24, 25)  # an hour apart, of unequal lengths
    assert problem.counts["train_sessions"] + problem.counts["test_sessions"] == 100
    assert "in its last day" in read_as["test"]
    path.write_text("\n".join(json.dumps(s) for s in lists(100, 0)))
    with pytest.raises(UserError, match="has no times"):
        benchmark_sessions.read(path)


def test_training_that_goes_on_after_the_test_begins_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, more = tmp_path / "train", tmp_path / "test"
    rows.write_text(events(lists(100, 0), 1_400_000_000))
    more.write_text(events(lists(10, 1), 1_400_000_000 + 90 * 3600 - 600))
    problem, _ = benchmark_sessions.read(rows, more)
    assert problem.counts["train_sessions_after_test_begins"] == 10
    assert "end later than the first test session" in caplog.text


def test_of_too_many_test_cases_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_sessions, "MOST_CLICKS", 100)
    test = Lists.of(lists(60, 1))
    problem = benchmark_sessions.divided(lists(200, 0), test)
    assert len(problem.test.prefixes.items) < 200
    counts = problem.counts
    assert counts["test_cases"] == len(problem.test) < counts["test_cases_in_file"]
    assert counts["test_cases_in_file"] == int((test.sizes - 1).sum())


@pytest.mark.long
@pytest.mark.parametrize("form", ["retailrocket", "movielens"])
def test_the_command_reads_other_formats(tmp_path: Path, form: str) -> None:
    path = tmp_path / "events"
    if form == "retailrocket":
        rows = events(lists(300, 0), 1_400_000_000, "visitorid\titemid\ttimestamp\n")
        path.write_text(rows.replace("\t", ","))
        command = ["benchmark", "sessions", str(path), "--test-days", "2"]
    else:
        path.write_text(
            "".join(
                f"{user}::{item}::{1 + at % 5}::{1_000_000_000 + 60 * at}\n"
                for user, items in enumerate(lists(300, 0))
                for at, item in enumerate(items)
            )
        )
        command = ["benchmark", "sequences", str(path)]
    done = CliRunner().invoke(app, [*command, "--minutes", "0.15", "-q"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["counts"]["test_cases_judged"] > 20
    assert report["ensemble"]["P@20" if form == "retailrocket" else "HIT@10"]["value"] > 0.3
    if form == "retailrocket":
        assert "30 minutes" in report["read_as"]["train"] and report["test"] is None
    else:
        assert report["read_as"] == "an event a row: 1, 2, by 4; columns by their place"


def test_the_command_names_columns_and_options(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("who,what,when\n" + "a,b,2020-01-01\n" * 20)
    command = ["benchmark", "sequences", str(path), "-q"]
    done = CliRunner().invoke(app, command)
    told = " ".join(done.stderr.split())
    assert done.exit_code == 2 and "who, what, when" in told and "--item-col" in told
    options = ["--user-col", "who", "--item-col", "what", "--time-col", "when"]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 2 and "1 users with three items" in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_all_members_on_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_next_item, "MAX_EPOCHS", 8.0)  # ends long before the clock
    path = tmp_path / "users.txt"
    lines = [" ".join([f"u{i}", *items]) for i, items in enumerate(lists(400, 0))]
    path.write_text("\n".join(lines))
    (tmp_path / "users_attributes.json").write_text(json.dumps({"i1": [1, 2], "i2": [2]}))
    report = benchmark_sequences.run(path, minutes=6)
    assert {"transformer", "masked_transformer"} <= report["members"].keys()
    assert report["attributes"].endswith("users_attributes.json")
    assert report["members"]["transformer"]["HIT@10"]["value"] > 0.5
    counts = report["counts"]
    assert counts["test_cases_judged"] == counts["test_cases"] == 400


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("[1, 2]\nnonsense\n")
    test.write_text('{"session": [1], "label": 2}\n')
    done = CliRunner().invoke(app, ["benchmark", "sessions", str(train), str(test), "-q"])
    assert done.exit_code == 2
    assert "train.jsonl:2" in done.stderr.replace("\n", "")


def test_a_test_file_of_other_items_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    train.write_text("".join(json.dumps(one) + "\n" for one in lists(40, 0)), encoding="utf-8")
    test.write_text('["x1", "x2"]\n', encoding="utf-8")
    with pytest.raises(UserError, match="1 of 1 items that are to be found never come up"):
        benchmark_sessions.read(train, test)
    test.write_text('["x1", "x2", "x3", "i1"]\n', encoding="utf-8")
    with caplog.at_level("WARNING", "raysys"):
        benchmark_sessions.read(train, test)
    assert "2 of 3 items that are to be found never come up" in caplog.text
