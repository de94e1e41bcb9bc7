"""A round of learning from new events, step by step; each step is done once, whoever is killed.

A step writes into a folder of its own, which appears whole with `step.json`: what came of it, and
what it took. A round that was cut off finds the folders of the steps that it finished.

    plan.json        what the round is about, fixed when it begins
    events/          the events since the champion's state, as ingested
    relived/         examples of the window by side (`learn_replay`), and `features/`: the state
                     that is published
    learner-NAME/    a learner that went on from its weights
    blend/           the ensemble, and the base scores it was fitted on
    gate/            champion and challenger on what nobody learned from (`learn_gate`)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from raysys.cluster import Resources
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings, Judgements, ndcg
from raysys.ensemble.bench import evenly, within_errors
from raysys.ensemble.fit import bench_of, fit_on
from raysys.ensemble.folds import base_score, unsound
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.features.grown import grown
from raysys.features.live import LiveFeatures
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context, Model
from raysys.progress import task
from raysys.registry import Bundle
from raysys.retrieval.advance import advance
from raysys.retrieval.covisitation import CoVisitation
from raysys.stages.features_settings import FeaturesSettings, FromLog
from raysys.stages.learn_catalogue import tell_users, told_items
from raysys.stages.learn_events import (
    BLEND,
    TUNE,
    Window,
    build_requests,
    count_orders,
    numbered,
    read_since,
)
from raysys.stages.learn_replay import AFTER, BEFORE, Neighbourhoods, parts_of, relive
from raysys.stages.learn_settings import LearnSettings
from raysys.stages.learn_shown import build_shown
from raysys.stages.stacking import beside_of, label_window_ms
from raysys.stages.text_vectors import encoder_of, query_vectors
from raysys.storage import Manifest, replacing, write_atomic

STEP = "step.json"
PLAN = "plan.json"
SCORES = "base_scores"


@dataclass(frozen=True)
class Plan:
    """What a round is about.

    Attributes:
        number: of the round, from 1.
        champion: id of the bundle that it begins with.
        settings: digest of what it was told.
        ingest: fingerprint of the log.
        trigger: why it began.
        began: UTC ms.
        position: offset of the event log up to which its events were rolled; 0: unknown.
    """

    number: int
    champion: str
    settings: str
    ingest: str
    trigger: str
    began: int
    position: int = 0

    def write(self, folder: Path) -> None:
        """Into the round's folder."""
        write_atomic(folder / PLAN, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """What `write` wrote; None: there is no round, or not of this version."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / PLAN).read_text(encoding="utf-8")))
        return None


class Round:
    """The steps of one round.

    Args:
        folder: of its steps.
        plan: what it is about.
        settings: the YAML.
        bundle: the champion's folder.
        features: the settings that its features were made with.
        ingest: the ingested log.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        settings: LearnSettings,
        bundle: Path,
        features: FeaturesSettings,
        ingest: Path,
    ) -> None:
        self.folder, self.plan, self.settings = folder, plan, settings
        self.bundle, self.features, self.ingest = bundle, features, ingest
        self.told: dict[str, dict[str, Any]] = {}

    @cached_property
    def champion(self) -> Bundle:
        """The champion, in memory; its state counts nothing."""
        return Bundle.load(self.bundle)

    def step(self, name: str, do: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any]:
        """Do a step, unless it is done; what came of it, with its `seconds`."""
        place = self.folder / name
        if not (place / STEP).is_file():
            began = time.monotonic()
            with replacing(place) as fresh:
                told = do(fresh) or {}
                told["seconds"] = round(time.monotonic() - began, 2)
                (fresh / STEP).write_text(json.dumps(told) + "\n", encoding="utf-8")
        told = json.loads((place / STEP).read_text(encoding="utf-8"))
        self.told[name] = told
        return told

    def learn(self) -> bool:
        """All steps up to what the gate judges; whether there is enough to judge."""
        self.step("events", self._events)
        relived = self.step("relived", self._relive)
        if relived["requests"]["gate"] < self.settings.window.min_requests:
            return False
        for name in self.settings.steps.learners:
            self.step(f"learner-{name}", partial(self._tune, name))
        if self.settings.steps.ensemble is not None:
            self.step("blend", self._blend)
        return True

    def examples(self, side: str, *parts: int) -> Examples:
        """Examples of a side; of `before` those of `after`, where nothing lies between them."""
        if side == BEFORE and not self.settings.steps.covisitation:
            side = AFTER
        return Examples(self.folder / "relived" / side, parts)

    def models(self) -> dict[str, Model]:
        """Learners of the challenger: those that were tuned, the champion's others."""
        return {name: self.tuned(name) or model for name, model in self.champion.learners.items()}

    def tuned(self, name: str) -> Model | None:
        """A learner that went on; None: it is as it was."""
        told = self.told.get(f"learner-{name}")
        if told is None or not told["changed"]:
            return None
        place = self.folder / f"learner-{name}" / "model"
        return load_model(name, place, self.champion.features.catalogue)

    def ensemble(self) -> Ensemble:
        """That of the challenger."""
        told = self.told.get("blend")
        if told is None or not told["changed"]:
            return self.champion.ensemble
        return Ensemble.load(self.folder / "blend" / "ensemble.json")

    def _events(self, out: Path) -> dict[str, Any]:
        """Keep what is new as it is now, so that nothing moves under the round."""
        with task("learn: new events") as reading:
            since = self.champion.features.as_of
            frame = read_since(self.ingest / "events", since)
            frame.write_parquet(out / "events.parquet")
            reading.note = f"{len(frame):,} since the champion was trained"
        users = frame["user_id"].n_unique() if len(frame) else 0
        last = int(frame["time"].max()) if len(frame) else since  # type: ignore[arg-type]
        return {"events": len(frame), "users": users, "since": since, "last": last}

    def _relive(self, out: Path) -> dict[str, Any]:
        """State, neighbourhoods, examples of the window."""
        told, settings = self.told["events"], self.settings
        frame = pl.read_parquet(self.folder / "events" / "events.parquet")
        window = Window.cut(
            *(settings.window, told["since"], told["last"]), tuned=bool(settings.steps.learners)
        )
        facts: dict[str, Any] = {"bounds": window.bounds, "requests": {"gate": 0}}
        if not len(frame):
            return facts
        group_by = self.features.group_by
        live = LiveFeatures.load(self.bundle / "features")
        known_users = live.n_users
        events = numbered(frame, live, group_by)
        if isinstance(self.features.examples, FromLog):
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                requests = build_shown(
                    *(frame, events, window, live),
                    *(self.features, settings.window, Path(scratch)),
                )
        else:
            requests = build_requests(
                *(frame, events, window, self.features.labels, settings.window), group_by
            )
        facts["requests"] = parts_of(requests)
        facts["found"] = requests.found
        facts["new_users"] = live.n_users - known_users
        if facts["requests"]["gate"] < settings.window.min_requests:
            return facts
        with task("learn: items bought together") as near:
            neighbourhoods, last = self._neighbourhoods(live, events, window)
            near.note = "" if settings.steps.covisitation else "as they were"
        frozen = self.champion.features if settings.steps.state else None
        with task("learn: living it through again", len(requests.frame)) as reliving:
            relive(
                *(live, events, requests, neighbourhoods, out),
                frozen=frozen,
                history=self.features.history,
                queries=query_vectors(self.champion, requests.frame["text"]),
                advance=reliving.advance,
            )
        facts["as_of"] = live.as_of if settings.steps.state else told["since"]
        facts["new_items"] = 0
        if settings.steps.items and len(items := told_items(self.ingest, live.catalogue)):
            facts["new_items"] = len(items)
            live, last = self._grown(frame, items, window)
        live.covisitation = last
        state = out / "features"
        if settings.steps.state:  # after the window, of which what is told now says too much
            tell_users(self.ingest, live)
        if settings.steps.state or facts["new_items"]:
            state.mkdir()
            live.save(state)
        else:
            shutil.copytree(self.bundle / "features", state)
            (state / "covisitation.safetensors").unlink()
            last.save(state / "covisitation.safetensors")
        return facts

    def _grown(
        self, frame: pl.DataFrame, items: pa.Table, window: Window
    ) -> tuple[LiveFeatures, CoVisitation]:
        """The state that is published, with new items from the first of the new events on.

        The one that was lived through does not know them: champion and challenger are compared on
        items that both have.
        """
        with task("learn: new items") as growing:
            encode = encoder_of(self.champion.features)
            live = grown(LiveFeatures.load(self.bundle / "features"), items, encode)
            events = numbered(frame, live, self.features.group_by)
            _, last = self._neighbourhoods(live, events, window)
            if self.settings.steps.state:
                live.apply(events)
            else:  # that one has met the users and sessions of events that it does not count
                live = grown(LiveFeatures.load(self.bundle / "features"), items, encode)
            growing.note = f"{len(items):,}"
        return live, last

    def _neighbourhoods(
        self, live: LiveFeatures, events: Any, window: Window
    ) -> tuple[Neighbourhoods, CoVisitation]:
        """As they were, before each part, and after all: see `advance`."""
        champion = live.covisitation
        if not self.settings.steps.covisitation:
            return Neighbourhoods(champion, (champion,) * 3), champion
        told = self.features.covisitation
        count = count_orders(
            self.ingest / "events", live.catalogue, self.features.group_by, window.since
        )
        near, made = champion, []
        cuts = np.searchsorted(events.time, [window.since, *window.bounds])
        for low, high in pairwise(cuts):
            orders, items = events.order[low:high], events.item[low:high]
            try:
                near, count = advance(
                    *(near, count, orders, items),
                    k=told.k,
                    min_count=told.min_count,
                    shrinkage=told.shrinkage,
                )
            except ValueError as error:
                raise UserError(
                    f"items bought together cannot go on: {error}",
                    where=str(self.ingest),
                    mend="ingest the log that the champion was trained on, with what came since; "
                    "or leave it out (steps.covisitation: false)",
                ) from None
            made.append(near)
        return Neighbourhoods(champion, tuple(made[:3])), made[3]

    def _tune(self, name: str, out: Path) -> dict[str, Any]:
        """One learner goes on from its weights, on the tune part alone."""
        model = self.champion.learners.get(name)
        if model is None:
            there = ", ".join(self.champion.learners)
            raise UserError(
                f"the champion has no learner {name!r}",
                where="steps.learners",
                mend=f"it has {there}",
            )
        requests = self.told["relived"]["requests"]["tune"]
        if requests < self.settings.window.min_requests:
            return {"changed": False, "why": f"{requests:,} requests teach too little"}
        told = self.settings.steps.learners[name]
        chosen = self.champion.manifest.settings.get("chosen", {}).get(name, {})
        learner = make_learner(name, chosen, where=f"steps.learners.{name}")
        context = Context(
            *(self.champion.features.catalogue, out, self.settings.seed),
            Resources(cpus_per_worker=_cpus()),
        )
        with task(f"learn: {name}") as tuning:
            tuned = learner.resume(
                model, self.examples(AFTER, TUNE), context, told.steps, told.rate
            )
            tuning.note = f"{requests:,} requests" if tuned is not model else "stays as it is"
        if tuned is model:
            return {"changed": False, "why": "more of it ranked no better where it was watched"}
        (out / "model").mkdir()
        tuned.save(out / "model")
        return {"changed": True, "requests": requests}

    def _label_window(self) -> int:
        """How long after a request its labels may still change, ms."""
        told = self.features.model_dump(mode="json", by_alias=True)
        return label_window_ms(Manifest(stage="features", settings=told))

    def _blend(self, out: Path) -> dict[str, Any]:
        """The ensemble's weights anew, on scores of learners that did not see the blend part."""
        told = self.settings.steps.ensemble
        assert told is not None
        requests = self.told["relived"]["requests"]["blend"]
        if requests < self.settings.window.min_requests:
            return {"changed": False, "why": f"{requests:,} requests teach too little"}
        settings = told.settings or EnsembleSettings.model_validate(
            self.champion.manifest.settings.get("ensemble", {})
        )
        champion, models = self.champion.ensemble, self.models()
        examples = self.examples(AFTER, BLEND)
        batch = examples.batch()
        with task("learn: ensemble", len(models) + 1) as blending:
            base = {}
            for name, model in models.items():
                base[name] = base_score(name, model, batch, finite=False)
                blending.advance()
            scores = BaseScores.of(batch, BLEND, base)
            scores.write(out / SCORES)
            lost = unsound(scores.only(champion.families))
            families = {n: f for n, f in champion.families.items() if n not in lost}
            if not families or not len(scores.judgements.relevant):
                return {"changed": False, "why": "nothing can be learned from these requests"}
            beside = beside_of(examples, batch, settings, self._label_window())
            try:
                bench = bench_of(scores, families, settings, beside)
                ensemble = fit_on(bench, families)
            except ValueError as error:
                return {"changed": False, "why": str(error)}
            whole = ensemble.fallbacks["full"]
            mine = bench.trial(whole.method, whole.members).values
            judged = Judgements.of(batch)
            theirs = ndcg(
                judged,
                judged.ranks(champion.score(base, batch.offsets, batch).score),
                settings.k,
            )[evenly(batch.n_requests, settings.max_requests)]
            blending.note = whole.method.replace("_", " ")
        facts = {
            "requests": requests,
            "method": whole.method,
            "held_out": _mean(mine),
            "champions": _mean(theirs),
            "lost": lost,
        }
        if told.keep_unless_better and within_errors(mine - theirs, 1):
            return {**facts, "changed": False, "why": "new weights were not surely better"}
        ensemble.save(out / "ensemble.json")
        return {**facts, "changed": True}


def _mean(values: Any) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _cpus() -> float:
    return float(min(8, os.cpu_count() or 1))
