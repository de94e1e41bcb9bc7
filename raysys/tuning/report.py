"""What a search found: a page of tables and plots, and the best settings as YAML for `train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysys.config import dump_yaml
from raysys.learners import learner_class
from raysys.report import Report
from raysys.storage import write_atomic
from raysys.tuning import plots
from raysys.tuning.ensemble import ENSEMBLE
from raysys.tuning.metrics import LATENCY, SIZE
from raysys.tuning.settings import TuneSettings
from raysys.tuning.space import NAMESPACES, Choice, Parameter, merged, of_namespace, told
from raysys.tuning.study import COMPLETE, FAILED, INFEASIBLE, STOPPED, Trial, best_of


@dataclass
class Found:
    """All that a search has to show.

    Attributes:
        settings: the YAML.
        trials: of the search.
        cpus: that each trial held.
        gpus: that each trial held.
        random: trials of the random search beside it; empty: none was asked for.
        full: the best refitted on everything; empty: the proxy decided.
    """

    settings: TuneSettings
    trials: list[Trial]
    cpus: float = 1.0
    gpus: float = 0.0
    random: list[Trial] = field(default_factory=list)
    full: list[Trial] = field(default_factory=list)

    @property
    def studies(self) -> dict[str, list[Trial]]:
        """Trials by study, of those that there are."""
        found = {"search": self.trials, "random": self.random, "full": self.full}
        return {name: trials for name, trials in found.items() if trials}

    @property
    def chosen_among(self) -> list[Trial]:
        """The trials whose figures decide."""
        return self.full or self.trials

    @property
    def best(self) -> Trial:
        """The trial whose settings are taken."""
        return best_of(self.chosen_among, self.settings.objective)

    def cost(self, trials: Sequence[Trial]) -> float:
        """Core-seconds."""
        return sum(trial.seconds for trial in trials) * self.cpus


def write_best(path: Path, found: Found) -> None:
    """Write the settings of the best trial as YAML, as `train` takes it.

    Beside the learner's settings, under its name, it holds what of the rows was searched (`data`)
    and of `raysys features` (`features`).
    """
    best, settings = found.best, found.settings
    own = merged(settings.settings, of_namespace(best.values, ""))
    if best.steps is not None and settings.learner != ENSEMBLE:
        own[learner_class(settings.learner).steps] = best.steps
    content: dict[str, Any] = {settings.learner: own}
    for name in NAMESPACES:
        if values := of_namespace(best.values, name):
            content[name] = merged({}, values)
    among = f"the best of {len(found.trials)} trials"
    if found.full:
        among += ", refitted in full"
    head = (
        f"# {among[0].upper()}{among[1:]}: {settings.objective.metric} {best.score:.4f} on "
        f"{_judged_on(settings)}\n# (trial {best.number}). Written by `raysys tune`.\n"
    )
    write_atomic(path, head + dump_yaml(content))


def write_report(path: Path, found: Found) -> None:
    """Write the page: figures, the course of the search, what matters, all trials, failures."""
    settings, trials = found.settings, found.trials
    goal, space = settings.objective, settings.space
    best = best_of(trials, goal)
    complete = [trial for trial in trials if trial.state == COMPLETE]
    better = "higher" if goal.sign > 0 else "lower"
    page = Report(
        f"Search: {settings.folder_name}", f"{goal.metric} on {_judged_on(settings)}; {better} is "
        f"better. Proposed by {settings.searcher.kind}, stopped by {settings.scheduler.kind}.",
    )  # fmt: skip
    page.section("Outcome").facts(_facts(found)).table(
        ["setting", "best", "searched"],
        [[name, told(found.best.values[name]), _range(space[name])] for name in space],
    )
    course = {name: each for name, each in found.studies.items() if name != "full"}
    page.section("Course").plot(
        plots.course(course, goal, found.cpus),
        "Each dot a completed trial, the line the best so far, against what trials cost."
        + (" Grey: at random, at the same cost, nobody stopped early." if found.random else ""),
    )
    if found.full:
        page.section("In full").text(
            "The best of the search and the learner's own settings, fitted and judged on "
            "everything; the choice goes by these figures."
        ).table(
            *_trials(found.full, found), strong=[_order(found.full, goal.sign).index(found.best)]
        )
    if len(complete) > 1:
        page.section("Parallel coordinates").plot(
            plots.parallel(space, complete, goal), "A line a trial; the best is marked."
        )
    shares = plots.importance(space, complete, settings.seed)
    if len(shares) > 1:
        page.section("What matters").plot(
            plots.important(shares),
            f"fANOVA over {len(complete)} completed trials: of few trials a hint, not a proof.",
        )
    page.section("Settings").plot(
        plots.settings(space, complete, best, goal.metric),
        "Each setting against the score; the best is marked.",
    )
    if any(trial.tail for trial in trials):
        page.section("Fits").plot(
            plots.fits(trials, best, "on validation" if settings.text else plots.TAIL),
            (
                "What the task is judged by (macro F1, micro F1 or NDCG@10, before thresholds) on "
                "the validation texts"
                if settings.text
                else "NDCG@10 on the tail of the fitted rows"
            )
            + " as each fit went on; by it trials are stopped early (grey).",
        )
    order = _order(trials, goal.sign)
    page.section("Trials").table(*_trials(trials, found), strong=[order.index(best)])
    failed = [
        trial for each in found.studies.values() for trial in each
        if trial.state in (FAILED, INFEASIBLE)
    ]  # fmt: skip
    if failed:
        page.section("Failures and broken constraints").table(
            ["trial", "state", "reason"],
            [[str(trial.number), trial.state, trial.error] for trial in failed],
        )
    page.write(path)


def _judged_on(settings: TuneSettings) -> str:
    return "the validation fold" if settings.text is None else f"validation of {settings.text}"


def _facts(found: Found) -> list[tuple[str, object]]:
    """The large figures."""
    goal, trials = found.settings.objective, found.trials
    first = next(trial for trial in trials if trial.state == COMPLETE)
    count = {
        state: sum(trial.state == state for trial in trials)
        for state in (STOPPED, INFEASIBLE, FAILED)
    }
    facts: list[tuple[str, object]] = [
        (f"best {goal.metric}", f"{best_of(trials, goal).score:.4f}"),
        (f"first completed (trial {first.number})", f"{first.score:.4f}"),
    ]
    able = [trial for trial in found.random if trial.state == COMPLETE]
    if able:
        facts.append(("best at random, same cost", f"{best_of(able, goal).score:.4f}"))
    facts += [("trials", len(trials)), ("stopped early", count[STOPPED])]
    if found.settings.constraints:
        facts.append(("broke a constraint", count[INFEASIBLE]))
    facts += [("failed", count[FAILED]), ("core-seconds", round(found.cost(trials)))]
    if found.gpus:
        facts.append(("GPU-seconds", round(found.cost(trials) / found.cpus * found.gpus)))
    if found.full:
        facts.insert(0, (f"{goal.metric} in full", f"{found.best.score:.4f}"))
        facts.append(("core-seconds in full", round(found.cost(found.full))))
    return facts


def _order(trials: Sequence[Trial], sign: float) -> list[Trial]:
    """The best first; then those that broke a constraint, were stopped, failed."""
    states = {COMPLETE: 0, INFEASIBLE: 1, STOPPED: 2, FAILED: 3}
    return sorted(trials, key=lambda t: (states[t.state], -sign * (t.score or 0.0), t.number))


def _trials(trials: Sequence[Trial], found: Found) -> tuple[list[str], list[list[object]]]:
    """Headers and rows of a table of trials."""
    names, metric = list(found.settings.space), found.settings.objective.metric
    costs = [name for name in (LATENCY, SIZE) if any(name in trial.metrics for trial in trials)]
    bred = any(trial.steps is not None for trial in trials)
    headers = [
        "trial",
        "state",
        metric,
        "core-seconds",
        *costs,
        *(["steps"] if bred else []),
        *names,
    ]
    rows: list[list[object]] = [
        [
            str(trial.number) if trial.parent is None else f"{trial.number} from {trial.parent}",
            trial.state,
            "" if trial.score is None else f"{trial.score:.4f}",
            f"{trial.seconds * found.cpus:.1f}",
            *(f"{trial.metrics[name]:.3g}" if name in trial.metrics else "" for name in costs),
            *([str(trial.steps or "")] if bred else []),
            *(told(trial.values.get(name)) for name in names),
        ]
        for trial in _order(trials, found.settings.objective.sign)
    ]
    return headers, rows


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return " or ".join(told(value) for value in parameter.grid(0))
    scale = ", logarithmic" if parameter.log else ""
    return f"from {told(parameter.low)} to {told(parameter.high)}{scale}"
