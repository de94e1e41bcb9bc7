"""`raysys score`: every row of every file is answered or put aside, once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from raysys.cli import app
from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.app import http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from raysys.stages import score, score_tasks
from raysys.stages import text as fitting
from raysys.stages.score import ScoreSettings
from raysys.storage import Workspace, read_manifest
from tests.stages import texts

LINEAR = {"tfidf_classifier": {"costs": [3.0]}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("score")
    found = Workspace(folder / "ws")
    path = texts.write_titles(folder / "titles.csv", 150)
    fitting.run(texts.settings_of("classify", path, LINEAR), found)
    return found


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Files that agree on the column of the text and on nothing else."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text(
        "title,label\nacme oat milk,mine\n,\nroyal rye bread,mine\nx,y,z\n"
    )
    rows = [{"title": "north cola soda", "n": 7}, {"title": " "}, {"title": "hand soap"}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    pl.DataFrame({"title": [f"oat milk {n}" for n in range(70)], "n": range(70)}).write_parquet(
        folder / "c.parquet", row_group_size=20
    )
    return folder


class InProcess:
    """What `score` asks of Ray Data, here and now, so that most tests need no cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> None:
        self.scored: list[str] = []

        def on_ray(job: Any, settings: Any, done: Any, states: Any) -> int:
            reading = score_tasks.Reading(job)
            scoring = type("Scoring", (score_tasks.Scoring,), {"job": job})()
            rows = 0
            for number in list(range(len(job.parts)))[:most]:
                arrived = score._Arrived()
                pieces = [pa.table(piece) for piece in reading(pa.table({"number": [number]}))]
                for piece in reversed(pieces):  # in any order
                    for told in scoring(piece).to_pylist():
                        arrived.add(told)
                        rows += told["rows"]
                assert arrived.complete
                part = job.parts[number]
                key = score_tasks.key_of(part)
                done[key] = score._settle(job.output, part, arrived, states[key])
                self.scored.append(part.label)
            if most is not None:
                raise KeyboardInterrupt
            return rows

        monkeypatch.setattr(score, "_on_ray", on_ray)
        monkeypatch.setattr(score, "ray_session", contextlib.nullcontext)


def settings_of(inputs: Path, output: Path, **more: Any) -> ScoreSettings:
    content = {
        "bundle": "text-classify", "paths": f"{inputs}/*", "output": str(output), **more
    }  # fmt: skip
    return parse_settings(ScoreSettings, content, where="test")


def predictions(output: Path) -> pl.DataFrame:
    found = [pl.read_parquet(path) for path in sorted((output / "predictions").glob("*.parquet"))]
    return pl.concat(found, how="diagonal_relaxed")


def test_every_row_is_answered_beside_its_own_columns_or_put_aside(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    manifest = score.run(settings_of(inputs, tmp_path / "out", piece=16), workspace)
    assert manifest.counts == {
        "files": 3, "rows": 74, "aside": 4, "aside.empty_text": 2, "aside.line_does_not_parse": 2
    }  # fmt: skip
    said = predictions(tmp_path / "out")
    assert said.height == 74 and said.select("_file", "_row").is_unique().all()
    milk = said.filter((pl.col("_file") == "a.csv") & (pl.col("_row") == 1)).row(0, named=True)
    assert milk["label"] == "mine" and milk["predicted_label"] == "dairy > milk"
    assert milk["predicted_choices"][0]["label"] == "dairy > milk"
    numbers = said.filter(pl.col("_file") == "c.parquet")["n"].cast(pl.Int64)
    assert sorted(numbers) == list(range(70))
    aside = pl.concat(map(pl.read_parquet, (tmp_path / "out" / "quarantine").glob("*.parquet")))
    assert sorted(aside["reason"]) == ["empty_text"] * 2 + ["line_does_not_parse"] * 2
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.long
def test_relevance_has_a_probability_beside_the_grade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Workspace(tmp_path / "ws")
    path = texts.write_judgements(tmp_path / "j.csv")
    trees = {"relevance_trees": {"vectors": None}}
    fitting.run(texts.settings_of("relevance", path, trees), found)
    InProcess(monkeypatch)
    asked = tmp_path / "in"
    asked.mkdir()
    (asked / "a.csv").write_text("query,title\noat milk,north oat milk\noat milk,acme hand soap\n")
    score.run(settings_of(asked, tmp_path / "out", bundle="text-relevance"), found)
    said = predictions(tmp_path / "out").sort("_row")
    good, bad = said.rows(named=True)
    assert good["predicted_probability"] > bad["predicted_probability"]
    assert (good["predicted_relevant"], bad["predicted_relevant"]) == (True, False)
    assert said["predicted_probability"].dtype == pl.Float32


def test_a_run_that_was_cut_off_goes_on_and_new_or_changed_files_are_scored(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = settings_of(inputs, tmp_path / "out"), tmp_path / "out"
    InProcess(monkeypatch, most=2)
    with pytest.raises(KeyboardInterrupt):
        score.run(settings, workspace)
    assert not (output / "manifest.json").exists()
    rest = InProcess(monkeypatch)
    first = score.run(settings, workspace)
    assert rest.scored == ["c.parquet"] and first.counts["rows"] == 74
    assert score.run(settings, workspace).created == first.created
    (inputs / "d.csv").write_text("title\nred apple\n")
    (inputs / "a.csv").write_text("title\nred apple\ngreen apple\nplum tomato\n")
    again = InProcess(monkeypatch)
    second = score.run(settings, workspace)
    assert sorted(again.scored) == ["a.csv", "d.csv"]
    assert second.counts["rows"] == 74 - 2 + 3 + 1 == predictions(output).height


def test_a_run_that_was_cut_off_before_its_manifest_is_told_by_the_next(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = settings_of(inputs, tmp_path / "out"), tmp_path / "out"
    InProcess(monkeypatch)
    first = score.run(settings, workspace)
    (inputs / "d.csv").write_text("title\nred apple\n")
    InProcess(monkeypatch, most=2)  # cut off when all is settled
    with pytest.raises(KeyboardInterrupt):
        score.run(settings, workspace)
    rest = InProcess(monkeypatch)
    second = score.run(settings, workspace)
    assert not rest.scored
    assert second.counts["rows"] == first.counts["rows"] + 1 == predictions(output).height
    assert score.run(settings, workspace).created == read_manifest(output).created
    assert read_manifest(output).inputs == second.inputs


def test_rows_are_there_once_however_files_come_and_are_cut(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    data, output = tmp_path / "data", tmp_path / "out"
    for year in ("2024", "2025"):
        (data / year).mkdir(parents=True)
    (data / "2024" / "x.csv").write_text("title\nred apple\nplum tomato\n")
    settings = settings_of(data, output, paths=f"{data}/**/*.csv")
    score.run(settings, workspace)
    (data / "2025" / "x.csv").write_text("title\noat milk\n")  # the shared folder is another now
    counts = score.run(settings, workspace).counts
    assert counts["rows"] == predictions(output).height == 3
    assert predictions(output).select("_file", "_row").is_unique().all()
    # another folder with a file of the same name takes nothing away
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.csv").write_text("title\ngreen tea\n")
    score.run(settings_of(data, output, paths=f"{tmp_path}/more/*.csv"), workspace)
    assert predictions(output).height == 4
    # a Parquet file that is cut into fewer parts than before
    monkeypatch.setattr(score, "PIECE_ROWS", 10)
    frame = pl.DataFrame({"title": [f"apple {n}" for n in range(40)]})
    parquet = settings_of(data, tmp_path / "cut", paths=f"{data}/p.parquet")
    for size in (10, 40):
        frame.write_parquet(data / "p.parquet", row_group_size=size)
        os.utime(data / "p.parquet", (size, size))
        assert score.run(parquet, workspace).counts["rows"] == 40
        assert predictions(tmp_path / "cut").height == 40


def test_another_way_of_reading_is_another_outcome(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    (tmp_path / "in.csv").write_bytes("title\ncr\xe8me br\xfbl\xe9e\n".encode("latin-1"))
    paths = {"paths": f"{tmp_path}/in.csv"}
    score.run(settings_of(tmp_path, tmp_path / "out", **paths), workspace)
    right = settings_of(tmp_path, tmp_path / "out", **paths, encoding="latin-1")
    with pytest.raises(UserError, match="predictions of another encoding"):
        score.run(right, workspace)
    score.run(right, workspace, force=True)
    assert predictions(tmp_path / "out")["title"].to_list() == ["crème brûlée"]


def test_predictions_can_be_scored_again(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    score.run(settings_of(inputs, tmp_path / "one"), workspace)
    again = settings_of(inputs, tmp_path / "two", paths=f"{tmp_path}/one/predictions/*.parquet")
    assert score.run(again, workspace).counts["rows"] == 74


def test_pairs_are_graded_and_one_without_a_query_goes_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    path = texts.write_judgements(tmp_path / "judged.csv")
    ws = Workspace(tmp_path / "ws")
    fitting.run(texts.settings_of("relevance", path, {"relevance_trees": {"vectors": None}}), ws)
    (tmp_path / "in.csv").write_text(
        "search,title\noat milk,acme oat milk\n,acme oat milk\noat milk,hand soap\n"
    )
    settings = settings_of(
        tmp_path, tmp_path / "out", bundle="text-relevance", paths=str(tmp_path / "in.csv"),
        query="search",
    )  # fmt: skip
    counts = score.run(settings, ws).counts
    assert counts["rows"] == 2 and counts["aside.empty_query"] == 1
    good, bad = predictions(tmp_path / "out")["predicted_grade"]
    assert good > bad


def test_spans_of_the_labels_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    path = texts.write_attributes(tmp_path / "attributes.jsonl", 120)
    ws, output = Workspace(tmp_path / "ws"), tmp_path / "out"
    fitting.run(texts.settings_of("entities", path, {"gazetteer_tagger": {}}), ws)
    (tmp_path / "in.csv").write_text('title\n"Acme cheddar cheese, 3 g"\n')

    def asked(*labels: str) -> ScoreSettings:
        told = {"bundle": "text-entities", "paths": str(tmp_path / "in.csv"), "labels": labels}
        return settings_of(tmp_path, output, **told)

    def found() -> list[str]:
        return [span["label"] for span in predictions(output)["predicted_spans"][0]]

    with pytest.raises(UserError, match="labels: unknown label 'knid'"):
        score.run(asked("knid"), ws)
    assert not output.exists()
    score.run(asked("kind"), ws)
    assert found() == ["kind"]
    with pytest.raises(UserError, match="predictions of another labels"):
        score.run(asked(), ws)
    score.run(asked(), ws, force=True)
    assert found() == ["brand", "kind"]


def test_a_folder_of_other_things_is_left_alone(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other things"):
        score.run(settings_of(inputs, tmp_path / "mine"), workspace, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    output = tmp_path / "out"
    score.run(settings_of(inputs, output), workspace)
    other = settings_of(inputs, output, text=["title", "title"])
    with pytest.raises(UserError, match="predictions of another text"):
        score.run(other, workspace)
    score.run(other, workspace, force=True)
    assert predictions(output).height == 74


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bundle": "text-moods"}, "no bundle 'text-moods'"),
        ({"text": ["headline"]}, "no column 'headline'"),
        ({"paths": "/nowhere/*.csv"}, "no such file"),
        ({"piece": 0}, "piece: 0"),
        ({"labels": ["brand"]}, "labels are asked for of entities, not of classify"),
    ],
)
def test_what_cannot_be_scored_is_said(
    workspace: Workspace, inputs: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        score.run(settings_of(inputs, tmp_path / "out", **more), workspace)


def test_the_command_says_which_option_lacks() -> None:
    done = CliRunner().invoke(app, ["score", "--bundle", "text-classify"])
    assert done.exit_code == 2 and "--input" in done.output


@pytest.fixture
def cluster() -> Iterator[None]:
    with ray_session():
        yield


@pytest.mark.slow
def test_from_files_to_an_endpoint(tmp_path: Path, inputs: Path, cluster: None) -> None:
    """The commands as a person types them: fit, score twice, then ask over HTTP."""
    path = texts.write_titles(tmp_path / "titles.csv", 150)
    content = {
        "task": "classify",
        "sources": {
            "kind": "files",
            "paths": str(path),
            "text": "title",
            "label": ["department", "category"],
        },
        "learners": LINEAR,
    }
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(content))
    ws = tmp_path / "ws"
    command = [sys.executable, "-m", "raysys", "text", "fit"]
    command += ["--config", str(tmp_path / "text.yaml"), "--workspace", str(ws)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "macro F1" in done.stderr and "published: text-classify" in done.stderr
    options = ["--bundle", "text-classify", "-i", f"{inputs}/*", "-o", str(tmp_path / "out")]
    scored = CliRunner().invoke(app, ["score", *options, "--workspace", str(ws)])
    assert scored.exit_code == 0, scored.output
    manifest = read_manifest(tmp_path / "out")
    assert manifest.counts["rows"] == 74 and manifest.counts["aside"] == 4
    (inputs / "d.csv").write_text("title\nred apple\n")
    assert CliRunner().invoke(app, ["score", *options, "--workspace", str(ws)]).exit_code == 0
    said = predictions(tmp_path / "out")
    assert said.height == 75
    args = ServeArgs.model_validate(
        {"registry": str(ws / "registry"), "bundle": None, "text": {"classify": "text-classify"}}
    )
    service = Service(settle(args))
    service.warm_up()
    asked = said.filter(pl.col("_file") != "c.parquet")
    answer = TestClient(http_app(service)).post(
        "/v1/text/classify", json={"texts": asked["title"].to_list()}
    )
    results = answer.json()["results"]
    assert [result["label"] for result in results] == asked["predicted_label"].to_list()
    assert answer.json()["bundle"] == Registry(ws / "registry").resolve("text-classify")


@pytest.mark.parametrize(
    ("name", "content", "texts_of"),
    [
        ("lines.txt", "acme oat milk\n\nrye bread, 3 g\n", ["acme oat milk", "rye bread, 3 g"]),
        ("tabs.csv", "id\tproduct_title\n1\tacme, oat milk\n2\tb\n", ["acme, oat milk", "b"]),
        ("gb.csv", "title;n\n燕麦牛奶;1\n黑麦面包;2\n".encode("gbk"), ["燕麦牛奶", "黑麦面包"]),
        ("ft.txt", "__label__x acme oat milk\nhand soap\n" + "__label__y a\n" * 18, None),
        ("tokens.conll", "acme B-X\nmilk O\n\nsoap O\n", ["acme milk", "soap"]),
        ("rows.json", json.dumps([{"title": "milk"}, {"title": "soap"}]), ["milk", "soap"]),
    ],
)  # fmt: skip
def test_files_in_other_formats_are_scored(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | bytes,
    texts_of: list[str] | None,
) -> None:
    InProcess(monkeypatch)
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    counts = score.run(settings_of(tmp_path, tmp_path / "out", paths=str(path)), workspace).counts
    said = predictions(tmp_path / "out")
    assert counts["aside"] == 0 and counts["rows"] == said.height
    assert said["predicted_choices"].null_count() == 0
    if texts_of is None:
        assert said["text"].to_list()[:2] == ["acme oat milk", "hand soap"]
        return
    column = next(c for c in ("title", "product_title", "text") if c in said.columns)
    assert said[column].to_list() == texts_of


def test_a_column_that_is_not_there_is_said_with_its_option(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("titel,colour\na,b\n")
    asked = settings_of(tmp_path, tmp_path / "out", paths=f"{tmp_path}/in.csv")
    with pytest.raises(UserError, match=r"no column 'title'(.|\n)*did you mean 'titel'\?.*--text"):
        score.run(asked, workspace)


def test_options_say_how_files_are_written(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    (tmp_path / "in.csv").write_bytes("milk, of oat\nsoupe à l'oignon\n".encode("latin-1"))
    command = ["score", "--bundle", "text-classify", "--input", f"{tmp_path}/in.csv"]
    command += ["--output", f"{tmp_path}/out", "--workspace", str(workspace.root), "--quiet"]
    done = CliRunner().invoke(app, [*command, "--format", "lines", "--encoding", "latin-1"])
    assert done.exit_code == 0, done.output
    assert predictions(tmp_path / "out")["text"].to_list() == ["milk, of oat", "soupe à l'oignon"]


def test_a_folder_begun_before_files_told_their_delimiter_is_gone_on_with(
    workspace: Workspace, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InProcess(monkeypatch)
    score.run(settings_of(inputs, tmp_path / "out"), workspace)
    plan = json.loads((tmp_path / "out" / ".done" / "plan.json").read_text())
    assert {**plan, "bundle": None} == {
        "bundle": None, "text": ["title"], "join": " ", "query": None,
        "format": None, "header": None, "delimiter": ",", "encoding": "utf-8",
    }  # fmt: skip
