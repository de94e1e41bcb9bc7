"""`raysys score`: a fitted text task over any number of files, on all of a cluster.

Tasks read the files piece by piece, actors hold the model and write what it says: no process holds
more than some pieces. A piece travels as Arrow's own bytes, as files need not agree on columns.
What is done of a file counts once all of it is: a run that was cut off goes on with the others.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from raysys.cluster import ray_session
from raysys.config import StageSettings
from raysys.datasets import files
from raysys.datasets.files import Part
from raysys.datasets.labelled import QUARANTINE, blocks, joined, unsayable
from raysys.datasets.mapping import Files, TableFiles
from raysys.errors import UserError
from raysys.progress import task
from raysys.registry import TEXT, TEXT_FILE, Registry, TextBundle
from raysys.storage import MANIFEST, Manifest, Workspace, digest, read_manifest, write_atomic

PIECE_ROWS: Final = 65_536  # of a large Parquet file that are one file's worth of work
_BLOCK_BYTES: Final = 8 << 20  # that travel at once: small, so that several actors get some
_DONE, _WORK = ".done", ".work"


class ScoreSettings(StageSettings, Files):
    """What `raysys score --config` takes; options of the command go over it.

    Attributes:
        bundle: a pointer such as `text-sentiment`, or a bundle's id.
        output: the folder to write into.
        text: column of the text, or several, joined; none: those that the bundle was fitted on.
        join: between texts of several columns; null: as when fitted.
        query: column of the query, for relevance.
        piece: rows that a model is given at once.
        workers: processes that hold a model; null: as many as the cluster has room for.
        cpus_per_worker: of each.
        gpus_per_worker: of each; may be a fraction.
    """

    kind_name: ClassVar[str] = "score"

    bundle: str
    output: str
    text: tuple[str, ...] = ()
    join: str | None = None
    query: str = "query"
    piece: int = Field(2048, ge=1, le=1_000_000)
    workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)

    @field_validator("text", mode="before")
    @classmethod
    def _a_list(cls, text: object) -> object:
        return (text,) if isinstance(text, str) else text


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        parts: the files to read, or pieces of large ones.
        table: which of their columns are text and query; all are kept.
        text: columns of the text.
        join: between them.
        piece: rows that a model is given at once.
        bundle: the bundle's folder.
        output: where predictions go.
    """

    parts: tuple[Part, ...]
    table: TableFiles
    text: tuple[str, ...]
    join: str
    piece: int
    bundle: Path
    output: Path


def run(settings: ScoreSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Predict for every row of the files; see `Job` and the module.

    Raises:
        UserError: no such bundle or files, a column that no file has, or a folder that holds
            something else.
    """
    began = time.monotonic()
    registry = Registry(workspace.registry)
    bundle_id = registry.resolve(settings.bundle)
    folder = registry.path(bundle_id)
    if registry.verify(bundle_id).surface != TEXT:
        TextBundle.load(folder)  # says what is wrong
    content = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
    text = settings.text or tuple(content["columns"])
    join = content["join"] if settings.join is None else settings.join
    columns = {f"text.{at}": name for at, name in enumerate(text)}
    if content["task"] == "relevance":
        columns["query"] = settings.query
    where = {name: getattr(settings, name) for name in Files.model_fields if name != "optional"}
    table = TableFiles(**where, columns=columns, keys=("text.0",), everything=True)
    parts = [piece for part in files.find(table) for piece in files.split(part, PIECE_ROWS)]
    output = Path(settings.output).absolute()
    plan = {"bundle": bundle_id, "text": text, "join": join, "query": columns.get("query")}
    done = _prepare(output, plan, force)
    states = {_key(part): _fingerprint(part) for part in parts}
    todo = tuple(p for p in parts if done.get(_key(p), {}).get("fingerprint") != states[_key(p)])
    manifest = Manifest(
        stage="score",
        inputs={**states, "bundle": bundle_id},
        settings=settings.model_dump(mode="json"),
    )
    if not todo and (output / MANIFEST).is_file():
        return read_manifest(output)
    for part in todo:  # a file that has changed since
        for name in done.pop(_key(part), {}).get("files", ()):
            (output / name).unlink(missing_ok=True)
    job = Job(todo, table, text, join, settings.piece, folder, output)
    rows = 0
    if todo:
        with ray_session():
            rows = _on_ray(job, settings, done, states)
    shutil.rmtree(output / _WORK, ignore_errors=True)
    aside: Counter[str] = Counter()
    for told in done.values():
        aside.update(told["aside"])
    manifest.counts = {
        "files": len({told["source"] for told in done.values()}),
        "rows": sum(told["rows"] for told in done.values()),
        "aside": sum(aside.values()),
        **{f"aside.{reason}": count for reason, count in sorted(aside.items())},
    }
    manifest.seconds = round(time.monotonic() - began, 2)
    per_second = round(rows / max(manifest.seconds, 1e-9), 1)
    manifest.figures = {"task": content["task"], "bundle": bundle_id, "rows_per_s": per_second}
    manifest.write(output)
    return manifest


def folder_of(settings: ScoreSettings, workspace: Workspace) -> Path:
    """Where the predictions lie."""
    return Path(settings.output).absolute()


def _prepare(output: Path, plan: dict[str, Any], force: bool) -> dict[str, dict[str, Any]]:
    """The output folder, ready; and what it holds already, by key of the file.

    Raises:
        UserError: it holds other things.
    """
    plan_file = output / _DONE / "plan.json"
    plan = json.loads(json.dumps(plan))
    if output.exists() and any(output.iterdir()):
        if not plan_file.is_file():
            raise UserError(
                "the folder holds other things", where=str(output), mend="give a new --output"
            )
        before = json.loads(plan_file.read_text(encoding="utf-8"))
        if before != plan and not force:
            changed = ", ".join(name for name in plan if before.get(name) != plan[name])
            raise UserError(
                f"the folder holds predictions of another {changed}",
                where=str(output),
                mend="give another --output, or --force to write them anew",
            )
        if force:
            for leftover in (_DONE, _WORK, "predictions", "quarantine", MANIFEST):
                path = output / leftover
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
    for name in ("predictions", _DONE):
        (output / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / _WORK, ignore_errors=True)
    (output / _WORK).mkdir()
    write_atomic(plan_file, json.dumps(plan, indent=1) + "\n")
    found = sorted((output / _DONE).glob("part-*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def _on_ray(
    job: Job,
    settings: ScoreSettings,
    done: dict[str, dict[str, Any]],
    states: dict[str, str],
) -> int:
    """Score all parts of the job; returns how many rows."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    there = ray.cluster_resources()
    cpus = there.get("CPU", 1.0)
    # readers mostly wait: they must never keep the last model from its CPU
    own = min(settings.cpus_per_worker, max(0.5, cpus - 0.5))
    fits = int(cpus / own) - 1 if cpus >= 2 * own else 1
    if settings.gpus_per_worker:
        fits = int(there.get("GPU", 0) / settings.gpus_per_worker)
        if fits < 1:
            raise UserError(
                f"a worker wants {settings.gpus_per_worker:g} GPU, the cluster has "
                f"{there.get('GPU', 0):g}",
                where="gpus_per_worker",
                mend="leave it out: models run on CPUs too",
            )
    workers = settings.workers or max(1, min(fits, 64))
    numbers = ray.data.from_items(
        [{"number": number} for number in range(len(job.parts))],
        override_num_blocks=len(job.parts),
    )
    numbers.context.target_max_block_size = _BLOCK_BYTES
    told = numbers.map_batches(
        _Reading(job),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0.25,
        compute=TaskPoolStrategy(size=max(1, int(cpus / 2))),
    ).map_batches(
        # as an attribute of the class: Ray warns of arguments that lie in its object store
        type("Scoring", (_Scoring,), {"job": job}),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=own,
        num_gpus=settings.gpus_per_worker or None,
        compute=ActorPoolStrategy(min_size=1, max_size=workers),
    )
    waiting = {number: _Arrived() for number in range(len(job.parts))}
    known = [part.rows for part in job.parts]
    total = sum(rows for rows in known if rows is not None) if None not in known else None
    rows = ended = 0
    with task("score: rows", total) as scoring:
        for batch in told.iter_batches(batch_size=None, batch_format="pyarrow"):
            for piece in batch.to_pylist():
                arrived = waiting[piece["number"]]
                arrived.add(piece)
                rows += piece["rows"]
                scoring.advance(piece["rows"] + piece["n_aside"])
                if arrived.complete:
                    part = job.parts[piece["number"]]
                    key = _key(part)
                    done[key] = _settle(job.output, part, arrived, states[key])
                    ended += 1
        scoring.note = f"{ended:,} files or parts of files by up to {workers} models"
    return rows


@dataclass
class _Arrived:
    """What came back of one part so far; pieces arrive in any order."""

    pieces: dict[int, dict[str, Any]] = field(default_factory=dict)
    last: int | None = None

    def add(self, piece: dict[str, Any]) -> None:
        self.pieces[piece["piece"]] = piece
        if piece["last"]:
            self.last = piece["piece"]

    @property
    def complete(self) -> bool:
        return self.last is not None and len(self.pieces) == self.last + 1


def _settle(output: Path, part: Part, arrived: _Arrived, fingerprint: str) -> dict[str, Any]:
    """Put a whole part's files in their place, then note that it is done."""
    written: list[str] = []
    aside: Counter[str] = Counter()
    for _, piece in sorted(arrived.pieces.items()):
        for name in json.loads(piece["files"]):
            (output / name).parent.mkdir(exist_ok=True)
            (output / _WORK / Path(name).name).replace(output / name)
            written.append(name)
        aside.update(json.loads(piece["aside"]))
    told = {
        "source": part.label,
        "fingerprint": fingerprint,
        "rows": sum(piece["rows"] for piece in arrived.pieces.values()),
        "aside": dict(aside),
        "files": written,
    }
    write_atomic(output / _DONE / f"{_key(part)}.json", json.dumps(told) + "\n")
    return told


class _Reading:
    """Reads parts; yields one row a piece."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["number"].to_pylist():
            for at, (rows, aside, last) in enumerate(_looking_ahead(self._pieces(number))):
                yield pa.table(
                    {
                        "number": [number],
                        "piece": [at],
                        "last": [last],
                        "rows": pa.array([_packed(rows)], pa.large_binary()),
                        "aside": pa.array([_packed(aside)], pa.large_binary()),
                    }
                )

    def _pieces(self, number: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        job = self.job
        part = job.parts[number]
        for rows, lost in blocks(job.table, part):
            if not rows.height:
                yield rows, lost
                continue
            text = rows.select(joined(rows, job.text, job.join).alias("_text"))["_text"]
            bad = pl.select(unsayable(pl.lit(text))).to_series()
            reasons = pl.Series("empty_text", ["empty_text"]).new_from_index(0, rows.height)
            if "query" in job.table.columns:
                query = rows[job.table.columns["query"]].cast(pl.String)
                without = pl.select(unsayable(pl.lit(query))).to_series() & ~bad
                reasons = reasons.zip_with(~without, pl.Series(["empty_query"]))
                bad = bad | without
            rows = rows.with_columns(text.alias("_text"), pl.lit(part.label).alias("_file"))
            aside = rows.filter(bad).select(
                reasons.filter(bad).alias("reason"),
                pl.col("_file").alias("source"),
                pl.col("_row").alias("row"),
                pl.lit("").alias("raw"),
            )
            lost = pl.concat([lost, aside])
            rows = rows.filter(~bad)
            for start in range(0, max(1, rows.height), job.piece):
                yield rows.slice(start, job.piece), lost if not start else lost.clear()


class _Scoring:
    """Holds the model; writes what it says of each piece."""

    job: Job

    def __init__(self) -> None:
        self.bundle = TextBundle.load(self.job.bundle)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._score(piece) for piece in batch.to_pylist()])

    def _score(self, piece: dict[str, Any]) -> dict[str, Any]:
        job = self.job
        part = job.parts[piece["number"]]
        name = f"{_stem(part)}-{piece['piece']:05d}.parquet"
        rows, aside = _unpacked(piece["rows"]), _unpacked(piece["aside"])
        work, written = job.output / _WORK, []
        if rows.height:
            self._predicted(rows).write_parquet(work / name)
            written.append(f"predictions/{name}")
        if aside.height:
            aside.write_parquet(work / f"aside-{name}")
            written.append(f"quarantine/aside-{name}")
        return {
            "number": piece["number"],
            "piece": piece["piece"],
            "last": piece["last"],
            "rows": rows.height,
            "n_aside": aside.height,
            "aside": json.dumps(dict(Counter(aside["reason"].to_list()))),
            "files": json.dumps(written),
        }

    def _predicted(self, rows: pl.DataFrame) -> pl.DataFrame:
        columns = {"text": rows["_text"].to_arrow().cast(pa.string())}
        if self.bundle.task == "relevance":
            query = rows[self.job.table.columns["query"]].cast(pl.String)
            columns["query"] = query.to_arrow().cast(pa.string())
        said = pl.from_arrow(self.bundle.model.predict(pa.table(columns)))
        assert isinstance(said, pl.DataFrame)
        said = said.rename({name: f"predicted_{name}" for name in said.columns})
        return pl.concat([rows.drop("_text"), said], how="horizontal")


def _looking_ahead(
    pieces: Iterator[tuple[pl.DataFrame, pl.DataFrame]],
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame, bool]]:
    """Each piece, and whether it is the last; at least one, as a file may say nothing."""
    empty = pl.DataFrame(schema=QUARANTINE)
    held = next(pieces, (pl.DataFrame(), empty))
    for piece in pieces:
        yield *held, False
        held = piece
    yield *held, True


def _packed(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_ipc(buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(content))


def _key(part: Part) -> str:
    """Names a part among those of all runs into one folder."""
    return f"part-{digest([part.label, part.first_row])}"


def _stem(part: Part) -> str:
    """Begins the names of a part's files: readable, and its own."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(part.label).name.split(".")[0])[:40]
    return f"{readable}-{_key(part)[5:13]}"


def _fingerprint(part: Part) -> str:
    return digest([files.fingerprint(part), part.row_groups])
