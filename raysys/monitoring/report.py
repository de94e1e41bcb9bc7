"""What `raysys monitor report` found, as a page and as JSON."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysys.features.drift_plots import histograms
from raysys.monitoring.drift import DriftFigures
from raysys.monitoring.feedback import Feedback, QueryFacts, SurfaceFacts
from raysys.monitoring.rates import WITHIN_MINUTES
from raysys.monitoring.reference import KINDS
from raysys.monitoring.words import day, level, name, of, percent
from raysys.report import COLOURS, Report, Section, new_figure
from raysys.storage import write_atomic

_PLOTS, _BARS = 6, 20


@dataclass(frozen=True)
class Findings:
    """Everything the page shows.

    Attributes:
        bundle: id of the bundle that was served.
        since, until: UTC ms, the window.
        drift: of features and scores; None: nothing was counted.
        over_time: the same by parts of the window, in order.
        feedback: what came of the lists; None: none were recorded.
        notes: what could not be told, and why.
        labels: of the training, see `Reference`.
    """

    bundle: str
    since: int
    until: int
    drift: DriftFigures | None
    over_time: Sequence[DriftFigures] = ()
    feedback: Feedback | None = None
    notes: tuple[str, ...] = ()
    labels: Mapping[str, float] = field(default_factory=dict)

    @property
    def drifted(self) -> bool:
        """Whether features, scores or outcomes moved by more than they may."""
        moved = self.drift is not None and self.drift.drifted
        return moved or (self.feedback is not None and self.feedback.drifted)

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it in plain sentences."""
        told = [each.sentence for each in (self.drift, self.feedback) if each is not None]
        return (*told, *self.notes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "bundle": self.bundle,
            "since": self.since,
            "until": self.until,
            "drifted": self.drifted,
            "sentences": list(self.sentences),
            "labels_of_training": dict(self.labels),
            "drift": None if self.drift is None else self.drift.to_dict(),
            "over_time": [
                {
                    "since": each.window.since,
                    "until": each.window.until,
                    "requests": each.window.tally.requests,
                    "max_psi": {kind: each.psi_of(kind) for kind in KINDS},
                }
                for each in self.over_time
            ],
            "feedback": None if self.feedback is None else self.feedback.to_dict(),
        }


def write(findings: Findings, folder: Path) -> None:
    """Write `monitor.json` and `report.html` into `folder`."""
    content = json.dumps(findings.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / "monitor.json", content + "\n")
    page = Report(
        "What is served, watched",
        f"Bundle {findings.bundle}, {day(findings.since)} to {day(findings.until)} UTC.",
    )
    section = page.section("In short")
    section.facts(_facts(findings))
    for sentence in findings.sentences:
        section.text(sentence)
    if findings.drift is not None:
        _drift(page, findings.drift, findings.over_time)
    if findings.feedback is not None:
        _outcomes(page, findings.feedback)
        _surfaces(page, findings.feedback)
        _positions(page, findings.feedback)
        _queries(page, findings.feedback)
    _method(page, findings)
    page.write(folder / "report.html")


def _facts(findings: Findings) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("drift", "yes" if findings.drifted else "no")]
    drift, told = findings.drift, findings.feedback
    if drift is not None:
        facts += [
            ("answers whose features were counted", f"{drift.window.tally.requests:,}"),
            ("people who asked, about", f"{drift.people:,.0f}"),
            ("largest PSI of a feature", f"{drift.psi_of('feature'):.2f}"),
            ("largest PSI of a score", f"{drift.psi_of('score'):.2f}"),
            ("features that moved far", f"{drift.share_over:.0%}"),
        ]
    if told is not None:
        facts += [
            ("lists answered", f"{told.lists:,}"),
            ("events that came back", f"{told.events:,}"),
        ]
    return facts


def _drift(page: Report, drift: DriftFigures, over_time: Sequence[DriftFigures]) -> None:
    section = page.section("Drift of features and scores")
    section.text(
        f"From the validation fold of the training ({day(drift.reference[0])} to "
        f"{day(drift.reference[1])}) to what {drift.window.replicas} "
        f"replica{'s' * (drift.window.replicas > 1)} counted of {drift.surface} lists "
        f"({day(drift.window.since)} to {day(drift.window.until)})."
    )
    _bars(section, drift)
    if len(over_time) > 1:
        _line(section, over_time, drift.thresholds.psi)
    worst = [each for each in drift.moved if each.over][:_PLOTS] or list(drift.moved[:3])
    if worst:
        titles = [(f"{name(each)}  (PSI {each.psi:.2f})", each.histogram) for each in worst]
        histograms(section, titles, ("training", "served"))
    section.table(
        ["", "kind", "PSI", "level", "chance", "missing, training", "missing, served", "rows"],
        [
            [
                *(each.name, each.kind, f"{each.psi:.3f}", level(each), f"{each.chance:.3f}"),
                *(percent(each.missing[0]), percent(each.missing[1]), each.rows),
            ]
            for each in drift.moved
        ],
        strong=[at for at, each in enumerate(drift.moved) if each.over],
    )
    section.note(
        f"PSI: population stability index; from {drift.thresholds.psi:g} on drift is large. "
        "Chance: the 95% point of PSI when nothing drifts, for so many people; below it "
        "all is stable."
    )


def _bars(section: Section, drift: DriftFigures) -> None:
    shown = drift.moved[:_BARS][::-1]
    figure, axes = new_figure(9, 0.9 + 0.26 * len(shown))
    colours = {"large": COLOURS[4], "moderate": COLOURS[6], "stable": COLOURS[0]}
    axes.barh(
        [name(each) for each in shown],
        [each.psi for each in shown],
        color=[colours[each.level] for each in shown],
    )
    axes.axvline(drift.thresholds.psi, color=COLOURS[4], linewidth=1, linestyle="--")
    axes.set_xlabel("PSI")
    axes.grid(axis="y", visible=False)
    section.plot(
        figure, f"The {len(shown)} that moved furthest; the dashed line is where drift is large."
    )


def _line(section: Section, over_time: Sequence[DriftFigures], threshold: float) -> None:
    figure, axes = new_figure(9, 2.8)
    moments = [
        dt.datetime.fromtimestamp((each.window.since + each.window.until) / 2000, tz=dt.UTC)
        for each in over_time
    ]
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        values = [each.psi_of(kind) for each in over_time]
        axes.plot(moments, values, marker="o", markersize=4, color=colour, label=f"{kind}s")
    axes.axhline(threshold, color=COLOURS[4], linewidth=1, linestyle="--")
    axes.set_ylabel("largest PSI")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=2)
    figure.autofmt_xdate(rotation=30)
    section.plot(figure, "Over the window; with few answers in a part, chance alone lifts it.")


def _outcomes(page: Report, told: Feedback) -> None:
    if told.changes:
        section = page.section("Outcomes against before")
        section.text(told.sentence)
        section.table(
            ["surface", "outcome", "of slots", "against", "before", "now", "change", "z", "drift"],
            [
                [
                    *(each.surface, each.outcome, each.of, each.against),
                    *(percent(each.before, 2), percent(each.now, 2), f"{each.change:+.0%}"),
                    *(f"{each.z:+.1f}", "yes" if each.over else "no"),
                ]
                for each in told.changes
            ],
            strong=[at for at, each in enumerate(told.changes) if each.over],
        )
        section.note(
            f"Counted is what came within {WITHIN_MINUTES} minutes of a list, on both sides. z: "
            "the difference in standard errors, between people."
        )


def _surfaces(page: Report, told: Feedback) -> None:
    section = page.section("What was shown, and what came of it")
    if not told.surfaces:
        section.text("No list was answered in this time.")
        return
    outcomes = [each for each in ("click", "cart", "purchase") if any(
        each in facts.rates and facts.rates[each].done for facts in told.surfaces)]  # fmt: skip
    section.table(
        ["surface", "arm", "lists", "people", "shown", "seen", *(f"{o}s" for o in outcomes)],
        [_row(facts, outcomes) for facts in told.surfaces],
    )  # fmt: skip
    section.table(
        ["surface", "arm", "lists without an item", "items shown", "of the catalogue",
         "slots of the most shown 1%", "median ms", "p99 ms"],
        [
            [
                *(facts.surface, facts.arm or "–", facts.empty, facts.distinct),
                "–" if facts.coverage is None else percent(facts.coverage),
                *(percent(facts.top_share), f"{facts.p50_ms:.1f}", f"{facts.p99_ms:.1f}"),
            ]
            for facts in told.surfaces
        ],
    )  # fmt: skip
    for note in told.notes:
        section.note(note + ".")
    section.note("Shares of the slots that were shown, with 95% intervals between people.")


def _row(facts: SurfaceFacts, outcomes: Sequence[str]) -> list[object]:
    return [
        *(facts.surface, facts.arm or "–", facts.lists, facts.people, facts.slots),
        percent(facts.seen / facts.slots) if facts.slots else "–",
        *(of(facts.rates[each]) if each in facts.rates else "–" for each in outcomes),
    ]


def _positions(page: Report, told: Feedback) -> None:
    surfaces = sorted({each.surface for each in told.positions if each.clicks.slots})
    clicked = [s for s in surfaces if any(e.clicks.done for e in told.positions if e.surface == s)]
    if not clicked:
        return
    section = page.section("Clicks by position")
    figure, axes = new_figure(9, 3.2)
    for at, surface in enumerate(clicked):
        points = [each for each in told.positions if each.surface == surface]
        places = [each.position + 0.12 * at for each in points]
        values = [each.clicks.value for each in points]
        low = [each.clicks.value - each.clicks.low for each in points]
        high = [each.clicks.high - each.clicks.value for each in points]
        axes.errorbar(
            places, values, yerr=[low, high], marker="o", markersize=4, capsize=2,
            color=COLOURS[at % len(COLOURS)], label=surface,
        )  # fmt: skip
    axes.set_xlabel("position")
    axes.set_ylabel("clicked, of what was shown")
    axes.set_xticks(range(1, max(each.position for each in told.positions) + 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=4)
    section.plot(figure, "With 95% intervals between people. What stands higher is looked at more.")


def _queries(page: Report, told: Feedback) -> None:
    if not any((told.slow, told.empty, told.without_click)):
        return
    section = page.section("Queries")
    for title, queries, none in (
        ("Without results", told.empty, "Every query found something."),
        ("Asked often, never clicked", told.without_click, ""),
        ("Slowest", told.slow, ""),
    ):
        if queries:
            section.text(title + ":")
            section.table(
                ["query", "lists", "people", "median ms", "longest ms", "clicks"],
                [_query(each) for each in queries],
            )
        elif none:
            section.text(none)


def _query(facts: QueryFacts) -> list[object]:
    return [
        *(facts.query, facts.lists, facts.people),
        *(f"{facts.p50_ms:.1f}", f"{facts.max_ms:.1f}", facts.clicks),
    ]


def _method(page: Report, findings: Findings) -> None:
    section = page.section("How it was measured")
    section.text(
        "Replicas count a share of their answers, candidate by candidate, into bins that lie in "
        "the bundle since it was trained; counts of all replicas add up. Compared are lists of the "
        "surface that the bundle was trained for, when they are scored: out of a cache they count "
        "once, and lists beside an item or a cart have candidates of another kind."
    )
    if findings.labels:
        labels = findings.labels
        section.text(
            f"In the validation fold of the training {percent(labels['positive_requests'])} of the "
            f"requests had a relevant candidate, and {percent(labels['positive_rows'])} of the "
            "candidates were relevant."
        )
    if findings.drift is not None:
        limits = findings.drift.thresholds
        section.text(
            f"It is drift when the score of a learner or of the ensemble moves by a PSI of "
            f"{limits.psi:g} or more, when more than {limits.share:.0%} of the features do, or "
            f"when a feature is missing in {limits.missing:.0%} of the rows more than in training; "
            f"and when an outcome changes by {limits.outcome:.0%} or more. What chance "
            "explains never counts."
        )
