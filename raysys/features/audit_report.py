"""What the audit found, as a page and as JSON."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from raysys.features.alteration import KINDS
from raysys.features.audit_outcome import CANDIDATES, Audit, Difference, Leak
from raysys.features.drift import LARGE, MODERATE, Drift, counts
from raysys.features.drift_plots import histograms
from raysys.report import Report
from raysys.storage import write_atomic

VERDICTS = {
    "leaks": "moves when only the future changes",
    "differs": "the written value does not follow from the past",
    "constant": "one value in all that was drawn",
    "no event": "no event moves it: of the catalogue, the calendar or promotions",
    "ok": "moves with events before the request, never with later ones",
}
HOW = {
    **KINDS,
    "appeared": "the log going on after the request",
    "read": "the replay instead of a state that reads",
}
_PLOTS = 6


@dataclass(frozen=True)
class Findings:
    """Everything the page shows.

    Attributes:
        audit: the point-in-time check.
        drifts: of every feature, largest PSI first; empty when nothing was compared.
        periods: the two periods of the drift, in words.
        sizes: requests and rows of each period.
        user, item: name a number.
        horizon: events after a request that were altered.
        notes: what could not be asked, and why.
    """

    audit: Audit
    drifts: Sequence[Drift]
    periods: tuple[str, str]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    user: Callable[[int], str]
    item: Callable[[int], str]
    horizon: int
    notes: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it; ids instead of numbers, null instead of NaN."""
        audit = self.audit
        rows = {name: at for at, name in enumerate(audit.names)}
        return {
            "sound": audit.sound,
            "requests": audit.requests,
            "requests_shuffled": audit.shuffled,
            "rows": audit.values,
            "events_altered_per_request": self.horizon,
            "written_compared": audit.compared,
            "stopped_early": audit.stopped,
            "alterations": HOW,
            "notes": list(self.notes),
            "features": [
                {
                    "feature": name,
                    "verdict": audit.verdict(name),
                    "reacts": round(float(audit.reacts[at]), 4),
                    "constant": bool(audit.constant[at]),
                }
                for name, at in rows.items()
            ],
            "leaks": [self._named(leak) for leak in audit.leaks.values()],
            "differences": [self._named(one) for one in audit.differences.values()],
            "drift": {
                "reference": self.periods[0],
                "current": self.periods[1],
                "requests": [size[0] for size in self.sizes],
                "rows": [size[1] for size in self.sizes],
                "levels": counts(self.drifts),
                "features": [drift.to_dict() for drift in self.drifts],
            }
            if self.drifts
            else None,
        }

    def _named(self, found: Leak | Difference) -> dict[str, Any]:
        content = asdict(found)
        content["user_id"] = self.user(content.pop("user"))
        item = content.pop("item")
        content["item_id"] = None if item < 0 else self.item(item)
        content["timestamp"] = moment(content.pop("time"))
        for event in content.get("events", ()):
            event["user_id"], event["item_id"] = (
                self.user(event.pop("user")),
                self.item(event.pop("item")),
            )
            event["timestamp"] = moment(event.pop("time"))
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in content.items()
        }


def write(findings: Findings, folder: Path) -> None:
    """Write `audit.json` and `report.html` into `folder`."""
    content = json.dumps(findings.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / "audit.json", content + "\n")
    audit = findings.audit
    page = Report(
        "Audit of the features",
        "Whether a request's features know only what had happened by then, and how far the "
        "features drift.",
    )
    section = page.section("In short")
    section.facts(_facts(findings)).text(conclusion(audit))
    for note in findings.notes:
        section.note(note)
    _leaks(page, findings)
    _differences(page, findings)
    _features(page, audit)
    _drift(page, findings)
    _method(page, findings)
    page.write(folder / "report.html")


def conclusion(audit: Audit) -> str:
    """The audit in a sentence or two."""
    if audit.leaks:
        return (
            f"Do not train on these features: {_several(list(audit.leaks))} moved when only events "
            "at or after the request changed. Figures of a model that reads them promise what "
            "serving cannot keep."
        )
    if audit.differences:
        return (
            f"The replay does not leak, but what was written of {_several(list(audit.differences))}"
            " is not what follows from the past. Run `raysys features --force`; if it stays, the "
            "stage that wrote them looks ahead."
        )
    asked = "altered futures moved nothing"
    if audit.compared:
        asked += ", and every written value follows from the past alone, to the last bit"
    return f"No leak: in {audit.requests:,} requests {asked}."


def moment(millis: int) -> str:
    """UTC milliseconds as ISO 8601."""
    when = dt.datetime.fromtimestamp(millis / 1000, tz=dt.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{millis % 1000:03d}Z"


def after(millis: int) -> str:
    """How long after the request something was, as a person says it."""
    if millis == 0:
        return "same moment"
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if millis >= size:
            return f"{millis / size:.1f} {unit} later"
    return f"{millis} ms later"


def number(value: float | None) -> str:
    """A value with as many digits as tell it apart; NaN and None as words."""
    if value is None:
        return "–"
    return "missing" if np.isnan(value) else f"{value:.6g}"


def _several(names: list[str]) -> str:
    head = ", ".join(names[:4])
    return head if len(names) <= 4 else f"{head} and {len(names) - 4} more"


def _facts(findings: Findings) -> list[tuple[str, object]]:
    audit = findings.audit
    reacting = int((audit.reacts > 0).sum())
    facts: list[tuple[str, object]] = [
        ("requests", f"{audit.requests:,}"),
        ("rows, each with all features", f"{audit.values:,}"),
        ("features that leak", f"{len(audit.leaks)}"),
        (
            "features written otherwise than recomputed",
            f"{len(audit.differences)}" if audit.compared else "not asked",
        ),
        (f"of {len(audit.names)} features move with events before", f"{reacting}"),
    ]
    if findings.drifts:
        levels = counts(findings.drifts)
        facts.append(
            (
                "features that drift (large)",
                f"{levels['moderate'] + levels['large']} ({levels['large']})",
            )
        )
    return facts


def _leaks(page: Report, findings: Findings) -> None:
    if not findings.audit.leaks:
        return
    section = page.section("What leaks")
    section.text(
        "The first request in which each feature moved: its value on the true log, or before "
        "anything came after, and on the altered one."
    )
    section.table(
        ["feature", "request", "at", "item", "altered", "before", "after", "values moved"],
        [
            [
                *(leak.feature, leak.request_id, _minute(leak.time)),
                *("–" if leak.item < 0 else findings.item(leak.item), HOW[leak.how]),
                *(number(leak.before), number(leak.after), leak.values),
            ]
            for leak in findings.audit.leaks.values()
        ],
    )
    if CANDIDATES in findings.audit.leaks:
        section.note(
            f"{CANDIDATES}: before, how many retrieval proposed; after, how many of them were "
            "no longer proposed."
        )
    told = [leak for leak in findings.audit.leaks.values() if leak.events]
    if told:
        section.text("The smallest run of future events found that moves it:")
        section.table(
            ["feature", "events", "of them", "user", "item", "type"],
            [
                [
                    *(leak.feature, leak.n_events, after(event["after_ms"])),
                    *(findings.user(event["user"]), findings.item(event["item"])),
                    event["event_type"],
                ]
                for leak in told
                for event in leak.events
            ],
        )


def _differences(page: Report, findings: Findings) -> None:
    if not findings.audit.differences:
        return
    section = page.section("Written otherwise than recomputed")
    section.text(
        "The first request in which the value in examples/ is not what follows from events "
        "strictly before it."
    )
    section.table(
        ["feature", "request", "at", "item", "written", "from the past", "values",
         "what one gets by counting events"],
        [
            [
                *(one.feature, one.request_id, _minute(one.time), findings.item(one.item)),
                *(number(one.written), number(one.recomputed), one.values),
                one.explained or "(not explained)",
            ]
            for one in findings.audit.differences.values()
        ],
    )  # fmt: skip


def _features(page: Report, audit: Audit) -> None:
    section = page.section("Every feature")
    order = list(VERDICTS)
    names = sorted(audit.names, key=lambda name: order.index(audit.verdict(name)))
    section.table(
        ["feature", "verdict", "reacts"],
        [
            [name, _solid(audit.verdict(name)), f"{audit.reacts[audit.names.index(name)]:.0%}"]
            for name in names
        ],
        strong=[
            at
            for at, name in enumerate(names)
            if audit.verdict(name) in ("leaks", "differs", "constant")
        ],
    )
    given = [word for word in VERDICTS if any(audit.verdict(name) == word for name in names)]
    section.note("; ".join(f"{word}: {VERDICTS[word]}" for word in given) + ".")
    section.note(
        "Reacts: the share of requests in which the feature moves when events of this user and "
        "these items are put a millisecond before the request. Were it 0 for all, the audit could "
        "not fail."
    )


def _drift(page: Report, findings: Findings) -> None:
    if not findings.drifts:
        return
    section = page.section("Drift")
    levels = counts(findings.drifts)
    (n, n_rows), (m, m_rows) = findings.sizes
    section.text(
        f"From {findings.periods[0]} ({n_rows:,} candidates of {n:,} requests) to "
        f"{findings.periods[1]} ({m_rows:,} of {m:,}). Drift is large in {levels['large']} "
        f"features, moderate in {levels['moderate']}; {levels['stable']} are stable."
    )
    worst = [drift for drift in findings.drifts if drift.level != "stable"][:_PLOTS]
    worst = worst or list(findings.drifts[: _PLOTS // 2])
    histograms(
        section,
        [(f"{drift.feature}  (PSI {drift.psi:.2f})", drift.histogram) for drift in worst],
        findings.periods,
    )
    section.table(
        ["feature", "PSI", "level", "chance", "KS", "p", "missing", "mean", "shift"],
        [_drift_row(drift) for drift in findings.drifts],
        strong=[at for at, drift in enumerate(findings.drifts) if drift.level == "large"],
    )
    section.note(
        f"PSI: population stability index; below {MODERATE} stable, to {LARGE} moderate, above "
        "large. Chance: the 95% point of PSI when nothing drifts, for so many requests; below "
        "it a feature is called stable. KS: Kolmogorov–Smirnov statistic of values that are not "
        "missing, and its p-value. Shift: difference of the means in standard deviations of the "
        "reference. Cells with an arrow: reference → current. Quantiles are in audit.json."
    )


def _drift_row(drift: Drift) -> list[object]:
    old, new = drift.reference, drift.current
    return [
        *(drift.feature, f"{drift.psi:.3f}", drift.level, f"{drift.chance:.3f}"),
        *("–" if drift.ks is None else f"{drift.ks:.3f}", _solid(_p(drift.p))),
        _arrow(f"{old.missing:.1%}", f"{new.missing:.1%}"),
        "codes" if drift.categorical else _arrow(_say(old.mean), _say(new.mean)),
        "–" if drift.shift is None else f"{round(drift.shift, 2) + 0.0:+.2f}",
    ]


def _method(page: Report, findings: Findings) -> None:
    section = page.section("How it was asked")
    section.text(
        "From the past: features are read from a state that was fed events strictly before the "
        "request and no others, and compared with what the features stage has written, bit by "
        "bit; NaN equals NaN."
    )
    section.text(
        "The future altered: the replay of the features stage is given logs that agree up to the "
        "request and differ from there. They hold what its user did before, the last events before "
        f"it and the next {findings.horizon:,}, which are left out, as they are, or altered:"
    )
    section.table(["alteration", "what changes"], [[*pair] for pair in KINDS.items()])
    section.note(
        "This proves the requests drawn. Others stand for themselves, but code that looks ahead "
        "does so nearly everywhere. Promotions, catalogue and campaigns count as known "
        "beforehand: the audit does not ask when they were written down."
    )


def _minute(millis: int) -> str:
    return moment(millis)[:16].replace("T", " ")


def _arrow(one: str, other: str) -> Markup:
    return _solid(one if one == other else f"{one} → {other}")


def _solid(words: str) -> Markup:
    """Words that stay on one line."""
    return Markup('<span style="white-space: nowrap">{}</span>').format(words)


def _say(value: float | None) -> str:
    """Three digits, never an exponent for what is readable without."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
