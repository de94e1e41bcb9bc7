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
from raysys.errors import UserError
from raysys.learners.full_ranking import survey
from raysys.learners.sequence_popularity import popularity
from raysys.learners.sequence_protocol import (
    ItemFacts,
    SequenceContext,
    SequenceModel,
    Sequences,
    batches,
)
from raysys.learners.sequences import make_sequence_learner
from raysys.progress import task
from raysys.stages.next_item_members import MENUS, TRANSFORMERS, Member
from raysys.stages.next_item_problem import Cases, Int64, Problem
from raysys.stages.next_item_report import figures_of

log = logging.getLogger("raysys")


TRIAL = 0.1
"""Of the time for transformers, for each that is tried."""
FEW_EPOCHS, MANY_EPOCHS = 12, 40
"""With fewer in all, one transformer gets all the time; with more, several are tried."""

SPECTRAL = 4e8
"""Items times the square of the width, a minute given: with more, their vectors start at random."""
WHOLE = 1.2
"""Times as much is learned from whole sequences as from their ends, or ends are enough."""

MAX_EPOCHS = 80.0
TOP = 50
TUNING_CASES = 1000
VALIDATION_CASES = 10_000
PROBE = 256
"""Cases on which the pace of scoring is measured, and the first that are judged."""
CHUNK, LEAST_PIECE = 4096, 32
HASTE = 1.2
"""How much slower than the piece before the next may be, for its end to be in time."""
FITTING, TREES = 0.13, 0.06
"""Of all the time, for fitting the ensemble and the members again; its trees' part of it."""
FOR_VALIDATION = 0.2
"""Of what is left after the neighbours, at most, to score validation and fit the ensemble on it."""


@dataclass
class Trial:
    """One run of the benchmark.

    Args:
        problem: what is ranked.
        minutes: that all of it may take.
        seed: of everything random.
        began: of `time.monotonic()`, when the command started: reading counts, too.
        keep: told the candidates of validation, and of each piece of the test cases as it is
            judged, with its cases and where the ensemble ranks the right item; None in validation.
    """

    problem: Problem
    minutes: float
    seed: int = 0
    began: float = field(default_factory=time.monotonic)
    keep: Callable[[Candidates, Cases, Int64 | None], None] = lambda *told: None
    members: dict[str, Member] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    pace: float = 0.0  # epochs a second of the transformer trained last
    needed: float = 0.0  # seconds for scoring the test cases, as measured on validation
    refitting: float = 0.0  # seconds for fitting the neighbours once more
    joined: int = 0  # validation cases that the ensemble is fitted on
    dropped: dict[str, str] = field(default_factory=dict)  # members that came to nothing, and why

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
        found = self._timed("test", lambda: self._judge(ensemble))
        found["counts"]["validation_cases_joined"] = self.joined
        return {
            **found,
            "seconds": round(time.monotonic() - self.began, 1),
            "seconds_by_part": self.spent,
            "dropped": self.dropped,
            "minutes": self.minutes,
            "seed": self.seed,
        }

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
        """Quality on the cases by which settings are chosen; NaN if a score is no number."""
        ranks = []
        for rows in batches(len(self.tuning), model.n_items):
            dense = model.score(self.tuning.prefixes.take(rows))
            if np.isnan(dense).any():
                return float("nan")
            ranks.append(survey(dense, self.tuning.targets[rows], 1)[2])
        return float(self.problem.quality(np.concatenate(ranks)).mean())

    def _neighbours(self) -> None:
        """What is popular, sessions and items that are near: their settings one by one."""
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
        self.refitting += longest
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
        width, longest = 96 if many else 64, int(np.clip(np.quantile(sizes, 0.98), 4, 50))
        half_life = 0.0
        if problem.fit.moment is not None:
            aged = self.members["session_knn"].make().settings.half_life
            half_life = max(aged, 0.1) if aged else 0.0
        return {
            "width": width,
            "start": "random" if n * width**2 > SPECTRAL * self.minutes else "spectral",
            "negatives": 0 if n <= 4000 else 3000 if many else 2000,
            "max_length": longest,
            "whole": bool(sizes.sum() > WHOLE * np.minimum(sizes, longest).sum()),
            "half_life": half_life,
            "epochs": MAX_EPOCHS,
        }

    def _transformers(self, deadline: float) -> None:
        """One or several for a while; the best goes on, and one that looks both ways beside it."""
        if deadline - time.monotonic() < 5:
            log.warning("no time for a transformer")
            return
        common = self._transformer_settings()
        self._compile("sequence_transformer", {**common, "epochs": 1, "start": "random"})
        time_left = deadline - time.monotonic()
        if time_left < 3:  # the first import of torch may take long
            log.warning("no time for a transformer")
            return
        tried: list[Member] = []
        epochs = 0.0  # that all the time is worth
        for choice in TRANSFORMERS:
            began = time.monotonic()
            found = self._kept("transformer", {**common, **choice}, began + TRIAL * time_left)
            if found is not None:
                tried.append(found)
            epochs = epochs or self.pace * time_left
            if epochs < MANY_EPOCHS:
                break
        if not tried:
            return
        self.dropped.pop("transformer", None)
        chosen = max(tried, key=lambda member: member.value)
        share = 1.0 if epochs < FEW_EPOCHS else 0.7
        until = time.monotonic() + share * (deadline - time.monotonic())
        self.members["transformer"] = self._trained(chosen.settings, until, chosen)
        if share < 1:
            other = {**chosen.settings, "objective": "masked"}
            masked = self._kept("masked_transformer", other, deadline)
            if masked is not None:
                self.members["masked_transformer"] = masked

    def _kept(self, name: str, settings: dict[str, Any], deadline: float) -> Member | None:
        """As `_trained`; None where nothing came of it, and why is told."""
        try:
            return self._trained(settings, deadline)
        except UserError as error:
            log.warning("%s: %s", name, error)
            self.dropped[name] = str(error)
            return None

    def _trained(
        self, settings: dict[str, Any], deadline: float, start: Member | None = None
    ) -> Member:
        """Trained to the deadline or to `MAX_EPOCHS`; what did best on validation is kept.

        Raises:
            UserError: it went astray before there was anything to keep.
        """
        began = time.monotonic()
        best: list[tuple[float, SequenceModel]] = []

        def watch(epoch: int, model: SequenceModel) -> None:
            whole = epoch - (time.monotonic() >= deadline)  # the last one may be broken
            self.pace = max(whole, 0.5) / (time.monotonic() - began)
            value = self._value(model)
            log.info("epoch %d: %.4f on validation", epoch, value)
            if np.isfinite(value) and (not best or value > best[0][0]):
                best[:] = [(value, model)]

        learner: Any = make_sequence_learner("sequence_transformer", settings)
        context = self._context(deadline, report=watch)
        try:
            if start is None:
                learner.fit(self.problem.fit, context)
            else:
                best.append((start.value, start.model))
                learner.resume(start.model, self.problem.fit, context, epochs=MAX_EPOCHS)
        except UserError as error:
            if not best:
                raise
            log.warning("a transformer ends before its time: %s", error)
        if not best:
            raise UserError(
                "its scores are no numbers",
                where="sequence_transformer",
                mend="take a lower learning_rate",
            )
        value, model = best[0]
        seconds = time.monotonic() - began + (start.seconds if start else 0)
        return Member("sequence_transformer", settings, model, value, seconds)

    def _reserve(self) -> float:
        """Seconds that scoring, the ensemble and fitting again will take, measured on few cases.

        Where that is much, the ensemble is fitted on fewer validation cases.
        """
        few = self.problem.validation.sample(PROBE, self.seed)
        models = {name: member.model for name, member in self.members.items()}
        first = few.take(np.arange(min(8, len(few))))
        self._collect(models, first)  # compiles
        began = time.monotonic()
        found, _ = self._collect(models, few)
        for _ in range(2):  # as a transformer would
            for rows in batches(len(few), self.problem.n_items):
                hidden = np.ones((len(rows), 96), dtype=np.float32)
                dense = hidden @ np.ones((96, self.problem.n_items), dtype=np.float32)
                survey(dense, np.zeros(len(rows), dtype=np.int32), TOP)
        each = (time.monotonic() - began) / len(few)
        joining = self._joining(found, few.group)
        affordable = int(FOR_VALIDATION * self.left / (1.5 * each + joining))
        self.joined = min(len(self.problem.validation), VALIDATION_CASES, max(affordable, PROBE))
        scoring = 1.5 * each * (len(self.problem.test) + self.joined)
        fitting = FITTING * 60 * self.minutes
        more = max(0.0, joining * self.joined - TREES * 60 * self.minutes)  # than `fitting` holds
        return min(scoring + self.refitting + fitting + more, 0.6 * self.left)

    def _joining(self, candidates: Candidates, group: Int64) -> float:
        """Seconds that fitting the ensemble takes for one case more: imports do not count."""
        half = np.arange(len(group) // 2)
        took = []
        for _ in range(2):  # the first time imports and compiles
            for part, of in ((candidates, group), (candidates.take(half), group[half])):
                began = time.monotonic()
                self._join(part, of, 0.0)
                took.append(time.monotonic() - began)
        return max(0.0, took[2] - took[3]) / max(1, len(group) - len(half))

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
        cases = self.problem.validation.sample(self.joined, self.seed)
        models = {name: member.model for name, member in self.members.items()}
        began = time.monotonic()
        with task("score validation", len(cases)) as shown:
            candidates, alone = self._collect(models, cases, advance=shown.advance)
        self.keep(candidates, cases, None)
        each = (time.monotonic() - began) / len(cases)
        self.needed = 1.15 * each * len(self.problem.test)
        for name, ranks in alone.items():
            self.members[name].value = float(self.problem.quality(ranks).mean())
        with task("fit the ensemble") as shown:
            found = self._join(candidates, cases.group, self._spare(TREES))
            shown.note = f"{found.method}: {found.figures}"
        return found

    def _join(self, candidates: Candidates, group: Int64, seconds: float) -> NextItemEnsemble:
        """The ensemble of all members; its trees grow for so many seconds."""
        deadline = time.monotonic() + seconds
        settings = StackSettings(k=self.problem.k, seed=self.seed, deadline=deadline)
        return fit_next_item(tuple(self.members), candidates, group, self.problem.quality, settings)

    def _refit(self) -> None:
        """Every member learns what validation asked for, too."""
        with task("fit members again on all of training", len(self.members)) as shown:
            for name, member in self.members.items():
                deadline = time.monotonic() + self._spare(0.03)
                context = self._context(deadline)
                try:
                    member.model = member.make().refit(member.model, self.problem.whole, context)
                except UserError as error:
                    log.warning("%s stays as it was fitted before: %s", name, error)
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
                mine = target_ranks(ensemble.score(found), found)
                self.keep(found, part, mine)
                ranks["ensemble"].append(mine)
                for name, each in alone.items():
                    ranks[name].append(each)
                done.append(rows)
                shown.advance(len(rows))
        judged = np.concatenate(done)
        together = {name: np.concatenate(each) for name, each in ranks.items()}
        group = test.group[judged]
        return figures_of(self.problem, self.members, ensemble, together, group, self.seed)

    def _chunks(self, n: int) -> Iterator[Int64]:
        """All cases in random order, in growing pieces, until the time is over; one at least."""
        order = np.random.default_rng(self.seed).permutation(n)
        size, start, pace = PROBE, 0, 0.0
        while start < n:
            began = time.monotonic()
            if start:  # the first piece is slow: what it did not find compiled tells of no other
                size = min(2 * size, CHUNK, int((self.end - began) / (HASTE * pace + 1e-9)))
            if size < LEAST_PIECE and n - start > size:
                log.warning("the time is over: %s of %s test cases are judged", start, n)
                return
            piece = order[start : start + size]
            yield piece
            pace = (time.monotonic() - began) / len(piece)
            start += len(piece)


def _profiles(facts: ItemFacts, n_items: int) -> Any:
    """Attributes as sparse unit rows, float32[n_items, a]; None where none are known."""
    if facts.attributes is None or facts.attribute_offsets is None:
        return None
    from scipy.sparse import csr_matrix

    sizes = np.diff(facts.attribute_offsets)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes).astype(np.float32)
    shape = (n_items, facts.n_attributes)
    return csr_matrix((values, facts.attributes, facts.attribute_offsets), shape)
