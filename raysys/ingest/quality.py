"""The quality report: what came in, what was wrong with it, and what the log looks like."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup

from raysys import schema
from raysys.ingest.bots import SIGNALS
from raysys.ingest.figures import PRICE_EDGES, LogFigures
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import Limits
from raysys.ingest.words import in_words
from raysys.report import COLOURS, Report, Section, new_figure

if TYPE_CHECKING:
    from raysys.ingest.pipeline import Outcome


SHOWN_FILES: Final = 1000


def write_report(
    outcome: Outcome, title: str, limits: Limits, path: Path, rules: RuleSettings | None = None
) -> None:
    """Write the HTML page; it needs no other file."""
    rules = rules or RuleSettings()
    log = outcome.log
    span = f"{moment(log.first)} to {moment(log.last)} UTC"
    report = Report(f"Data quality: {title}", f"The log from {span}, as raysys ingest found it.")
    _facts(report, outcome)
    _balance(report, outcome)
    _rules(report, outcome, limits, rules)
    _bots(report, outcome, rules)
    _files(report, outcome)
    _time(report, log)
    _behaviour(report, log)
    _items(report, outcome)
    report.write(path)


def moment(millis: int | None) -> str:
    """UTC milliseconds as `YYYY-MM-DD HH:MM`; empty for None."""
    if millis is None:
        return ""
    when = dt.datetime.fromtimestamp(millis / 1000, tz=dt.UTC)
    return when.strftime("%Y-%m-%d %H:%M")


def _facts(report: Report, outcome: Outcome) -> None:
    log, events = outcome.log, outcome.tallies["events"]
    facts: list[tuple[str, object]] = [
        ("clean events", f"{events.rows_out:,}"),
        ("users", f"{log.users:,}"),
        ("items seen", f"{outcome.entities.items_seen:,}"),
        ("sessions", f"{log.sessions:,}"),
    ]
    if log.orders:
        facts.append(("orders", f"{log.orders:,}"))
    for currency, amount in sorted(log.revenue.items()):
        facts.append((f"purchases, {currency or 'no currency given'}", f"{amount:,.0f}"))
    if len(log.currencies) > 1:
        told = ", ".join(f"{c or 'none'} {n:,}" for c, n in log.currencies.most_common(5))
        facts.append(("events by currency", told))
    facts.append(("of rows quarantined", _share(events.quarantined, events.rows_in)))
    report.section("At a glance").facts(facts)


def _balance(report: Report, outcome: Outcome) -> None:
    """Rows in and out of every table: they add up, and the page shows it."""
    section = report.section("Every row accounted for")
    rows: list[list[object]] = []
    for table, tally in outcome.tallies.items():
        if tally.rows_in:
            changed = [
                tally.quarantined, 0, sum(tally.mended.values()), sum(tally.kept.values())
            ]  # fmt: skip
            rows.append([_words(table), tally.rows_in, tally.rows_out, *changed])
    for side in outcome.tables:
        out = side["rows_out"]
        rows.append([_words(side["name"]), side["rows_in"], out, 0, side["rows_in"] - out, 0, 0])
    section.table(
        ["table", "rows in", "rows out", "quarantined", "left out", "mended", "flagged"], rows
    )
    section.note(
        "Rows in = rows out + quarantined + left out. Quarantined rows lie in quarantine/, each "
        "with its reason, file, row number and content. Left out are repeated or empty rows of "
        "side tables. Told items are descriptions that events carry. Mended and flagged rows are "
        "among rows out; a row that several rules flag counts for each."
    )


def _rules(report: Report, outcome: Outcome, limits: Limits, rules: RuleSettings) -> None:
    section = report.section("What the rules found")
    words = in_words(limits, rules)
    rows: list[list[object]] = []
    for table, tally in outcome.tallies.items():
        for action, found in (
            ("quarantined", tally.reasons),
            ("mended", tally.mended),
            ("kept, flagged", tally.kept),
            ("added", tally.added),
            ("ignored", tally.ignored),
        ):
            for rule, count in found.most_common():
                says = words.get(rule, "")
                share = _share(count, tally.rows_in)
                rows.append([_solid(rule), _solid(table), _solid(action), count, share, says])
    for side in outcome.tables:
        count = side["rows_in"] - side["rows_out"]
        if count:
            reason = side["reason"]
            says = "The same row came before." if reason == "duplicate" else words[reason]
            share = _share(count, side["rows_in"])
            rows.append(
                [_solid(reason), _solid(side["name"]), _solid("left out"), count, share, says]
            )
    if not rows:
        section.text("Nothing: every row passed every rule.")
        return
    section.table(["rule", "table", "action", "rows", "share", "what it means"], rows)
    examples = [
        [_solid(rule), _place(one["source"], one["row"]), _shortened(one["raw"])]
        for tally in outcome.tallies.values()
        for rule, found in tally.examples.items()
        for one in found[:2]
    ]
    if examples:
        section.text(
            "Examples: quarantined rows as their files have them, mended and flagged ones as "
            "events, bots with the figures that say so."
        )
        section.table(["rule", "where", "row"], examples)


def _bots(report: Report, outcome: Outcome, rules: RuleSettings) -> None:
    """Which signals told bots, of how many users, and how much of the log they made."""
    tally = outcome.tallies["events"]
    if not tally.users:
        return
    quarantined = rules.bots.action == "quarantine"
    events = tally.reasons if quarantined else tally.kept
    section = report.section("Bots")
    section.table(
        ["signal", "users (a user counts once a day)", "events", "share of rows in"],
        [
            [_solid(name), tally.users[name], events[name], _share(events[name], tally.rows_in)]
            for name in SIGNALS
            if tally.users[name]
        ],
    )
    fate = "were put aside" if quarantined else "stayed in the log"
    section.note(
        f"Each day is judged by itself; all events of a bot's day {fate} "
        f"(rules.bots.action: {rules.bots.action}). The first signal that holds counts."
    )


def _files(report: Report, outcome: Outcome) -> None:
    """Files that could not be used, and columns that some files do not have."""
    tallies = outcome.tallies
    faults = [
        [label, _solid(table), _solid(rule)]
        for table, tally in tallies.items()
        for label, rule in sorted(tally.files.items())
    ]
    lacking = [
        [column, _solid(table), count]
        for table, tally in tallies.items()
        for column, count in sorted(tally.lacking.items())
    ]
    if not faults and not lacking:
        return
    section = report.section("Files")
    if faults:
        section.text(f"{len(faults):,} files could not be read, or not to their end:")
        section.table(["file", "table", "why"], faults)
    if outcome.unread:
        section.text(
            f"Of {len(outcome.unread):,} of them storage gave nothing, or not all (a timeout, a "
            "permission, a file that went). The next run reads them again:"
        )
        section.table(["file"], [[path] for path in sorted(outcome.unread)[:SHOWN_FILES]])
    if lacking:
        section.text("Mapped columns that files do not have; their rows hold nothing there:")
        section.table(["column", "table", "files without it"], lacking)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _solid(name: str) -> Markup:
    """A name in words that stays on one line."""
    return Markup('<span style="white-space: nowrap">{}</span>').format(_words(name))


def _place(source: str, row: int) -> str:
    return f"{source}, row {row:,}" if row else source


def _time(report: Report, log: LogFigures) -> None:
    """Events over time, by type."""
    days: dict[str, Counter[dt.date]] = {}
    for key, count in log.days.items():
        written, kind = key.split(" ", 1)
        days.setdefault(kind, Counter())[dt.date.fromisoformat(written)] += count
    if not days:
        return
    first = min(min(counts) for counts in days.values())
    last = max(max(counts) for counts in days.values())
    weekly = (last - first).days > 120
    section = report.section("Events over time")
    kinds = [kind for kind in schema.EVENT_TYPES if kind in days]
    if (last - first).days < 3:
        table = [
            [_solid(str(day)), *(days[kind].get(day, 0) for kind in kinds)]
            for day in sorted({day for counts in days.values() for day in counts})
        ]
        section.table(["date", *kinds], table)
        _hours(section, log)
        return
    step = 7 if weekly else 1
    origin = first - dt.timedelta(days=first.weekday()) if weekly else first
    n = (last - origin).days // step + 1
    starts = [origin + dt.timedelta(days=step * i) for i in range(n)]
    figure, axes = new_figure()
    base = np.zeros(n)
    for colour, kind in zip(COLOURS, kinds, strict=False):
        height = np.zeros(n)
        for day, count in days[kind].items():
            height[(day - origin).days // step] += count
        axes.bar(
            starts, height, width=step * 0.85, bottom=base, align="edge", color=colour, label=kind
        )
        base += height
    axes.set_ylabel(f"events a {'week' if weekly else 'day'}")
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(kinds) > 1:
        axes.legend(frameon=False, ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1))
    told = f"{', '.join(kinds)} events" if len(kinds) == 1 else "Events by type"
    partial = " The first and the last week may be partial." if weekly else ""
    bar = "week from Monday" if weekly else "day"
    section.plot(figure, f"{told.capitalize()}, each bar a {bar}, UTC.{partial}")
    _hours(section, log)


def _hours(section: Section, log: LogFigures) -> None:
    """When in the day things happen: a wrong time zone shows here."""
    figure, axes = new_figure(height=2.4)
    axes.bar(range(24), [log.hours.get(hour, 0) for hour in range(24)], color=COLOURS[4])
    axes.set_xticks(range(0, 24, 2))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("hour of the day, UTC")
    axes.set_ylabel("events")
    section.plot(figure, "All events by hour: a quiet noon means a wrong time zone.")


def _behaviour(report: Report, log: LogFigures) -> None:
    """How long sessions are, how busy users, how dear things."""
    section = report.section("Sessions, users, prices")
    lengths = _powers(log.session_lengths)
    figure, axes = new_figure(height=2.8)
    _bars(axes, lengths, COLOURS[0])
    axes.set_xlabel("events in a session")
    axes.set_ylabel("sessions")
    mean = sum(k * n for k, n in log.session_lengths.items()) / max(1, log.sessions)
    section.plot(figure, f"{log.sessions:,} sessions of {mean:.1f} events on average.")
    figure, axes = new_figure(height=2.8)
    _bars(axes, _spans(log.user_events), COLOURS[1])
    axes.set_xlabel("events of a user")
    axes.set_ylabel("users")
    mean = sum(log.types.values()) / max(1, log.users)
    section.plot(figure, f"{log.users:,} users with {mean:,.1f} events on average.")
    if not log.prices:
        section.note("The events carry no prices.")
        return
    figure, axes = new_figure(height=2.8)
    bins = range(min(log.prices), max(log.prices) + 1)
    edges = PRICE_EDGES[bins.start : bins.stop + 1]
    axes.bar(
        edges[:-1],
        [log.prices.get(b, 0) for b in bins],
        width=np.diff(edges),
        align="edge",
        color=COLOURS[2],
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    currencies = " or ".join(sorted(c for c in log.revenue if c)) or "the log's currency"
    axes.set_xlabel(f"price of one unit, {currencies} (logarithmic)")
    axes.set_ylabel("events")
    section.plot(
        figure,
        f"{log.free:,} events cost nothing and {log.unpriced:,} name no price; neither is shown.",
    )


def _items(report: Report, outcome: Outcome) -> None:
    entities = outcome.entities
    section = report.section("Items and users")
    section.text(
        f"{entities.items:,} items, {entities.items_seen:,} of them with events; "
        f"{entities.half_of_events:,} items make half of all events. "
        f"{entities.users:,} users, {entities.described_users:,} of them described."
    )
    for name, groups in (
        ("departments", entities.departments),
        ("categories", entities.categories),
    ):
        if not groups:
            continue
        figure, axes = new_figure(height=0.6 + 0.24 * len(groups))
        names = [_shortened(str(group[0]), 40) for group in reversed(groups)]
        places = range(len(names))  # names that are cut may be equal, and bars of a name are one
        axes.barh(places, [group[1] for group in reversed(groups)], color=COLOURS[0])
        axes.set_yticks(places, names)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("events")
        section.plot(figure, f"The {name} with most events.")
    if entities.most_seen:
        most = [[_shortened(name, 80), item, count] for item, name, count in entities.most_seen]
        section.text("The items with most events:")
        section.table(["title or kind", "item", "events"], most)
    filled = [[name, f"{share:.1%}"] for name, share in entities.filled.items() if share]
    if filled:
        section.text("How complete the catalogue is:")
        section.table(["column", "items with a value"], filled)


def _powers(counts: Counter[int]) -> list[tuple[str, int]]:
    """Counts by number of events, gathered into 1, 2, 3–4, 5–8, 9–16, …"""
    gathered: Counter[int] = Counter()
    for value, count in counts.items():
        gathered[int(np.ceil(np.log2(value)))] += count
    return [
        (_span(2 ** (power - 1) + 1 if power else 1, 2**power), gathered[power])
        for power in range(max(gathered, default=-1) + 1)
    ]


def _spans(counts: Counter[int]) -> list[tuple[str, int]]:
    """Counts by the power of two at or below: 1, 2–3, 4–7, …"""
    top = max(counts, default=1).bit_length()
    return [(_span(1 << p, (2 << p) - 1), counts.get(1 << p, 0)) for p in range(top)]


def _span(low: int, high: int) -> str:
    """A range as a label; on two lines where it is wide."""
    if low >= high:
        return f"{low:,}"
    return f"{low:,}–{high:,}" if high < 100 else f"{low:,}–\n{high:,}"


def _bars(axes: Any, bars: list[tuple[str, int]], colour: str) -> None:
    names = [name for name, _ in bars]
    axes.bar(names, [count for _, count in bars], color=colour)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _share(count: int, total: int) -> str:
    """A percentage with as many digits as it needs: 0.004% is not 0%."""
    if not total:
        return ""
    share = 100 * count / total
    return f"{share:.1f}%" if share >= 0.95 or not count else f"{share:.2g}%"


def _shortened(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
