"""What each feature of a plan is: from which events, by which keys, how long it remembers, and why
it cannot know the future. The program says it of itself, from the plan that it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raysys.features.plan import (
    Component,
    CoVisitation,
    FeaturePlan,
    FeatureSpec,
    FromLast,
    FromTable,
    FromWindow,
    KeyedSpec,
    LastSpec,
    Moment,
    OfTwo,
    Promotion,
    Rate,
    ShownPosition,
    Similarity,
    Static,
    TableSpec,
    UserAttribute,
)

_EARLIER = (
    "state counts only events strictly before the request; those of its own moment come after it"
)
_CATALOGUE = "not made of events; the catalogue is taken to have been the same at all times"
_USERS = (
    "not made of events; what the shop tells of a user is taken to have been the same at all "
    "times: name nothing that follows from what users buy"
)
_VECTORS = "as safe as the vectors: make them of texts, or of events before the first request"
_TEXTS = (
    "vectors are made from texts of the catalogue, taken to have been the same at all times; name "
    "no model that has learned from events after the first request"
)


@dataclass(frozen=True)
class Explanation:
    """One feature, explained.

    Attributes:
        name: of the feature, which is its column.
        kind: as the plan calls it.
        what: what the number says.
        events: the event types it is made of; none where it is not made of events.
        keys: what it is kept by; none where it is kept by nothing.
        memory: its half-life, window or how much it keeps; empty where it remembers nothing.
        unknown: when it is NaN.
        leak_safe: why no event at or after the request can move it.
    """

    name: str
    kind: str
    what: str
    events: tuple[str, ...]
    keys: tuple[str, ...]
    memory: str
    unknown: str
    leak_safe: str


def explain(plan: FeaturePlan) -> list[Explanation]:
    """Every feature of a plan, in column order."""
    known: dict[str, Explanation] = {}
    for feature in plan.features:
        known[feature.name] = _EXPLAINERS[type(feature)](feature, plan, known)
    return list(known.values())


def as_markdown(explanations: Sequence[Explanation]) -> str:
    """A Markdown table, one row a feature."""
    lines = [
        "| feature | kind | what | events | keys | remembers | NaN | leak-safe, because |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in explanations:
        cells = (
            *(f"`{row.name}`", f"`{row.kind}`", row.what, ", ".join(row.events) or "–"),
            *(" × ".join(row.keys) or "–", row.memory or "–", row.unknown, row.leak_safe),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def as_text(explanations: Sequence[Explanation]) -> str:
    """A paragraph a feature, for a terminal."""
    blocks = []
    for row in explanations:
        lines = [f"{row.name} ({row.kind})", f"  {row.what}"]
        for label, value in (
            ("events", ", ".join(row.events)),
            ("keys", " × ".join(row.keys)),
            ("remembers", row.memory),
            ("NaN", row.unknown),
            ("leak-safe", row.leak_safe),
        ):
            if value:
                lines.append(f"  {label + ':':<11}{value}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


_CLOCKS = {
    "moments": ("on how many distinct moments it was seen", "never: 0 before the first event"),
    "recency": ("days since the last event", "before the first event"),
    "age": ("days since the first event", "before the first event"),
    "interval": ("mean days between two moments", "before the second moment"),
    "frequency": ("moments a day since the first event, a day at least", "before the first event"),
    "overdue": ("days since the last event ÷ usual days between", "before the second moment"),
}
_AGGREGATES = {
    "window_count": "how much happened: {weight}",
    "window_sum": "sum of {weight} × {value}",
    "window_mean": "mean {value}, weighted by {weight}",
    "window_min": "smallest {value}",
    "window_max": "largest {value}",
    "window_days": "distinct UTC days with an event",
}
_WEIGHTS = {
    "one": "1 for each event",
    "quantity": "its quantity",
    "spend": "quantity × price",
    "examination": "the chance that its position is looked at",
}


def _of_table(feature: FromTable, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    spec = plan.tables[feature.table]
    if feature.half_life_days is None:
        what, unknown = _CLOCKS[feature.kind]
        memory = "all that was counted"
    else:
        weight = _WEIGHTS[spec.weight]
        memory = f"half-life {_days(feature.half_life_days)}"
        if feature.kind == "decayed_count":
            what, unknown = f"decayed sum: {weight}", "never: 0 before the first event"
        else:
            what = f"decayed mean {spec.value}, weighted by {weight}"
            unknown = f"before the first event with a {spec.value}"
    return _of_events(feature, what, spec, memory + _idle(spec), unknown)


def _rate(feature: Rate, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    levels = feature.levels
    of, over = (plan.tables[name] for name in levels[0])
    what = (
        f"({levels[0][0]} + {feature.prior.strength:g} × prior) ÷ "
        f"({levels[0][1]} + {feature.prior.strength:g})"
    )
    parents = [" × ".join(plan.tables[name].keys) or "all" for name, _ in levels[1:]]
    if parents:
        what += f", drawn towards the rate by {', then '.join(parents)}"
    if feature.prior.mean is not None:
        what += f", at last towards {feature.prior.mean:g}"
    if over.weight == "examination":
        what += "; impressions count by the chance that their position is looked at"
    return Explanation(
        feature.name,
        feature.kind,
        what,
        tuple(dict.fromkeys([*of.events, *over.events])),
        tuple(of.keys),
        f"half-life {_days(feature.half_life_days)}" + _idle(over),
        "never" if feature.prior.mean is not None else "before the first trial of all",
        _EARLIER + "; the prior is the parent's rate at that same moment",
    )


def _of_two(feature: OfTwo, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    of, over = known[feature.of], known[feature.over]
    if feature.kind == "share":
        what, unknown = f"{feature.of} ÷ {feature.over}", f"where {feature.over} is 0 or NaN"
    else:
        plus = f" + {feature.smoothing:g}" if feature.smoothing else ""
        what = f"log of ({feature.of}{plus}) ÷ ({feature.over}{plus})"
        what = what if plus else f"log of {feature.of} ÷ {feature.over}"
        unknown = "where either is NaN, or the ratio has no logarithm"
    memory = dict.fromkeys(part for part in (of.memory, over.memory) if part)
    return Explanation(
        feature.name,
        feature.kind,
        what,
        tuple(dict.fromkeys(of.events + over.events)),
        tuple(dict.fromkeys(of.keys + over.keys)),
        "; ".join(memory),
        unknown,
        "made of two features of the same request, each leak-safe itself",
    )


def _of_window(
    feature: FromWindow, plan: FeaturePlan, known: dict[str, Explanation]
) -> Explanation:
    spec = plan.windows[feature.window]
    what = _AGGREGATES[feature.kind].format(weight=_WEIGHTS[spec.weight], value=spec.value)
    memory = f"the last {_many(feature.span, spec.unit)}, in whole buckets of "
    memory += _many(spec.bucket, spec.unit)
    told = feature.kind in ("window_count", "window_sum", "window_days")
    unknown = "never: 0 where nothing happened" if told else f"where no event has a {spec.value}"
    return _of_events(feature, what, spec, memory, unknown)


def _of_last(feature: FromLast, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    spec = plan.last[feature.last]
    n = feature.among or spec.n
    things = spec.of if n == 1 else {"item": "items"}.get(spec.of, f"{spec.of} values")
    last = f"the last {n} distinct {things}"
    what, unknown = {
        "last_rank": (
            f"place of the candidate's {spec.of} among {last}, 1 the newest",
            "where it is not among them",
        ),
        "last_count": (f"how many there are of {last}", "never: 0 before the first event"),
        "last_share": (
            f"share of {last} with the candidate's {feature.column}",
            f"where there are none, or the candidate has no {feature.column}",
        ),
    }[feature.kind]
    return _of_events(feature, what, spec, last + _idle(spec), unknown)


def _similarity(
    feature: Similarity, plan: FeaturePlan, known: dict[str, Explanation]
) -> Explanation:
    if feature.to == "query":
        what = f"cosine of the candidate's vector {feature.vectors!r} with the query's"
        unknown = "without a query, or where either has no vector"
        why = "the query is the request's own; " + _vectors(feature.vectors, plan)
        return Explanation(feature.name, feature.kind, what, (), (), "", unknown, why)
    spec = plan.last[feature.to]
    last = f"the last {feature.among or spec.n} distinct items"
    what = f"cosine of the candidate's vector {feature.vectors!r} with the mean of those of {last}"
    unknown = "where there are none, or either has no vector"
    of_events = _of_events(feature, what, spec, last + _idle(spec), unknown)
    return replace(of_events, leak_safe=f"{_EARLIER}; {_vectors(feature.vectors, plan)}")


def _component(feature: Component, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    what = f"component {feature.component} of the candidate's vector {feature.vectors!r}"
    unknown = "where the item has no vector"
    why = _vectors(feature.vectors, plan)
    return Explanation(feature.name, feature.kind, what, (), (), "", unknown, why)


def _vectors(name: str, plan: FeaturePlan) -> str:
    return _TEXTS if name in plan.encoded else _VECTORS


def _static(feature: Static, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    if feature.column == "price":
        what, unknown = "the catalogue's price", "where the catalogue has none"
    else:
        what = f"code of the {feature.column} in a vocabulary that is frozen with the features"
        if feature.min_count > 1:
            what += f"; labels of fewer than {feature.min_count} items count as unseen"
        what += "; unseen ones have the highest code" if feature.unseen == "own" else ""
        unknown = "where the catalogue has none"
        unknown += ", or an unseen one" if feature.unseen == "nan" else ""
    return Explanation(feature.name, feature.kind, what, (), (), "", unknown, _CATALOGUE)


def _user_attribute(
    feature: UserAttribute, plan: FeaturePlan, known: dict[str, Explanation]
) -> Explanation:
    if feature.read_as == "number":
        what, unknown = f"the user's {feature.attribute}", "where it is not told, or no number"
    else:
        what = f"code of the user's {feature.attribute} in a vocabulary that is frozen with the "
        what += "features"
        if feature.min_count > 1:
            what += f"; labels of fewer than {feature.min_count} users count as unseen"
        what += "; unseen ones have the highest code" if feature.unseen == "own" else ""
        unknown = "where it is not told" + (", or unseen" if feature.unseen == "nan" else "")
    return Explanation(feature.name, feature.kind, what, (), ("user",), "", unknown, _USERS)


def _promotion(feature: Promotion, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    what = (
        "1 if on display, 0 if not"
        if feature.medium == "display"
        else "1 if in the mailer, 0 if not"
    )
    unknown = "where nothing is known of that store and week"
    why = "promotions of a week are settled before it begins"
    keys, memory = ("store", "item"), "the request's week"
    return Explanation(feature.name, feature.kind, what, (), keys, memory, unknown, why)


def _moment(feature: Moment, plan: FeaturePlan, known: dict[str, Explanation]) -> Explanation:
    what = "hour of the day, 0 to 23" if feature.unit == "hour" else "day of the week, Monday 0"
    why = "the request's own time"
    return Explanation(feature.name, feature.kind, f"{what}, UTC", (), (), "", "never", why)


def _shown_position(
    feature: ShownPosition, plan: FeaturePlan, known: dict[str, Explanation]
) -> Explanation:
    return Explanation(
        feature.name,
        feature.kind,
        "position at which the candidate was shown in this very request, 1 for the first; for "
        "learners that undo position bias while they fit, not to score by",
        *((), (), ""),
        "where the position is not known, and always when serving",
        "settled before anything could come of it; but who scores by it leans on what serving "
        "does not have: leave it out of every other learner (`exclude`)",
    )


def _covisitation(
    feature: CoVisitation, plan: FeaturePlan, known: dict[str, Explanation]
) -> Explanation:
    spec = plan.tables["user_item"]
    return Explanation(
        feature.name,
        feature.kind,
        f"summed cosine with the user's last {feature.history} items, by how often bought together",
        tuple(spec.events),
        ("user", "item"),
        f"the last {feature.history} distinct items; neighbours as last fitted",
        "never: 0 where there is no neighbour",
        "neighbours are fitted on events before the period in which they are used; "
        "the user's items are those strictly before the request",
    )


def _of_events(
    feature: FeatureSpec, what: str, spec: KeyedSpec, memory: str, unknown: str
) -> Explanation:
    if spec.max_records is not None:
        memory += f"; of the newest {spec.max_records:,} keys"
    events, keys = tuple(spec.events), tuple(spec.keys)
    return Explanation(feature.name, feature.kind, what, events, keys, memory, unknown, _EARLIER)


def _idle(spec: TableSpec | LastSpec) -> str:
    idle = spec.max_idle_days
    return "" if idle is None else f"; forgotten after {_days(idle)} without an event"


def _days(days: float) -> str:
    return f"{days:g} day" + ("" if days == 1 else "s")


def _many(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")


_EXPLAINERS: dict[type, Callable[..., Explanation]] = {
    FromTable: _of_table,
    Rate: _rate,
    OfTwo: _of_two,
    FromWindow: _of_window,
    FromLast: _of_last,
    Similarity: _similarity,
    Component: _component,
    Static: _static,
    UserAttribute: _user_attribute,
    Promotion: _promotion,
    Moment: _moment,
    CoVisitation: _covisitation,
    ShownPosition: _shown_position,
}
