"""What is recorded of an answer, and that it can be given again to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from raysys.cli import app as cli
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.segments import segments
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context, moment_of, new_request_id
from raysys.serving.intake import ListRequest
from raysys.serving.metrics import Metrics
from raysys.serving.replay import replay
from raysys.serving.service import Service
from raysys.serving.shown_lists import SHOWN_LISTS, ShownArgs, ShownLog, find_shown

POLICY = {
    "exploration": {"share": 0.5, "depth": 8},
    "diversity": {"relevance": 0.7},
    "at_most": {"category": 3},
    "pinned": [{"item_id": "i00007", "position": 3}],
}
ASKED: list[ListRequest] = [
    RecommendRequest(user_id="u1", k=8),
    RecommendRequest(user_id="u2", place="cart", item_ids=["i00003"], k=5),
    RecommendRequest(session_id="s", item_ids=["i00003"], k=5),
    SearchRequest(query="chese", user_id="u3", k=6, filters={"max_price": 9}),
    SimilarRequest(item_id="i00005", user_id="u1", k=4),
    RankRequest(item_ids=["i00001", "i00002", "x"], user_id="u1"),
]


def serve(registry: Registry, folder: Path, **more: Any) -> Service:
    content = {
        "registry": str(registry.root),
        "clock": "log_end",
        "recommend": {"policy": POLICY},
        "search": {"policy": {"exploration": {"share": 0.3}}},
        "shown_lists": {"folder": str(folder), "inputs_share": 0},
        **more,
    }
    return Service(ServeArgs.model_validate(content))


def context() -> Context:
    return Context(time.perf_counter())


def inputs(folder: Path, share: float) -> dict[str, Any]:
    return {"shown_lists": {"folder": str(folder), "inputs_share": share}}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_answer_can_be_given_again(registry: Registry, tmp_path: Path, share: float) -> None:
    service = serve(registry, tmp_path, **inputs(tmp_path, share))
    answers = [service.answer(asked, context()) for asked in ASKED]
    service.close()
    for answer, asked in zip(answers, ASKED, strict=True):
        found = replay(tmp_path, answer.request_id)
        assert found.differences == []
        assert found.scored_from == ("inputs" if share else "state")
        known = [item.item_id for item in answer.items if item.score is not None]
        assert found.item_ids == known == found.record["item_ids"]
        assert found.record["user_id"] == asked.user_id
        assert found.record["surface"] in type(asked).__name__.lower()
    explored = [p for answer in answers for p in replay_of(tmp_path, answer)["propensities"]]
    assert any(p < 1 for p in explored)


def test_what_nobody_is_shown_is_not_recorded(registry: Registry, tmp_path: Path) -> None:
    service = serve(registry, tmp_path)
    looked = [
        service.answer(each.model_copy(update={"explain": True}), context()) for each in ASKED
    ]
    unseen = service.answer(ASKED[0], Context(time.perf_counter(), shown=False))
    seen = service.answer(ASKED[0], context())
    assert sum(service.metrics.read()["raysys_answers"].values()) == len(ASKED) + 2
    service.close()
    for answer in (*looked, unseen):
        with pytest.raises(UserError):
            find_shown(tmp_path, answer.request_id)
    assert find_shown(tmp_path, seen.request_id)["request_id"] == seen.request_id


def replay_of(folder: Path, answer: Any) -> dict[str, Any]:
    return find_shown(folder, answer.request_id)


def test_a_state_that_has_moved_on_needs_the_recorded_features(
    registry: Registry, tmp_path: Path
) -> None:
    for share, scored_from in ((1.0, "inputs"), (0.0, "nothing")):
        folder = tmp_path / scored_from
        service = serve(registry, folder, **inputs(folder, share))
        table = service.bundle.features.tables["item"]
        table.counts *= 3  # as if much had been sold since
        service.versions.state = "log 17"
        answer = service.answer(ASKED[0], context())
        service.close()
        found = replay(folder, answer.request_id)
        assert found.scored_from == scored_from and found.differences == []
    # what was recorded as unchanged, but was not, is told
    service = serve(registry, tmp_path / "lie", **inputs(tmp_path / "lie", 0.0))
    service.bundle.features.tables["item"].counts[:] = 0
    answer = service.answer(ASKED[0], context())
    service.close()
    assert any(
        "score otherwise" in said
        for said in replay(tmp_path / "lie", answer.request_id).differences
    )


def test_from_a_cache_too_and_without_those_that_were_late(
    registry: Registry, tmp_path: Path
) -> None:
    service = serve(registry, tmp_path, cache={})
    hits = [service.answer(ASKED[3], context()) for _ in range(2)]
    late = service.answer(ASKED[0], Context(time.perf_counter(), deadline_ms=1e-6))
    service.close()
    assert [replay_of(tmp_path, answer)["cache"] for answer in hits] == ["miss", "hit"]
    assert late.left_out and late.reasons[late.left_out[0]] == "deadline"
    for answer in (*hits, late):
        assert replay(tmp_path, answer.request_id).differences == []


def test_the_command_says_whether_it_is_the_same(registry: Registry, tmp_path: Path) -> None:
    service = serve(registry, tmp_path)
    answer = service.answer(ASKED[0], context())
    service.close()
    run = CliRunner().invoke
    done = run(cli, ["replay", answer.request_id, "--shown-lists", str(tmp_path)])
    assert done.exit_code == 0 and "the same, to the last bit" in done.output
    done = run(cli, ["replay", answer.request_id, "-s", str(tmp_path), "--json"])
    assert json.loads(done.output)["same"] is True
    assert run(cli, ["replay", "0" * 32, "-s", str(tmp_path)]).exit_code == 2
    assert run(cli, ["replay", "x", "-s", str(tmp_path / "no")]).exit_code == 2
    (tmp_path / f"settings-{replay_of(tmp_path, answer)['settings']}.json").unlink()
    with pytest.raises(UserError, match="no settings"):
        replay(tmp_path, answer.request_id)


def test_the_command_does_not_call_the_same_what_it_did_not_compute(
    registry: Registry, tmp_path: Path
) -> None:
    service = serve(registry, tmp_path, **inputs(tmp_path, 0.0))
    service.versions.state = "log 17"  # it has moved on, and no features are recorded
    answer = service.answer(ASKED[0], context())
    service.close()
    args = ["replay", answer.request_id, "-s", str(tmp_path)]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0 and "not scored again" in done.output
    assert "the same list from the recorded scores" in done.output
    assert "the same, to the last bit" not in done.output
    told = json.loads(CliRunner().invoke(cli, [*args, "--json"]).output)
    assert told["same"] is True and told["scored_from"] == "nothing"


def test_what_replay_lacks_is_told_with_how_to_mend_it(registry: Registry, tmp_path: Path) -> None:
    own = Registry(tmp_path / "registry")
    shutil.copytree(registry.root, own.root)
    folder = tmp_path / "lists"
    service = serve(own, folder, **inputs(folder, 1.0))
    answer = service.answer(ASKED[0], context())
    service.close()
    bundle = own.resolve("champion")
    shutil.rmtree(own.path(bundle))
    args = ["replay", answer.request_id, "-s", str(folder)]
    done = CliRunner().invoke(cli, args)
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and f"{bundle!r} that answered is gone" in said
    assert "--registry" in said
    assert CliRunner().invoke(cli, [*args, "--registry", str(registry.root)]).exit_code == 0
    done = CliRunner().invoke(cli, ["replay", "0" * 32, "-s", str(folder)])
    assert done.exit_code == 2 and "keep_days" in " ".join(done.output.split())


def test_the_log_lines_of_a_call_find_its_list(registry: Registry, tmp_path: Path) -> None:
    """Serve's lines name a call by its `X-Request-Id`, which the proxy adds where it lacks."""
    service = serve(registry, tmp_path)
    sent = {
        "from-the-shop-17": "from-the-shop-17",
        "long" * 100: "long" * 50,
        "tab\tand\x7fmore": "tabandmore",
        "\x7f": None,
        None: None,
    }
    bodies = {
        "recommend": {"user_id": "u1"},
        "search": {"query": "cheese"},
        "similar": {"item_id": "i00005"},
        "rank": {"item_ids": ["i00001"], "user_id": "u1"},
    }
    answers = {}
    with TestClient(http_app(service)) as client:  # its end closes the service
        for route, body in bodies.items():
            for said in sent:
                headers = {} if said is None else {"X-Request-Id": said}
                given = client.post(f"/v1/{route}", json=body, headers=headers).json()
                answers[route, said] = given["request_id"]
    for (_, said), request_id in answers.items():
        assert find_shown(tmp_path, request_id)["http_request_id"] == sent[said]
    args = ["replay", answers["search", "from-the-shop-17"], "-s", str(tmp_path)]
    assert "HTTP request from-the-shop-17, " in CliRunner().invoke(cli, args).output
    told = json.loads(CliRunner().invoke(cli, [*args, "--json"]).output)
    assert told["http_request_id"] == "from-the-shop-17"
    args[1] = answers["search", None]
    assert "HTTP request" not in CliRunner().invoke(cli, args).output


def test_a_record_of_an_earlier_version_is_given_again(registry: Registry, tmp_path: Path) -> None:
    service = serve(registry, tmp_path)
    answer = service.answer(ASKED[0], context())
    service.close()
    (path,) = [each.path for each in segments(tmp_path)]
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["http_request_id"]), path)
    assert "http_request_id" not in find_shown(tmp_path, answer.request_id)
    run = CliRunner().invoke(cli, ["replay", answer.request_id, "-s", str(tmp_path), "--json"])
    told = json.loads(run.output)
    assert told["same"] and told["http_request_id"] is None


def log_of(folder: Path, **args: Any) -> tuple[ShownLog, Metrics]:
    metrics = Metrics()
    told = ShownArgs(folder=str(folder), **args)
    return ShownLog(told, folder, told, metrics), metrics


def record(at: int, request_id: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: None if field.nullable else "x" for field in SHOWN_LISTS}
    return row | {
        "request_id": request_id or new_request_id(at),
        "timestamp": at,
        "features_at": at,
        "item_ids": ["a"],
        "scores": np.ones(1, np.float32),
        "propensities": np.ones(1),
        "left_out": [],
        "cold_start": False,
        "took_ms": 1.0,
        "pool": b"",
    }


def test_segments_are_cut_by_rows_and_found_by_moment(tmp_path: Path) -> None:
    log, metrics = log_of(tmp_path, segment_rows=10, segment_s=600)
    made = [record(1_700_000_000_000 + number * 60_000) for number in range(25)]
    for row in made:
        log.note(lambda row=row: row)
    log.close()
    written = sorted(tmp_path.glob("date=*/*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    assert [pq.read_metadata(path).num_rows for path in written] == [10, 10, 5, 25]
    (merged,) = segments(tmp_path)
    assert merged.path == written[-1] and merged.numbers == range(1, 4)
    assert metrics.read()["raysys_shown_lists"] == {"written": 25}
    for row in made:
        assert find_shown(tmp_path, row["request_id"])["request_id"] == row["request_id"]
    own = "chosen by the caller"
    log, _ = log_of(tmp_path)
    log.note(lambda: record(1, own))
    log.close()
    assert find_shown(tmp_path, own)["request_id"] == own


def test_a_full_queue_and_a_broken_record_cost_no_answer(tmp_path: Path) -> None:
    import threading

    log, metrics = log_of(tmp_path, max_waiting=3, segment_s=600)
    go = threading.Event()
    started = threading.Event()

    def slow() -> dict[str, Any]:
        started.set()
        go.wait(10)
        return record(5)

    def broken() -> dict[str, Any]:
        raise RuntimeError("no memory")

    log.note(slow)
    started.wait(10)  # the thread is busy: what comes now waits
    log.note(broken)
    for _ in range(5):
        log.note(lambda: record(6))
    go.set()
    log.close()
    assert metrics.read()["raysys_shown_lists"] == {"dropped": 3, "failed": 1, "written": 3}


def test_request_ids_say_when(tmp_path: Path) -> None:
    ids = {new_request_id(1_700_000_000_123) for _ in range(500)}
    assert len(ids) == 500 and {moment_of(each) for each in ids} == {1_700_000_000_123}
    assert all(len(each) == 32 and each[12] == "7" and each[16] in "89ab" for each in ids)
    assert moment_of("x") is None and moment_of("z" * 32) is None


def test_a_forked_process_gives_other_request_ids() -> None:
    new_request_id(1)  # what is left of the bytes is in both processes
    at_end, at_begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(at_begin, new_request_id(1).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(at_end, 32).decode() != new_request_id(1)
    os.close(at_end)
    os.close(at_begin)
