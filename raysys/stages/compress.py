"""`raysys compress`: the cheapest way to run a bundle's transformer within a stated loss."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table

from raysys.cluster import device_here
from raysys.config import Settings, StageSettings
from raysys.errors import UserError
from raysys.progress import task
from raysys.registry import TEXT, Registry
from raysys.stages.compress_kept import Kept, machine
from raysys.stages.compress_report import Row, cells, headers, write_report
from raysys.stages.compressible import Quality, RankingSubject, Subject, TextSubject
from raysys.storage import (
    Manifest,
    Workspace,
    digest,
    is_done,
    read_manifest,
    replacing,
    versions,
    working_folder,
    write_atomic,
)
from raysys.text.compression.distil import HiddenStateDistillation
from raysys.text.compression.export import VARIANTS, export, missing, write_onnx
from raysys.text.compression.probe import cost_of
from raysys.text.compression.vectors import KINDS, Kind
from raysys.text.models import layers_of, longest_input, open_model
from raysys.text.training import TrainingSettings, train

logger = logging.getLogger("raysys")

WHOLE = "torch_fp32"


class DistilSettings(Settings):
    """Students with fewer layers.

    Attributes:
        layers: one student for each number of layers; empty: none.
        texts: most texts of the shop that they are taught on.
        max_tokens: read of each.
        training: how.
    """

    layers: tuple[int, ...] = (3,)
    texts: int = Field(20_000, ge=2)
    max_tokens: int = Field(32, ge=4, le=512)
    training: TrainingSettings = TrainingSettings(epochs=2, learning_rate=2e-4, batch_size=64)


class CompressSettings(StageSettings):
    """The YAML of `raysys compress`.

    Attributes:
        bundle: a pointer such as `champion` or `text-sentiment`, or a bundle's id.
        learner: of a ranking bundle, whose transformer; null: the first that has one.
        variants: ways to run it that are tried, of those in the reference; those whose packages
            are missing are left out, and said.
        distil: students that are tried beside the whole model, each in every variant.
        vectors: ways to keep vectors of items that are tried.
        largest_loss: of the measure on validation, as a share of it.
        shapes: batches that are timed, as [texts, tokens]; by the first the cheapest is chosen.
        threads: of the program that runs the model.
        requests: of the validation fold, that quality is measured on; of a text task ten times
            as many texts.
        pointer: that is pointed at the new bundle; null: the one named by `bundle`, if it is one.
        seed: of distillation and draws.
    """

    kind_name: ClassVar[str] = "compress"

    bundle: str = "champion"
    learner: str | None = None
    variants: tuple[str, ...] = tuple(VARIANTS)
    distil: DistilSettings = DistilSettings()
    vectors: tuple[Kind, ...] = KINDS
    largest_loss: float = Field(0.005, ge=0, lt=1)
    shapes: tuple[tuple[int, int], ...] = ((1, 16), (32, 32))
    threads: int = Field(1, ge=1)
    requests: int = Field(400, ge=10)
    pointer: str | None = None
    seed: int = Field(0, ge=0)

    @field_validator("variants")
    @classmethod
    def _known(cls, variants: tuple[str, ...]) -> tuple[str, ...]:
        for name in variants:
            if name not in VARIANTS:
                raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
        return tuple(dict.fromkeys((WHOLE, *variants)))

    @field_validator("shapes")
    @classmethod
    def _some(cls, shapes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if not shapes or any(min(shape) < 1 or shape[1] > 512 for shape in shapes):
            raise ValueError("one or more of [texts, tokens], from 1; at most 512 tokens")
        return shapes


def run(settings: CompressSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Measure every variant, publish the cheapest good one, point at it.

    What a killed run had measured is not measured again.

    Writes `report.html`, `compress.json` and the manifest into `folder_of`.

    Raises:
        UserError: no such bundle, nothing in it to compress, no packages to compress with.
    """
    registry = Registry(workspace.registry)
    planned = Manifest(
        stage="compress",
        inputs={"bundle": registry.resolve(settings.bundle)},
        settings=settings.model_dump(mode="json"),
    )
    folder = folder_of(settings, workspace)
    if not force and (folder / "manifest.json").is_file():
        done = read_manifest(folder)
        is_ours = done.figures.get("bundle") == planned.inputs["bundle"]  # what we published
        if is_done(folder, planned) or (is_ours and done.settings == planned.settings):
            return done
    started = time.monotonic()
    subject = _subject(settings, workspace, registry)
    there = device_here()
    work = working_folder(folder, _ground(planned, settings, subject, there), force)
    kept_rows = Kept(work)
    with replacing(folder) as fresh:
        rows = _transformers(settings, subject, kept_rows)
        if there != "cpu":
            logger.warning(
                "compress: milliseconds are those of the CPU, but this machine serves on a GPU: "
                "only what PyTorch runs is chosen from"
            )
        kept: list[Row] = []
        if settings.vectors and subject.vector_kinds():
            kept = _vectors(settings, subject, kept_rows)
        chosen = cheapest(served_on(there, rows), settings.largest_loss, lambda row: row.latency)
        small = cheapest(kept, settings.largest_loss, lambda row: row.size_mb) if kept else None
        note: dict[str, object] = {
            "transformer": chosen.to_dict(),
            **({} if small is None else {"vectors": small.to_dict()}),
            "measure": subject.measure,
            "of": planned.inputs["bundle"],
        }
        with task("compress: bundle") as publishing:
            assert chosen.folder is not None
            learner = _with_encoder(subject, chosen.folder, work / "chosen")
            bundle = subject.publish(learner, None if small is None else small.name, note)
            pointer = settings.pointer or (
                settings.bundle if settings.bundle in registry.pointers() else None
            )
            if pointer is not None:
                registry.point(pointer, bundle)
            publishing.note = bundle
        planned.seconds = time.monotonic() - started
        planned.counts = {"variants": len(rows), "vectors": len(kept)}
        content = {
            "measure": subject.measure,
            "largest_loss": settings.largest_loss,
            "timed_on": "cpu",
            "served_on": there,
            "transformers": [row.to_dict() for row in rows],
            "vectors": [row.to_dict() for row in kept],
            "chosen": {"transformers": chosen.name, "vectors": small and small.name},
        }
        planned.figures = {"bundle": bundle, "pointer": pointer, **content}
        write_atomic(fresh / "compress.json", json.dumps(content, indent=1) + "\n")
        write_report(settings, subject.measure, rows, kept, (chosen, small), fresh, there)
        planned.write(fresh)
    shutil.rmtree(work.parent, ignore_errors=True)
    return planned


def _ground(
    planned: Manifest, settings: CompressSettings, subject: Subject, there: str
) -> Manifest:
    """All that what is measured depends on; what is allowed and pointed at is settled after."""
    return Manifest(
        stage=planned.stage,
        inputs={
            **planned.inputs,
            **subject.ground,
            "machine": digest(machine()),
            "device": there,
        },
        settings=settings.model_dump(mode="json", exclude={"largest_loss", "pointer"}),
        versions=versions(),
    )


def folder_of(settings: CompressSettings, workspace: Workspace) -> Path:
    """Where the outcome lies."""
    return workspace.compress / settings.bundle


def _subject(settings: CompressSettings, workspace: Workspace, registry: Registry) -> Subject:
    """A ranking bundle's learner, or a text task."""
    if registry.verify(settings.bundle).surface == TEXT:
        return TextSubject(workspace, settings.bundle, 10 * settings.requests, settings.seed)
    return RankingSubject(
        workspace, settings.bundle, settings.learner, settings.requests, settings.seed
    )


def served_on(device: str, rows: Sequence[Row]) -> list[Row]:
    """Rows that may be chosen: on a GPU those that PyTorch runs, for only these use it."""
    return [row for row in rows if device == "cpu" or row.variant.backend == "torch"]


def cheapest(rows: Sequence[Row], largest_loss: float, cost: Callable[[Row], float]) -> Row:
    """The row of least cost among those that lose no more than the stated share.

    The first row is the whole model, which loses nothing, or next to it where bfloat16 is served.
    """
    good = [row for row in rows if row.loss[0] <= largest_loss]
    return min(good or rows[:1], key=lambda row: (cost(row), row.size_mb))


def _transformers(settings: CompressSettings, subject: Subject, kept: Kept) -> list[Row]:
    """The whole model first, then every student in every variant."""
    whole = subject.learner / subject.encoder
    students, work = {"": whole}, kept.work
    backbone, tokenizer = open_model(str(whole), where="bundle")
    _require_room(settings, longest_input(backbone))
    own = functools.cache(lambda: subject.quality(subject.learner))  # as it is served now
    if kept.row("transformers", WHOLE) is None:
        _require_quality(own(), subject.measure)
    there = len(layers_of(backbone))
    for layers in settings.distil.layers:
        if layers < there:
            students[f"{layers}_layers_"] = _distilled(settings, subject, layers, kept)
    able = [name for name in settings.variants if not missing(VARIANTS[name])]
    for name in settings.variants:
        if name not in able:
            logger.warning(
                f"{name} is left out: it needs {', '.join(missing(VARIANTS[name]))} "
                "(pip install 'raysys[compress]')"
            )
    rows: list[Row] = []
    with task("compress: variants", len(students) * len(able)) as measuring:
        for prefix, folder in students.items():
            known = {name: kept.row("transformers", prefix + name) for name in able}
            left = [name for name, row in known.items() if row is None]
            if left:
                backbone, tokenizer = open_model(str(folder), where="bundle")
            if len(left) < len(able):
                logger.info(
                    "compress: %d of %d %svariants were measured before this run was cut off",
                    len(able) - len(left), len(able), prefix,
                )  # fmt: skip
            onnx = work / f"{prefix}whole.onnx"
            if any(VARIANTS[name].backend != "torch" for name in left):
                write_onnx(backbone, onnx)
            for name in able:
                if (row := known[name]) is not None:
                    rows.append(row)
                    measuring.advance()
                    continue
                place = work / f"{prefix}{name}"
                shutil.rmtree(place, ignore_errors=True)  # of a run that was cut off
                export(backbone, tokenizer, name, place, onnx=onnx)
                try:
                    cost = cost_of(place, settings.shapes, threads=settings.threads)
                except UserError as error:
                    if not rows:  # all others are held against it
                        raise UserError(
                            f"the whole model: {error.what}", where="shapes", mend=error.mend
                        ) from None
                    logger.warning(f"{name} is left out: {error}")
                    measuring.advance()
                    continue
                quality = subject.quality(_with_encoder(subject, place, work / "judged"))
                loss = quality.loss_to(own(), settings.seed)
                rows.append(Row(prefix + name, quality, loss, cost, cost.disk_mb, place))
                kept.keep("transformers", rows[-1])
                measuring.advance()
    return rows


def _require_quality(whole: Quality, measure: str) -> None:
    """Look for something that could be lost, before students are taught.

    Raises:
        UserError: the whole model is right nowhere, or nothing that was drawn can be judged.
    """
    if not whole.value > 0:
        raise UserError(
            f"nothing tells what compressing would cost: the whole model's {measure} is "
            f"{whole.value:g} on what was drawn",
            where="requests",
            mend="give more requests",
        )


def _require_room(settings: CompressSettings, longest: int | None) -> None:
    """Refuse to read more tokens than a transformer has positions for.

    Raises:
        UserError: a shape, or what students are taught on, has more.
    """
    wanted = {"shapes": max(tokens for _, tokens in settings.shapes)}
    if settings.distil.layers:
        wanted["distil.max_tokens"] = settings.distil.max_tokens
    for name, tokens in wanted.items():
        if longest is not None and tokens > longest:
            raise UserError(
                f"the transformer reads {longest} tokens at most, not {tokens}",
                where=name,
                mend=f"take at most {longest}",
            )


def _distilled(settings: CompressSettings, subject: Subject, layers: int, kept: Kept) -> Path:
    """A student's folder; its training goes on where it was cut off."""
    distil, place = settings.distil, kept.work / f"student-{layers}"
    if kept.is_taught(layers):
        return place
    shutil.rmtree(place, ignore_errors=True)
    teacher, tokenizer = open_model(str(subject.learner / subject.encoder), where="bundle")
    objective = HiddenStateDistillation(
        teacher, tokenizer, layers, subject.texts(distil.texts), max_tokens=distil.max_tokens
    )
    with task(f"compress: distil to {layers} layers") as distilling:
        fitted = train(objective, distil.training, place, seed=settings.seed)
        distilling.note = f"cosine {fitted.figures['cosine']:.4f}"
    kept.teach(layers)
    return place


def _with_encoder(subject: Subject, transformer: Path, place: Path) -> Path:
    """A copy of the learner's folder with another transformer in it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(subject.learner, place, ignore=lambda folder, names: (
        names if Path(folder) == subject.learner / subject.encoder else []
    ))  # fmt: skip
    shutil.copytree(transformer, place / subject.encoder, dirs_exist_ok=True)
    return place


def _vectors(settings: CompressSettings, subject: Subject, kept: Kept) -> list[Row]:
    """Whole vectors first, then every other way to keep them."""
    rows: list[Row] = []
    kinds = tuple(dict.fromkeys(("float32", *settings.vectors)))
    with task("compress: vectors", len(kinds)) as measuring:
        for kind in kinds:
            if (row := kept.row("vectors", kind)) is not None:
                rows.append(row)
                measuring.advance()
                continue
            quality, size = subject.vector_quality(kind)
            if not rows:
                _require_quality(quality, subject.measure)
            base = rows[0].quality if rows else quality
            rows.append(
                Row(kind, quality, quality.loss_to(base, settings.seed), None, size / 2**20)
            )
            kept.keep("vectors", rows[-1])
            measuring.advance()
    return rows


def show(manifest: Manifest, console: Console) -> None:
    """All that was tried, the chosen ones bold; and where it went."""
    content = manifest.figures
    for kind in ("transformers", "vectors"):
        rows = content[kind]
        if not rows:
            continue
        table = Table(box=None, pad_edge=False, header_style="dim")
        for at, header in enumerate(headers(content["measure"], rows[0], memory=False)):
            table.add_column(header, justify="left" if at == 0 else "right", no_wrap=True)
        for row in rows:
            picked = row["name"] == content["chosen"][kind]
            table.add_row(*cells(row, memory=False), style="bold" if picked else "")
        console.print(table)
    name = f"{content['pointer']} → " if content["pointer"] else ""
    console.print(f"  published: {name}{content['bundle']}")
