"""`raysys text pretrain`: a transformer learns the language of the shop from what it has."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from raysys.cluster import device_here, ray_session
from raysys.config import StageSettings
from raysys.datasets import files
from raysys.errors import UserError
from raysys.progress import task
from raysys.stages.train_settings import ResourceSettings
from raysys.storage import (
    Manifest,
    Workspace,
    file_digest,
    is_done,
    read_manifest,
    replacing,
    working_folder,
)
from raysys.text.models import PACKAGED, model_folder, open_model
from raysys.text.pretraining.behaviour import Pairs, gather_pairs
from raysys.text.pretraining.causal import MARKS, CausalObjective, CausalSettings
from raysys.text.pretraining.contrastive import ContrastiveObjective, ContrastiveSettings
from raysys.text.pretraining.corpus import Corpus, CorpusSettings, log_end, write_corpus
from raysys.text.pretraining.log_read import log_read, write_log_read
from raysys.text.pretraining.masked import MaskedObjective, MaskedSettings
from raysys.text.pretraining.pairs import PairsObjective, PairsSettings
from raysys.text.pretraining.report import FIGURES, NEW_HEAD, TITLES, Outcome, write_report
from raysys.text.pretraining.tokens import Frame, Tokens, tokenise
from raysys.text.scratch import ScratchSettings, make_model
from raysys.text.training import Objective, train

AnyObjective = Annotated[
    MaskedSettings | CausalSettings | PairsSettings | ContrastiveSettings,
    Field(discriminator="kind"),
]
Texts = (MaskedSettings, CausalSettings)
"""Objectives that read the corpus; the others read pairs."""
OUTCOME = "outcome.json"


class PretrainSettings(StageSettings):
    """The YAML of `raysys text pretrain`.

    Attributes:
        model: to begin with: packaged, a folder or a hub id; null: the packaged one, or `scratch`.
        scratch: begin with a new model and a tokenizer trained on the shop's own texts.
        corpus: the texts of masked and causal language modelling, and of a new tokenizer.
        objectives: in order, each from where the one before ended.
        held_back_days: the last days of the log are not read: those that learners are validated
            and judged on. By default those of `raysys features`.
        resources: of every objective, through Ray Train; null: in this very process.
        seed: of everything random.
    """

    kind_name: ClassVar[str] = "pretrain"

    model: str | None = None
    scratch: ScratchSettings | None = None
    corpus: CorpusSettings = CorpusSettings()
    objectives: Annotated[tuple[AnyObjective, ...], Field(min_length=1)]
    held_back_days: float = Field(56, ge=0)
    resources: ResourceSettings | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_beginning(self) -> PretrainSettings:
        if self.model is not None and self.scratch is not None:
            raise ValueError("give either model or scratch")
        kinds = {each.kind for each in self.objectives}
        if "causal" in kinds and kinds & {"masked", "pairs"}:
            raise ValueError("no model reads one way (causal) and both ways (masked, pairs)")
        if self.scratch is not None:
            reads_one_way = self.scratch.architecture == "gpt2"
            for kind in kinds:
                if (kind == "causal") != reads_one_way and kind != "contrastive":
                    raise ValueError(f"a {self.scratch.architecture} cannot learn by {kind}")
        return self


@dataclass(frozen=True)
class _Material:
    """What objectives are made of.

    Attributes:
        settings: of the stage.
        ingest: the log and the catalogue; None: there are files only.
        until: events from then on are not read.
        work: a folder for what must not be lost when the stage is killed.
    """

    settings: PretrainSettings
    ingest: Path | None
    until: dt.datetime | None
    work: Path

    def corpus(self) -> Corpus:
        """The texts, gathered once."""
        found = Corpus.open(self.work / "corpus")
        if found is None:
            with task("pretrain: texts") as gathering:
                shutil.rmtree(self.work / "corpus", ignore_errors=True)
                found = write_corpus(
                    self.settings.corpus,
                    self.work / "corpus",
                    ingest=self.ingest,
                    until=self.until,
                )
                held = found.counts["held_out"]
                gathering.note = f"{found.counts['train']:,}, and {held:,} held out"
        return found

    def pieces(self, tokenizer: Any, longest: int) -> tuple[Tokens, Tokens]:
        """Train and held-out texts of the corpus as tokens."""
        with task("pretrain: tokens") as cutting:
            train_on, held = (
                tokenise(self.corpus().batches(part), tokenizer, self._fresh(part), longest=longest)
                for part in ("train", "held_out")
            )
            cutting.note = f"{len(train_on.ids):,} in {len(train_on):,} pieces"
        if not len(held):
            raise UserError(
                "no text is held out to measure perplexity on",
                where="corpus.held_out",
                mend="hold out a larger share",
            )
        return train_on, held

    def pairs(self, settings: PairsSettings | ContrastiveSettings) -> Pairs:
        """What belongs together."""
        assert self.ingest is not None
        with task("pretrain: pairs") as gathering:
            found = gather_pairs(settings.pairs, self.ingest, until=self.until)
            gathering.note = ", ".join(f"{name} {n:,}" for name, n in found.counts().items())
        return found

    def tokens_of(self, pairs: Pairs, tokenizer: Any, longest: int) -> Tokens:
        """The texts of pairs, as much of each as is read."""
        folder = self._fresh("pairs")
        return tokenise([pairs.texts], tokenizer, folder, longest=longest, pieces=False)

    def _fresh(self, name: str) -> Path:
        folder = self.work / "tokens" / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def run(settings: PretrainSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Pre-train and write `pretrain/model`, which `open_model` reads, and `pretrain/report.html`.

    A run that was killed goes on where it was: objectives that are done are not done again, the
    one that was under way resumes from its checkpoint.

    Raises:
        UserError: no such model, no ingested log where one is needed, nothing to learn from.
    """
    ingest = _ingest(settings, workspace)
    planned = Manifest(
        stage="pretrain",
        inputs=_inputs(settings, ingest),
        settings=settings.model_dump(mode="json"),
    )
    if not force and is_done(workspace.pretrain, planned):
        return read_manifest(workspace.pretrain)
    started = time.monotonic()
    work = working_folder(workspace.pretrain, planned, force)
    until = None if ingest is None else log_end(ingest, settings.held_back_days)
    material = _Material(settings, ingest, until, work)
    model = _begin(material)
    outcomes: list[Outcome] = []
    with _cluster_if_wanted(settings):
        for number, objective in enumerate(settings.objectives):
            folder = work / f"{number}-{objective.kind}"
            if not (folder / OUTCOME).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                _learn(material, objective, model, folder)
            outcomes.append(Outcome(**json.loads((folder / OUTCOME).read_text())))
            model = str(folder / "model")
    corpus = Corpus.open(work / "corpus")
    with replacing(workspace.pretrain) as fresh:
        shutil.copytree(model, fresh / "model")
        read = _log_read(settings, until)
        if read is not None:
            write_log_read(fresh / "model", read)
        write_report(
            fresh / "report.html", _name(settings), None if corpus is None else corpus.counts,
            outcomes,
        )  # fmt: skip
        content = [asdict(each) for each in outcomes]
        (fresh / "outcomes.json").write_text(json.dumps(content, indent=1) + "\n")
        planned.counts = {} if corpus is None else dict(corpus.counts)
        planned.figures = {
            "objectives": [{k: v for k, v in each.items() if k != "history"} for each in content]
        }
        planned.seconds = round(time.monotonic() - started, 2)
        planned.write(fresh)
    shutil.rmtree(work, ignore_errors=True)
    return planned


def show(manifest: Manifest, console: Console) -> None:
    """Figures before and after; of a head that was drawn anew there is none before."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("objective", no_wrap=True)
    table.add_column("figure")
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    outcomes = [Outcome(**each) for each in manifest.figures["objectives"]]
    for each in outcomes:
        for name, told in FIGURES.items():
            if name in each.after:
                before, after = each.known_before.get(name), each.after[name]
                table.add_row(TITLES[each.kind], told, _number(before), _number(after))
    console.print(table)
    if any(each.new_head for each in outcomes):
        console.print(f"–: {NEW_HEAD}", style="dim")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}"


def _learn(material: _Material, settings: AnyObjective, model: str, folder: Path) -> None:
    """One objective, from a model to `folder/model` and `OUTCOME`."""
    stage = material.settings
    objective, counts = _objective(material, settings, model)
    with task(f"pretrain: {settings.kind}, before") as judging:
        with torch.random.fork_rng():
            torch.manual_seed(stage.seed)  # a new head is the one that training begins with
            module = objective.build().eval()
        head_is_new = bool(getattr(module, "head_is_new", False))
        module.to(device_here())
        with torch.inference_mode():
            before = dict(objective.evaluate(module))
            if isinstance(settings, ContrastiveSettings) and settings.hard_negatives.first:
                objective.refresh(module, 0)
        judging.note = _shown(before) + (f" ({NEW_HEAD})" if head_is_new else "")
        del module
    fitted = train(
        objective,
        settings.training,
        folder / "model",
        seed=stage.seed,
        resources=None if stage.resources is None else stage.resources.here(),
        scratch=folder.with_name(f"{folder.name}.training"),
    )
    (folder / "model" / "history.json").unlink()  # it is in the outcome
    outcome = Outcome(
        kind=settings.kind,
        criterion=objective.criterion,
        before=before,
        after=fitted.figures,
        counts=counts,
        steps=fitted.steps,
        seconds=round(fitted.seconds, 2),
        examples_per_s=round(fitted.examples_per_s, 2),
        tokens_per_s=round(fitted.tokens_per_s, 1),
        history=fitted.history,
        new_head=head_is_new,
    )
    fresh = folder / f"{OUTCOME}.tmp"
    fresh.write_text(json.dumps(asdict(outcome)))
    fresh.replace(folder / OUTCOME)


def _objective(
    material: _Material, settings: AnyObjective, model: str
) -> tuple[Objective, dict[str, int]]:
    """The objective, and what it has to learn from."""
    opened, tokenizer = open_model(model, where="model")
    seed = material.settings.seed
    if isinstance(settings, Texts):
        train_on, held = material.pieces(tokenizer, _room(settings, Frame.of(tokenizer, opened)))
        counts = {"pieces": len(train_on), "tokens": len(train_on.ids), "held_out": len(held)}
        if isinstance(settings, MaskedSettings):
            return MaskedObjective(model, train_on, held, settings, seed), counts
        return CausalObjective(model, train_on, held, settings, seed), counts
    pairs = material.pairs(settings)
    tokens = material.tokens_of(pairs, tokenizer, settings.max_tokens)
    if isinstance(settings, PairsSettings):
        return PairsObjective(model, pairs, tokens, settings, seed), pairs.counts()
    return ContrastiveObjective(model, pairs, tokens, settings, seed), pairs.counts()


def _room(settings: MaskedSettings | CausalSettings, frame: Frame) -> int:
    """Tokens of a piece, its marks left out."""
    if isinstance(settings, MaskedSettings):
        return settings.max_tokens - len(frame.begin) - len(frame.end)
    return settings.block - MARKS


def _begin(material: _Material) -> str:
    """The model that the first objective begins with."""
    settings = material.settings
    if settings.scratch is None:
        return settings.model or PACKAGED
    folder = material.work / "scratch"
    if not (folder / "made").is_file():
        with task("pretrain: a new model") as making:
            shutil.rmtree(folder, ignore_errors=True)
            texts = (text for batch in material.corpus().batches("train") for text in batch)
            made = make_model(settings.scratch, texts, settings.seed, folder / "model")
            making.note = f"{made.parameters:,} weights, {made.vocabulary:,} tokens"
            (folder / "made").touch()
    return str(folder / "model")


def _log_read(settings: PretrainSettings, until: dt.datetime | None) -> dt.datetime | None:
    """Until when the model, or the one that it began with, has read the log; None: neither has."""
    corpus = settings.corpus.queries and (
        settings.scratch is not None or any(isinstance(o, Texts) for o in settings.objectives)
    )
    sources = {
        source
        for each in settings.objectives
        if not isinstance(each, Texts)
        for source in each.pairs.sources
    }
    read = [until] if until is not None and (corpus or sources - {"titles"}) else []
    if settings.scratch is None:
        before = log_read(model_folder(settings.model or PACKAGED, where="model"))
        read += [] if before is None else [before]
    return max(read, default=None)


def _name(settings: PretrainSettings) -> str:
    if settings.scratch is None:
        return settings.model or PACKAGED
    made = settings.scratch
    return f"a new {made.architecture} of {made.layers} layers, {made.width} wide"


def _ingest(settings: PretrainSettings, workspace: Workspace) -> Path | None:
    """The ingested log; None where files alone are read.

    Raises:
        UserError: there is none, and something needs it.
    """
    needs = not settings.corpus.files or any(
        not isinstance(each, Texts) for each in settings.objectives
    )
    if needs or (workspace.ingest / "manifest.json").is_file():
        read_manifest(workspace.ingest)
        return workspace.ingest
    return None


def _inputs(settings: PretrainSettings, ingest: Path | None) -> dict[str, str]:
    """Fingerprints of log, files and model."""
    found = {} if ingest is None else {"ingest": read_manifest(ingest).outcome}
    for number, each in enumerate(settings.corpus.files):
        found |= {
            f"{number}/{part.label}": files.fingerprint(part) for part in files.find(each.table())
        }
    if settings.scratch is None:
        place = model_folder(settings.model or PACKAGED, where="model")
        for path in sorted(place.glob("*.safetensors")):
            found[f"model/{path.name}"] = file_digest(path)[:16]
    return found


@contextlib.contextmanager
def _cluster_if_wanted(settings: PretrainSettings) -> Iterator[None]:
    """Ray, if resources are asked for."""
    if settings.resources is None:
        yield
        return
    with ray_session():
        yield


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
