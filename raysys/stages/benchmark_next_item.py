"""What both benchmarks of the next item share: settings chosen on validation, members, ensemble.

Nothing is tuned by hand and nothing looks at the test cases before the end. The time is planned
from what the machine does: scoring is measured on a few cases first, what it will take is set
aside, and training gets the rest. If that still does not do, fewer test cases are judged, drawn
evenly, and the answer says how many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysys.ensemble.next_item import (
    Candidates,
    NextItemEnsemble,
    PlainFacts,
    StackSettings,
    collect,
    fit_next_item,
    target_ranks,
)
from raysys.evaluation.intervals import Bootstrap
from raysys.learners.full_ranking import survey
from raysys.learners.sequence_popularity import popularity
from raysys.learners.sequence_protocol import (
    ItemFacts,
    SequenceContext,
    SequenceLearner,
    SequenceModel,
    Sequences,
    batches,
)
from raysys.learners.sequences import make_sequence_learner
from raysys.progress import task
from raysys.stages.next_item_problem import Cases, Int64, Problem

log = logging.getLogger("raysys")


MENUS: dict[str, dict[str, tuple[Any, ...]]] = {
    "session_knn": {
        "half_life": (0.06, 0.5, 0.0),
        "again": (1.0, 0.0, 2.0),
        "prefix_decay": (0.8, 3.0),
        "backward": (0.3, 1.0),
        "distance_decay": (1.0, 6.0),
        "length_power": (0.0, 0.5),
        "idf": (0.0, 1.0),
        "neighbours": (150, 1500),
    },
    "item_knn": {
        "half_life": (0.06, 0.5, 0.0),
        "popularity_power": (0.2, 0.6),
        "prefix_decay": (0.5, 0.85),
        "source_power": (0.2, 0.8),
        "backward": (0.25, 1.0),
        "distance_decay": (0.5, 1.5),
    },
}
"""What is tried for the neighbours, one setting after another, the weightier ones first."""

TRANSFORMERS: tuple[dict[str, Any], ...] = (
    {"dropout": 0.3, "item_dropout": 0.4},
    {"dropout": 0.1, "item_dropout": 0.2},
    {"dropout": 0.5, "item_dropout": 0.5},
)
"""What is tried for the transformer, each for a short while; the first if there is no time to."""

TRIAL = 0.1
"""Of the time for transformers, for each that is tried."""
FEW_EPOCHS, MANY_EPOCHS = 12, 40
"""With fewer in all, one transformer gets all the time; with more, several are tried."""

MAX_EPOCHS = 80.0
TOP = 50
TUNING_CASES = 1000
VALIDATION_CASES = 10_000
CHUNK = 4096


@dataclass
class Member:
    """A learner with chosen settings, its model, and how it did on validation."""

    learner: str
    settings: dict[str, Any]
    model: SequenceModel
    value: float
    seconds: float

    def make(self) -> SequenceLearner[Any]:
        """The learner."""
        return make_sequence_learner(self.learner, self.settings)


@dataclass
class Trial:
    """One run of the benchmark.

    Args:
        problem: what is ranked.
        minutes: that all of it may take.
        seed: of everything random.
        began: of `time.monotonic()`, when the command started: reading counts, too.
    """

    problem: Problem
    minutes: float
    seed: int = 0
    began: float = field(default_factory=time.monotonic)
    members: dict[str, Member] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    pace: float = 0.0  # epochs a second of the transformer trained last
    needed: float = 0.0  # seconds for scoring the test cases, as measured on validation

    def __post_init__(self) -> None:
        self.end = self.began + 60 * self.minutes
        self.tuning = self.problem.validation.sample(TUNING_CASES, self.seed)

    def run(self) -> dict[str, Any]:
        """All of it; the report as JSON can say it."""
        self._timed("neighbours", self._neighbours)
        reserve = self._reserve()
        log.info("%.0f s are set aside for scoring and the ensemble", reserve)
        self._timed("transformers", lambda: self._transformers(self.end - reserve))
        ensemble = self._timed("ensemble", self._ensemble)
        self._timed("refit", self._refit)
        return self._timed("test", lambda: self._judge(ensemble))

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        found = work()
        self.spent[name] = round(time.monotonic() - began, 1)
        return found

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def _spare(self, share: float) -> float:
        """Seconds for one more step: a share of all, less if scoring the test cases needs them."""
        return min(share * 60 * self.minutes, max(1.0, (self.left - self.needed) / 2))

    def _context(self, deadline: float = float("inf"), **more: Any) -> SequenceContext:
        problem = self.problem
        return SequenceContext(problem.n_items, problem.facts, self.seed, deadline, **more)

    def _value(self, model: SequenceModel) -> float:
        """Quality on the cases by which settings are chosen."""
        ranks = []
        for rows in batches(len(self.tuning), model.n_items):
            dense = model.score(self.tuning.prefixes.take(rows))
            ranks.append(survey(dense, self.tuning.targets[rows], 1)[2])
        return float(self.problem.quality(np.concatenate(ranks)).mean())

    def _neighbours(self) -> None:
        """Popularity as it is; sessions and items that are near, their settings one by one."""
        began = time.monotonic()
        plain = make_sequence_learner("recent_popularity", {}).fit(
            self.problem.fit, self._context()
        )
        value, took = self._value(plain), time.monotonic() - began
        self.members["recent_popularity"] = Member("recent_popularity", {}, plain, value, took)
        for name, menu in MENUS.items():
            deadline = time.monotonic() + 0.05 * 60 * self.minutes
            self.members[name] = self._searched(name, menu, deadline)

    def _searched(self, name: str, menu: dict[str, tuple[Any, ...]], deadline: float) -> Member:
        self._compile(name, {})
        began = time.monotonic()
        best = self._tried(name, {})
        timed = self.problem.fit.moment is not None
        choices = [
            (setting, value)
            for setting, values in menu.items()
            for value in values
            if timed or setting != "half_life"
        ]
        longest = time.monotonic() - began
        with task(f"choose settings of {name}", len(choices)) as shown:
            for setting, value in choices:
                start = time.monotonic()
                if start + longest > deadline:
                    break
                found = self._tried(name, {**best.settings, setting: value})
                longest = max(longest, time.monotonic() - start) if shown.done else longest
                if found.value > best.value:
                    best = found
                shown.advance()
            shown.note = f"{best.value:.4f} with {best.settings or 'the defaults'}"
        best.seconds = time.monotonic() - began
        return best

    def _compile(self, name: str, settings: dict[str, Any]) -> None:
        """A fit and a score of next to nothing: compiling is no part of what a try takes."""
        fit = self.problem.fit
        few = fit.take(np.flatnonzero(fit.sizes > 1)[:8])
        model = make_sequence_learner(name, settings).fit(few, self._context())
        model.score(few.take(np.arange(1)))

    def _tried(self, name: str, settings: dict[str, Any]) -> Member:
        began = time.monotonic()
        model = make_sequence_learner(name, settings).fit(self.problem.fit, self._context())
        value = self._value(model)
        return Member(name, settings, model, value, time.monotonic() - began)

    def _transformer_settings(self) -> dict[str, Any]:
        """What follows from the data: sizes, and how fast sequences age."""
        problem = self.problem
        n, sizes = problem.n_items, problem.fit.sizes
        many = n > 20_000
        half_life = 0.0
        if problem.fit.moment is not None:
            aged = self.members["session_knn"].make().settings.half_life
            half_life = max(aged, 0.1) if aged else 0.0
        return {
            "width": 96 if many else 64,
            "negatives": 0 if n <= 4000 else 3000 if many else 2000,
            "max_length": int(np.clip(np.quantile(sizes, 0.98), 4, 50)),
            "half_life": half_life,
            "epochs": MAX_EPOCHS,
        }

    def _transformers(self, deadline: float) -> None:
        """One or several for a while; the best goes on, and one that looks both ways beside it."""
        time_left = deadline - time.monotonic()
        if time_left < 5:
            log.warning("no time for a transformer")
            return
        common = self._transformer_settings()
        self._compile("sequence_transformer", {**common, "epochs": 1, "start": "random"})
        tried: list[Member] = []
        epochs = 0.0  # that all the time is worth
        for choice in TRANSFORMERS:
            began = time.monotonic()
            tried.append(self._trained({**common, **choice}, began + TRIAL * time_left))
            epochs = epochs or self.pace * time_left
            if epochs < MANY_EPOCHS:
                break
        chosen = max(tried, key=lambda member: member.value)
        share = 1.0 if epochs < FEW_EPOCHS else 0.7
        until = time.monotonic() + share * (deadline - time.monotonic())
        self.members["transformer"] = self._trained(chosen.settings, until, chosen)
        if share < 1:
            other = {**chosen.settings, "objective": "masked"}
            self.members["masked_transformer"] = self._trained(other, deadline)

    def _trained(
        self, settings: dict[str, Any], deadline: float, start: Member | None = None
    ) -> Member:
        """Trained to the deadline or to `MAX_EPOCHS`; what did best on validation is kept."""
        began = time.monotonic()
        best: list[tuple[float, SequenceModel]] = []

        def watch(epoch: int, model: SequenceModel) -> None:
            whole = epoch - (time.monotonic() >= deadline)  # the last one may be broken
            self.pace = max(whole, 0.5) / (time.monotonic() - began)
            value = self._value(model)
            log.info("epoch %d: %.4f on validation", epoch, value)
            if not best or value > best[0][0]:
                best[:] = [(value, model)]

        learner: Any = make_sequence_learner("sequence_transformer", settings)
        context = self._context(deadline, report=watch)
        if start is None:
            learner.fit(self.problem.fit, context)
        else:
            best.append((start.value, start.model))
            learner.resume(start.model, self.problem.fit, context, epochs=MAX_EPOCHS)
        value, model = best[0]
        seconds = time.monotonic() - began + (start.seconds if start else 0)
        return Member("sequence_transformer", settings, model, value, seconds)

    def _reserve(self) -> float:
        """Seconds that scoring, the ensemble and fitting again will take, measured on few cases."""
        few = self.problem.validation.sample(256, self.seed)
        models = {name: member.model for name, member in self.members.items()}
        self._collect(models, few.take(np.arange(min(8, len(few)))))  # compiles
        began = time.monotonic()
        self._collect(models, few)
        for _ in range(2):  # as a transformer would
            for rows in batches(len(few), self.problem.n_items):
                hidden = np.ones((len(rows), 96), dtype=np.float32)
                dense = hidden @ np.ones((96, self.problem.n_items), dtype=np.float32)
                survey(dense, np.zeros(len(rows), dtype=np.int32), TOP)
        each = (time.monotonic() - began) / len(few)
        asked = len(self.problem.test) + min(len(self.problem.validation), VALIDATION_CASES)
        return min(1.5 * each * asked + 0.13 * 60 * self.minutes, 0.6 * self.left)

    def _facts(self, train: Sequences) -> PlainFacts:
        problem, n = self.problem, self.problem.n_items
        return PlainFacts(
            popularity(train, n, 0.0), popularity(train, n, 0.02), _profiles(problem.facts, n)
        )

    def _collect(
        self,
        models: dict[str, SequenceModel],
        cases: Cases,
        train: Sequences | None = None,
        advance: Callable[[int], None] = lambda done: None,
    ) -> tuple[Candidates, dict[str, Int64]]:
        facts = self._facts(train or self.problem.fit)
        return collect(models, cases.prefixes, facts, cases.targets, top=TOP, advance=advance)

    def _ensemble(self) -> NextItemEnsemble:
        """Fitted on validation with the models that did not see it."""
        cases = self.problem.validation.sample(VALIDATION_CASES, self.seed)
        models = {name: member.model for name, member in self.members.items()}
        began = time.monotonic()
        with task("score validation", len(cases)) as shown:
            candidates, alone = self._collect(models, cases, advance=shown.advance)
        each = (time.monotonic() - began) / len(cases)
        self.needed = 1.15 * each * len(self.problem.test)
        for name, ranks in alone.items():
            self.members[name].value = float(self.problem.quality(ranks).mean())
        settings = StackSettings(
            k=self.problem.k,
            seed=self.seed,
            deadline=time.monotonic() + self._spare(0.06),
        )
        with task("fit the ensemble") as shown:
            found = fit_next_item(
                tuple(models), candidates, cases.group, self.problem.quality, settings
            )
            shown.note = f"{found.method}: {found.figures}"
        return found

    def _refit(self) -> None:
        """Every member learns what validation asked for, too."""
        with task("fit members again on all of training", len(self.members)) as shown:
            for member in self.members.values():
                deadline = time.monotonic() + self._spare(0.03)
                context = self._context(deadline)
                member.model = member.make().refit(member.model, self.problem.whole, context)
                shown.advance()

    def _judge(self, ensemble: NextItemEnsemble) -> dict[str, Any]:
        """All test cases, or as many as there is time for."""
        test = self.problem.test
        models = {name: member.model for name, member in self.members.items()}
        ranks: dict[str, list[Int64]] = {name: [] for name in (*models, "ensemble")}
        done = []
        with task("score the test cases", len(test)) as shown:
            for rows in self._chunks(len(test)):
                part = test.take(rows)
                found, alone = self._collect(models, part, self.problem.whole)
                ranks["ensemble"].append(target_ranks(ensemble.score(found), found))
                for name, each in alone.items():
                    ranks[name].append(each)
                done.append(rows)
                shown.advance(len(rows))
        judged = np.concatenate(done)
        together = {name: np.concatenate(each) for name, each in ranks.items()}
        return self._report(ensemble, together, test.group[judged])

    def _chunks(self, n: int) -> Iterator[Int64]:
        """All cases in random order, in pieces, until the time is over; one piece at least."""
        order = np.random.default_rng(self.seed).permutation(n)
        longest = 0.0
        for start in range(0, n, CHUNK):
            began = time.monotonic()
            if start and began + longest > self.end:
                log.warning("the time is over: %s of %s test cases are judged", start, n)
                return
            yield order[start : start + CHUNK]
            longest = max(longest, time.monotonic() - began)

    def _report(
        self, ensemble: NextItemEnsemble, ranks: dict[str, Int64], group: Int64
    ) -> dict[str, Any]:
        problem = self.problem
        draws = Bootstrap(group, seed=self.seed)
        values = {
            name: {measure.name: measure.of(rank) for measure in problem.measures}
            for name, rank in ranks.items()
        }
        told = {
            name: {m: draws.mean(value).to_dict() for m, value in of.items()}
            for name, of in values.items()
        }
        main = problem.measures[0].name
        best = max(self.members, key=lambda name: told[name][main]["value"] or 0.0)
        gain = {
            m: draws.difference(value, values[best][m]).to_dict()
            for m, value in values["ensemble"].items()
        }
        return {
            "counts": {**problem.counts, "test_cases_judged": len(group)},
            "members": {
                name: {
                    **told[name],
                    "validation": member.value,
                    "seconds": round(member.seconds, 1),
                    "learner": member.learner,
                    "settings": member.settings,
                }
                for name, member in self.members.items()
            },
            "ensemble": {
                **told["ensemble"],
                "method": ensemble.method,
                "weights": dict(zip(ensemble.members, ensemble.weights.tolist(), strict=True)),
                "validation": ensemble.figures,
            },
            "best_member": best,
            "gain": gain,
            "seconds": round(time.monotonic() - self.began, 1),
            "seconds_by_part": self.spent,
            "minutes": self.minutes,
            "seed": self.seed,
        }


def _profiles(facts: ItemFacts, n_items: int) -> Any:
    """Attributes as sparse unit rows, float32[n_items, a]; None where none are known."""
    if facts.attributes is None or facts.attribute_offsets is None:
        return None
    from scipy.sparse import csr_matrix

    sizes = np.diff(facts.attribute_offsets)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes).astype(np.float32)
    shape = (n_items, facts.n_attributes)
    return csr_matrix((values, facts.attributes, facts.attribute_offsets), shape)
