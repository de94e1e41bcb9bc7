"""`raysys score`: a fitted text task over any number of files, on all of a cluster.

Tasks read the files piece by piece, actors hold the model and write what it says: no process holds
more than some pieces. A piece travels as Arrow's own bytes, as files need not agree on columns.
What is done of a file counts once all of it is: a run that was cut off goes on with the others.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field, field_validator

from raysys.cluster import quieten_ray_data, ray_session
from raysys.config import StageSettings
from raysys.datasets import files
from raysys.datasets.files import Part
from raysys.datasets.labelled_names import text_of
from raysys.datasets.mapping import AnyTable, TableFiles
from raysys.errors import UserError
from raysys.learners.text_protocol import check_labels
from raysys.progress import task
from raysys.registry import TEXT, TEXT_FILE, Registry, TextBundle
from raysys.stages.score_tasks import WORK, Job, Reading, Scoring, fingerprint_of, key_of
from raysys.storage import MANIFEST, Manifest, Workspace, on_disk, read_manifest, write_atomic

log = logging.getLogger("raysys")

PIECE_ROWS: Final = 65_536  # of a large Parquet file that are one file's worth of work
_BLOCK_BYTES: Final = 8 << 20  # that travel at once: small, so that several actors get some
_DONE = ".done"
_TOLD: Final = {"delimiter": ",", "encoding": "utf-8", "quoted": None}


class ScoreSettings(StageSettings, AnyTable):
    """What `raysys score --config` takes; options of the command go over it.

    Attributes:
        bundle: a pointer such as `text-sentiment`, or a bundle's id.
        output: the folder to write into.
        text: column of the text, or several, joined; none: those that the bundle was fitted on,
            or, where no file has these, the one whose name says that it is the text.
        join: between texts of several columns; null: as when fitted.
        query: column of the query, for relevance.
        labels: of entities, that are asked for; none: all that were learned.
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
    labels: tuple[str, ...] = ()
    piece: int = Field(2048, ge=1, le=1_000_000)
    workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)

    @field_validator("text", mode="before")
    @classmethod
    def _a_list(cls, text: object) -> object:
        return (text,) if isinstance(text, str) else text


def run(settings: ScoreSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Predict for every row of the files; see `Job` and the module.

    Raises:
        UserError: no such bundle or files, a column that no file has, a label that was not
            learned, or an output that holds something else or is no folder of this machine.
    """
    began = time.monotonic()
    output = on_disk(Path(settings.output))
    registry = Registry(workspace.registry)
    bundle_id = registry.resolve(settings.bundle)
    folder = registry.path(bundle_id)
    if registry.verify(bundle_id).surface != TEXT:
        TextBundle.load(folder)  # says what is wrong
    content = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
    join = content["join"] if settings.join is None else settings.join
    where = {name: getattr(settings, name) for name in AnyTable.model_fields if name != "optional"}
    table = _table(settings, content, where)
    text = tuple(name for key, name in table.columns.items() if key != "query")
    parts = [piece for part in _found(table) for piece in files.split(part, PIECE_ROWS)]
    plan = {"bundle": bundle_id, "text": text, "join": join, "query": table.columns.get("query")}
    plan |= {name: value for name, value in where.items() if name not in ("paths", *_TOLD)}
    # what each file tells is written as what was assumed before files were asked: a folder that
    # was begun then is gone on with
    plan |= {name: _TOLD[name] if where[name] == unsaid else where[name]
             for name, unsaid in (("delimiter", ""), ("encoding", "auto"))}  # fmt: skip
    if settings.quoted is not None:
        plan["quoted"] = settings.quoted
    if settings.labels:
        check_labels(TextBundle.load(folder).model, settings.labels, where="labels")
        plan["labels"] = sorted(set(settings.labels))
    done = _prepare(output, plan, force)
    states = {key_of(part): fingerprint_of(part) for part in parts}
    todo = tuple(
        p for p in parts if done.get(key_of(p), {}).get("fingerprint") != states[key_of(p)]
    )
    manifest = Manifest(
        stage="score",
        inputs={**states, "bundle": bundle_id},
        settings=settings.model_dump(mode="json"),
    )
    if not todo and (output / MANIFEST).is_file():
        last = read_manifest(output)
        if last.inputs == manifest.inputs:  # else of a run before the last, which was cut off
            return last
    # what has changed since, and parts that a file is no longer cut into
    paths = {part.path for part in parts}
    stale = {key_of(part) for part in todo}
    stale |= {k for k, told in done.items() if k not in states and told.get("path", "") in paths}
    for key in stale:
        for name in done.pop(key, {}).get("files", ()):
            (output / name).unlink(missing_ok=True)
        (output / _DONE / f"{key}.json").unlink(missing_ok=True)
    job = Job(todo, table, text, join, settings.piece, folder, output, settings.labels)
    rows = 0
    if todo:
        with ray_session():
            rows = _on_ray(job, settings, done, states)
    shutil.rmtree(output / WORK, ignore_errors=True)
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


def _table(settings: ScoreSettings, content: dict[str, Any], where: dict[str, Any]) -> TableFiles:
    """What is read of the files: all columns, of which those of the text are named."""

    def table(text: tuple[str, ...]) -> TableFiles:
        columns = {f"text.{at}": name for at, name in enumerate(text)}
        if content["task"] == "relevance":
            columns["query"] = settings.query
        return TableFiles(**where, columns=columns, keys=("text.0",), everything=True, bare=True)

    fitted = tuple(content["columns"])
    asked = table(settings.text or fitted)
    if settings.text:
        return asked
    there = files.columns_of(asked, files.named(asked))
    guess = text_of(there)
    if guess is None or set(fitted) & set(there):
        return asked
    log.info("score: no column %s: the text is read from %r", ", ".join(fitted), guess)
    return table((guess,))


def _found(table: TableFiles) -> list[Part]:
    """The files.

    Raises:
        UserError: a column that none of them has, with the options that name others.
    """
    try:
        return files.find(table)
    except UserError as error:
        if not error.what.startswith("no column"):
            raise
        options = "--text" + (" and --query" if "query" in table.columns else "")
        mend = error.mend.partition("?")[0] + "? " if "did you mean" in error.mend else ""
        raise UserError(
            error.what,
            where=error.where,
            mend=f"{mend}name the files' columns by {options}; where the first line is no header, "
            "by `header` in a --config",
        ) from None


def folder_of(settings: ScoreSettings, workspace: Workspace) -> Path:
    """Where the predictions lie."""
    return on_disk(Path(settings.output))


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
            names = {**plan, **before}
            changed = ", ".join(name for name in names if before.get(name) != plan.get(name))
            raise UserError(
                f"the folder holds predictions of another {changed}",
                where=str(output),
                mend="give another --output, or --force to write them anew",
            )
        if force:
            for leftover in (_DONE, WORK, "predictions", "quarantine", MANIFEST):
                path = output / leftover
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
    for name in ("predictions", _DONE):
        (output / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / WORK, ignore_errors=True)
    (output / WORK).mkdir()
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

    quieten_ray_data()
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
        Reading(job),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0.25,
        compute=TaskPoolStrategy(size=max(1, int(cpus / 2))),
    ).map_batches(
        # as an attribute of the class: nothing of ours is a constructor's argument. What Ray's core
        # worker says of those at the start is about Ray Data's own context, which it hands to
        # every actor through the object store; without restarts, the cure it names, a worker
        # that dies would end the run
        type("Scoring", (Scoring,), {"job": job}),
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
                    key = key_of(part)
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
            (output / WORK / Path(name).name).replace(output / name)
            written.append(name)
        aside.update(json.loads(piece["aside"]))
    told = {
        "source": part.label,
        "path": part.path,
        "fingerprint": fingerprint,
        "rows": sum(piece["rows"] for piece in arrived.pieces.values()),
        "aside": dict(aside),
        "files": written,
    }
    write_atomic(output / _DONE / f"{key_of(part)}.json", json.dumps(told) + "\n")
    return told
