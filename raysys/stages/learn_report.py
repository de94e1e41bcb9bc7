"""The report of a round: who is better on what nobody learned from, by which step, at what cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.report import COLOURS, Report, new_figure

HTML, JSON = "report.html", "report.json"
INK = "#1d2733"
UNKNOWN = "–"

OUTCOMES = {
    "published": "published as the challenger",
    "refused": "not published",
    "too_few": "nothing judged: too few requests",
}
STEPS = {
    "state": "state of items and users",
    "covisitation": "items bought together",
    "ensemble": "weights of the ensemble",
}
TIMES = {"events": "reading events", "relived": "living it through", "blend": "ensemble"}


def write_report(told: Mapping[str, Any], folder: Path) -> None:
    """Write `report.html` and `report.json`.

    Args:
        told: what `learn` says of the round.
        folder: to write into.
    """
    (folder / JSON).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    page = Report(f"Round {told['round']}", f"{OUTCOMES[told['outcome']]}: {told['reason']}")
    window = told["window"]
    _facts(page, told)
    if told["gate"]:
        _compared(page, told)
        _steps(page, told)
    section = page.section("The window")
    section.text(
        "Learners go on from their weights on the first part, the ensemble is fitted on the "
        "second, both are judged on the last. A request counts in the part that it began and was "
        "settled in."
    )
    section.table(
        ["part", "from", "requests", "of"],
        [
            [name, window["starts"][name], told["requests"].get(name, 0), found]
            for name, found in zip(window["starts"], told["found"], strict=True)
        ],
    )
    _cost(page, told)
    page.write(folder / HTML)


def _facts(page: Report, told: Mapping[str, Any]) -> None:
    section = page.section("In short")
    gate = told["gate"]
    facts: list[tuple[str, object]] = [("new events", f"{told['events']:,}")]
    if told["new_items"]:
        facts.append(("new items", f"{told['new_items']:,}"))
    if gate:
        metric = gate["metric"]
        gap = gate["difference"][metric]
        facts = [
            (f"{metric.upper()}, challenger", _figure(gate["challenger"][metric]["value"])),
            (f"{metric.upper()}, champion", _figure(gate["champion"][metric]["value"])),
            ("difference, paired", _signed(gap["value"]) or UNKNOWN),
            ("its 95% interval", _ends(gap)),
            ("requests judged", f"{gate['requests']:,}"),
            ("users among them", f"{gate['users']:,}"),
            *facts,
        ]
    facts.append(("seconds", f"{told['seconds']:.0f}"))
    section.facts(facts)
    section.note(f"Champion {told['champion']}; begun because {told['trigger']}.")
    if told["challenger"]:
        section.note(f"Challenger {told['challenger']}; {told['promoted']}.")


def _compared(page: Report, told: Mapping[str, Any]) -> None:
    gate = told["gate"]
    section = page.section("Champion and challenger")
    section.text(
        f"On the {gate['requests']:,} requests from {gate['first']} to {gate['last']}, which "
        "nothing was fitted on, each with its own candidates; what either did not retrieve counts "
        "against it. Users are drawn with all their requests."
    )
    section.table(
        ["metric", "champion", "challenger", "difference", "low", "high"],
        [
            [
                name,
                gate["champion"][name]["value"],
                gate["challenger"][name]["value"],
                *(_signed(gap[end]) for end in ("value", "low", "high")),
            ]
            for name, gap in gate["difference"].items()
        ],
        strong=[list(gate["difference"]).index(gate["metric"])],
    )


def _steps(page: Report, told: Mapping[str, Any]) -> None:
    gate = told["gate"]
    section = page.section("What each step changed")
    section.text(
        f"{gate['metric'].upper()} after each step less that before it, in the order in which they "
        "were taken; with 95% intervals, paired."
    )
    effects = gate["effects"]
    whole = gate["difference"][gate["metric"]]
    live = told["against"] == "live"  # then the champion's state goes on, too
    counted = [effect for effect in effects if not (live and effect["step"] == "state")]
    shown = [*((_step(e["step"]), e["difference"]) for e in counted), ("all of them", whole)]
    figure, axes = new_figure(9, 0.9 + 0.5 * len(shown))
    for place, (_, gap) in enumerate(shown):
        if gap["value"] is None:
            continue
        low, high = (gap["value"] if gap[end] is None else gap[end] for end in ("low", "high"))
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=3)
        axes.plot(gap["value"], place, "o", color=COLOURS[1], markersize=7)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel(f"change of {gate['metric'].upper()}")
    against = "whose state follows the log as well" if live else "as it was published"
    section.plot(figure, f"What leads from the champion, {against}, to the challenger.")
    if effects:
        section.table(
            ["step", "before", "after", "change", "low", "high"],
            [
                [
                    _step(effect["step"]),
                    effect["before"],
                    effect["after"],
                    *(_signed(effect["difference"][end]) for end in ("value", "low", "high")),
                ]
                for effect in effects
            ],
        )
    for name, own in gate["alone"].items():
        gap = own["difference"]
        if own["before"] is None or own["after"] is None:
            section.note(f"{name} alone: its scores are not all finite numbers.")
            continue
        section.note(
            f"{name} alone: {own['before']:.4f}, then {own['after']:.4f} "
            f"({_signed(gap['value'])}, {_ends(gap)})."
        )
    for name, reason in told["unchanged"].items():
        section.note(f"{_step(name)}: stays, {reason}.")
    if told["weights"]:
        section.table(
            ["member", "weight, champion", "weight, challenger"],
            [
                [name, share, told["weights"]["challenger"].get(name, 0.0)]
                for name, share in told["weights"]["champion"].items()
            ],
        )


def _cost(page: Report, told: Mapping[str, Any]) -> None:
    section = page.section("What it cost")
    section.table(
        ["step", "seconds"], [[_time(name), seconds] for name, seconds in told["times"].items()]
    )
    section.note("By the clock; of a step that was cut off, its last try.")


def _step(name: str) -> str:
    return STEPS.get(name, name)


def _time(name: str) -> str:
    return TIMES.get(name, name.removeprefix("learner-"))


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _ends(gap: Mapping[str, float | None]) -> str:
    if gap["low"] is None or gap["high"] is None:
        return "no interval"
    return f"{_signed(gap['low'])} to {_signed(gap['high'])}"
