"""`/v1/text/*` over real models: typed answers, problems that say how to mend, pinned bundles."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.learners.relevance_model import RelevanceModel
from raysys.registry import Registry
from raysys.serving import text_routes
from raysys.serving.app import http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from raysys.serving.text_api import MAX_TEXT, MAX_TEXTS
from raysys.serving.text_routes import MOST_CHARACTERS
from raysys.serving.workers import Workers
from raysys.stages import text as stage
from raysys.stages.deploy_plan import DeploySettings, plan
from raysys.storage import Workspace
from tests.stages import texts

TASKS = ("classify", "entities", "sentiment", "relevance")
TREES = {"relevance_trees": {"vectors": None}}
LINEAR = {"tfidf_classifier": {"costs": [3.0]}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A registry with a bundle of each task."""
    folder = tmp_path_factory.mktemp("texts")
    found = Workspace(folder / "ws")
    written: dict[str, tuple[Path, dict[str, Any]]] = {
        "classify": (texts.write_titles(folder / "t.csv", 150), LINEAR),
        "sentiment": (texts.write_reviews(folder / "r.csv", 150), LINEAR),
        "entities": (texts.write_attributes(folder / "a.jsonl", 120), {"gazetteer_tagger": {}}),
        "relevance": (texts.write_judgements(folder / "j.csv"), TREES),
    }
    for task, (path, learners) in written.items():
        stage.run(texts.settings_of(task, path, learners), found)
    return found


def args(workspace: Workspace, *tasks: str, **more: Any) -> ServeArgs:
    names = {task: f"text-{task}" for task in tasks}
    content = {"registry": str(workspace.registry), "bundle": None, "text": names, **more}
    return parse_settings(ServeArgs, content, where="test")


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[TestClient]:
    service = Service(settle(args(workspace, *TASKS)))
    cold = TestClient(http_app(service), raise_server_exceptions=False)
    assert cold.get("/readyz").status_code == 503
    service.warm_up()
    with TestClient(http_app(service), raise_server_exceptions=False) as warm:
        yield warm


def ask(client: TestClient, task: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/text/{task}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert set(answer) == {"request_id", "bundle", "took_ms", "results"}
    assert len(answer["results"]) == len(body["texts"])
    return answer


def refuse(client: TestClient, task: str, status: int, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/text/{task}", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["instance"] == f"/v1/text/{task}"
    return problem


@pytest.mark.long
def test_classes_come_with_probabilities_best_first(client: TestClient) -> None:
    answer = ask(client, "classify", texts=["acme oat milk 7", "royal rye bread 3"], choices=5)
    assert [result["label"] for result in answer["results"]] == ["dairy > milk", "bakery > bread"]
    for result in answer["results"]:
        shares = [choice["probability"] for choice in result["choices"]]
        assert shares == sorted(shares, reverse=True) and len(shares) == 5
        assert 0 < result["probability"] <= 1
    few = ask(client, "classify", texts=["acme oat milk 7"], choices=0)
    assert few["results"][0]["choices"] == []


def test_reviews_have_a_mood_and_a_rating(client: TestClient) -> None:
    sent = ["fresh lovely milk", "stale broken soap"]
    good, bad = ask(client, "sentiment", texts=sent)["results"]
    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert 1 <= bad["rating"] < good["rating"] <= 5


def test_spans_have_offsets_of_characters(client: TestClient) -> None:
    text = "🛒 Acme cheddar cheese, 3 g"
    spans = ask(client, "entities", texts=[text, ""])["results"][0]["spans"]
    found = {span["label"]: span for span in spans}
    assert found["brand"]["text"] == "Acme"
    for span in spans:
        assert text[span["start"] : span["end"]] == span["text"]


def test_only_labels_that_are_asked_for_come_back(client: TestClient) -> None:
    text = "Acme cheddar cheese, 3 g"
    every = ask(client, "entities", texts=[text], labels=None)["results"][0]["spans"]
    assert {span["label"] for span in every} == {"brand", "kind"}
    kinds = ask(client, "entities", texts=[text], labels=["kind"])["results"][0]["spans"]
    assert kinds == [span for span in every if span["label"] == "kind"]
    problem = refuse(client, "entities", 422, texts=[text], labels=["kind", "knid"])
    (error,) = problem["errors"]
    assert (error["path"], error["value"]) == ("body.labels.1", "knid")
    assert "did you mean 'kind'? known are 'brand', 'kind'" in error["message"]


def test_texts_are_graded_and_placed_for_a_query(client: TestClient) -> None:
    results = ask(
        client, "relevance", query="oat milk", texts=["acme hand soap", "north oat milk", "x"]
    )["results"]
    assert sorted(result["position"] for result in results) == [1, 2, 3]
    assert results[1]["position"] == 1 and results[1]["grade"] > results[0]["grade"]
    assert results[1]["probability"] > results[0]["probability"] > 0
    assert (results[1]["relevant"], results[0]["relevant"]) == (True, False)


def test_a_model_of_an_earlier_version_answers_with_grades_alone(workspace: Workspace) -> None:
    service = Service(settle(args(workspace, "relevance")))
    model = service.text.bundles["relevance"].model
    assert isinstance(model, RelevanceModel)
    model.relevant = None
    service.warm_up()
    with TestClient(http_app(service)) as client:
        (result,) = ask(client, "relevance", query="oat milk", texts=["oat milk"])["results"]
    assert set(result) == {"grade", "position"}


def test_an_empty_text_is_answered(client: TestClient) -> None:
    assert ask(client, "classify", texts=["", "  "])["results"][0]["label"] is not None
    assert ask(client, "entities", texts=[""])["results"] == [{"spans": []}]


def test_all_of_the_largest_request_is_answered_in_order(client: TestClient) -> None:
    sent = ["acme oat milk", "royal rye bread"] * (MAX_TEXTS // 2)
    labels = [result["label"] for result in ask(client, "classify", texts=sent)["results"]]
    assert labels == ["dairy > milk", "bakery > bread"] * (MAX_TEXTS // 2)
    long = ask(client, "classify", texts=["oat milk " * (MAX_TEXT // 9)])
    assert long["results"][0]["label"] == "dairy > milk"


@pytest.mark.parametrize(
    ("task", "body", "path"),
    [
        ("classify", {"texts": []}, "body.texts"),
        ("classify", {}, "body.texts"),
        ("classify", {"texts": ["a"] * (MAX_TEXTS + 1)}, "body.texts"),
        ("entities", {"texts": ["a", "x" * (MAX_TEXT + 1)]}, "body.texts.1"),
        ("sentiment", {"texts": ["a", None]}, "body.texts.1"),
        ("sentiment", {"texts": ["a"], "text": "b"}, "body.text"),
        ("classify", {"texts": ["a"], "choices": 6}, "body.choices"),
        ("relevance", {"texts": ["a"]}, "body.query"),
        ("relevance", {"texts": ["a"], "query": "  "}, "body.query"),
        ("relevance", {"texts": ["a"], "query": "a\x00b"}, "body.query"),
        ("classify", {"texts": ["a", "b\x1bc"]}, "body.texts.1"),
        ("sentiment", {"texts": ["\x7f"]}, "body.texts.0"),
        ("entities", {"texts": ["a\x0bb"]}, "body.texts.0"),
        ("entities", {"texts": ["a"], "labels": []}, "body.labels"),
        ("entities", {"texts": ["a"], "labels": ["b"] * 257}, "body.labels"),
        ("entities", {"texts": ["a"], "labels": ["brand", None]}, "body.labels.1"),
        ("classify", {"texts": ["a"], "labels": ["b"]}, "body.labels"),
    ],
)
def test_what_is_wrong_is_named(
    client: TestClient, task: str, body: dict[str, Any], path: str
) -> None:
    problem = refuse(client, task, 422, **body)
    assert path in [error["path"] for error in problem["errors"]]


@pytest.mark.parametrize("task", TASKS)
def test_lines_and_tabs_are_text(client: TestClient, task: str) -> None:
    text = "Ice cream\tvanilla\r\n48 oz\n"
    body = {"query": "ice\tcream\nvanilla"} if task == "relevance" else {}
    ask(client, task, texts=[text], **body)


some = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@some
@given(
    task=st.sampled_from(TASKS),
    body=st.fixed_dictionaries(
        {},
        optional={
            "texts": st.lists(st.text(max_size=60), max_size=5) | values,
            "query": st.text(max_size=20) | values,
            "choices": st.integers(-1, 7) | values,
        },
    ),
)
def test_no_request_is_a_fault_of_the_server(client: TestClient, task: str, body: Any) -> None:
    response = client.post(
        f"/v1/text/{task}",
        content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (200, 422), response.text


def test_texts_of_many_characters_are_refused_in_words(client: TestClient) -> None:
    text = "acme cheddar cheese " * 450
    problem = refuse(client, "entities", 422, texts=[text] * (MOST_CHARACTERS // len(text) + 1))
    assert "send the texts in several calls" in problem["detail"]
    assert problem["errors"][0]["path"] == "body.texts"


def test_spans_of_many_texts_are_those_of_each(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ["Acme cheddar cheese, 3 g", "", "royal rye bread", "acme oat milk 7"] * 3
    whole = ask(client, "entities", texts=sent)["results"]
    monkeypatch.setattr(text_routes, "PART", 40)
    assert [len(part) for part in text_routes._parts(sent)] == [3, 3, 2, 3, 1]
    assert ask(client, "entities", texts=sent)["results"] == whole


def test_entities_give_up_after_their_deadline(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_routes, "PART", 1)
    monkeypatch.setattr(text_routes, "PATIENCE_S", -60.0)  # as if it was long over
    response = client.post(
        "/v1/text/entities",
        json={"texts": ["acme milk", "royal bread"]},
        headers={"X-Deadline-Ms": "50"},
    )
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    problem = response.json()
    assert problem["type"] == "urn:raysys:problem:too-late"
    assert problem["detail"].startswith("1 of 2 texts were read") and "X-Deadline-Ms" in str(
        problem
    )


@pytest.mark.parametrize("task", TASKS)
def test_nobody_waits_for_texts_for_ever(
    client: TestClient, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    submit = Workers.submit

    def spied(self: Workers, work: Any, priority: int = 1, until: float = math.inf) -> Any:
        told.append(until - time.perf_counter())
        return submit(self, work, priority, until)

    monkeypatch.setattr(Workers, "submit", spied)
    body = {"texts": ["a"], **({"query": "a"} if task == "relevance" else {})}
    ask(client, task, **body)
    sent = client.post(f"/v1/text/{task}", json=body, headers={"X-Deadline-Ms": "60000"})
    assert sent.status_code == 200
    assert 0 < told[0] <= 10 < 30 < told[1] <= 60
    wrong = client.post(f"/v1/text/{task}", json=body, headers={"X-Deadline-Ms": "0"})
    assert wrong.status_code == 422


def test_a_deployment_without_the_task_says_how_to_add_one(workspace: Workspace) -> None:
    service = Service(settle(args(workspace, "entities")))
    service.warm_up()
    client = TestClient(http_app(service), raise_server_exceptions=False)
    problem = refuse(client, "classify", 404, texts=["a"])
    assert problem["type"] == "urn:raysys:problem:no-such-task"
    assert "raysys text fit" in problem["detail"] and "text-classify" in problem["detail"]
    ready = client.get("/readyz").json()
    assert ready["bundle"] is None
    assert ready["text"] == {"entities": Registry(workspace.registry).resolve("text-entities")}
    for call, body in (
        ("recommend", {"user_id": "u"}),
        ("search", {"query": "milk"}),
        ("rank", {"query": "milk", "item_ids": ["1"]}),
    ):
        response = client.post(f"/v1/{call}", json=body)
        assert response.status_code == 404
        assert response.json()["type"] == "urn:raysys:problem:no-ranking"


def test_ranking_and_texts_live_in_one_deployment(
    registry: Registry, workspace: Workspace, tmp_path: Path
) -> None:
    """One registry with both kinds of bundle: text bundles are copied beside the champion."""
    source = Registry(workspace.registry).path("text-classify")
    target = registry.bundles / source.name
    if not target.exists():
        target.symlink_to(source)
    content = {
        "registry": str(registry.root),
        "clock": "log_end",
        "text": {"classify": source.name},
    }
    service = Service(settle(parse_settings(ServeArgs, content, where="test")))
    service.warm_up()
    client = TestClient(http_app(service), raise_server_exceptions=False)
    assert client.post("/v1/recommend", json={"user_id": "u1", "k": 3}).status_code == 200
    assert ask(client, "classify", texts=["acme oat milk"])["bundle"] == source.name
    ready = client.get("/readyz").json()
    assert ready["bundle"] == registry.resolve("champion") and ready["items"] > 0
    target.unlink()


def test_a_pointer_is_pinned_when_deployed(workspace: Workspace) -> None:
    settled = settle(args(workspace, "classify"))
    bundle = Registry(workspace.registry).resolve("text-classify")
    assert settled.pinned_text == {"classify": bundle} and settled.pinned is None
    config = {
        "http_options": {"host": "127.0.0.1"},
        "applications": [
            {
                "name": "raysys",
                "import_path": "raysys.serving.app:build",
                "args": args(workspace, "classify").model_dump(mode="json"),
            }
        ],
    }
    planned, ranking = plan(parse_settings(DeploySettings, config, where="x.yaml"), workspace)
    assert ranking == ""
    assert planned["applications"][0]["args"]["pinned_text"] == {"classify": bundle}
    assert yaml.safe_dump(planned)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"text": {"entities": "text-classify"}}, "was fitted for classify"),
        ({"text": {"classify": "text-nothing"}}, "no bundle 'text-nothing'"),
        ({"text": {"classfy": "text-classify"}}, "did you mean 'classify'"),
        ({"bundle": None}, "a bundle that ranks, or text tasks"),
        ({"bundle": "text-classify"}, "of a text task and ranks nothing"),
    ],
)
def test_what_cannot_be_served_is_refused(
    workspace: Workspace, content: dict[str, Any], said: str
) -> None:
    content = {"registry": str(workspace.registry), "bundle": None, **content}
    with pytest.raises(UserError, match=said):
        Service(settle(parse_settings(ServeArgs, content, where="test")))


def test_a_damaged_bundle_is_not_served(workspace: Workspace, tmp_path: Path) -> None:
    folder = Registry(workspace.registry).path("text-sentiment")
    file = next(path for path in (folder / "model").iterdir() if path.suffix == ".json")
    content = file.read_bytes()
    file.chmod(0o644)
    try:
        file.write_bytes(content + b" ")
        with pytest.raises(UserError, match="changed after the bundle was published"):
            Service(settle(args(workspace, "sentiment")))
    finally:
        file.write_bytes(content)


def test_the_api_page_knows_the_routes(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {f"/v1/text/{task}" for task in TASKS} <= set(paths)
