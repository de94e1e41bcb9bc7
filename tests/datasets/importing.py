"""Files through an importer: what every test of one does, and what holds for all of them."""

import json
from pathlib import Path

import polars as pl
from hypothesis import strategies as st

from raysys.datasets.drafting import draft_events
from raysys.datasets.files import find, read
from raysys.datasets.source import RECORD

FIXTURES = Path(__file__).parent / "fixtures"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", "1717236000000", "2024-06-01T10:00:00Z", "(not set)", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Anything that JSON can say, and NaN."""

MOMENTS = st.sampled_from(["2024-06-01T10:00:00Z", "1717236000000", 1717236000000]) | JSON


def records(**fields):
    """Objects with some of these fields, some of them not as they should be, and others."""
    loose = {name: st.one_of(good, good, good, JSON) for name, good in fields.items()}
    return st.builds(
        lambda told, more: json.dumps({**more, **told}),
        st.fixed_dictionaries({}, optional=loose),
        st.dictionaries(st.text(max_size=3), JSON, max_size=2),
    )


LINES = st.sampled_from(["{", "[1]", "null", "{}", '{"a": 1},{"b": 2}', '{"a": "x', 'y"}', " "])
"""Lines that are no records, or empty ones."""


def events_of(source):
    """All draft events with `_record`, its number in its file; what was ignored; the faults.

    Every record must be accounted for: faults, rows and ignored ones together are all of them.
    """
    drafts, ignored, faults = [], {}, []
    for part in find(source.events[0]):
        for block in read(part, source.events[0], source.derived):
            faults += block.faults
            if block.rows.height == 0:
                continue
            made = source.expand_events(block.rows)
            accounted_for(block.rows, made)
            draft = draft_events(made.rows, source.events[0], where=part.label)
            number = block.numbers.gather(made.rows[RECORD]).alias(RECORD)
            drafts.append(draft.with_columns(number))
            for reason, count in made.ignored.items():
                ignored[reason] = ignored.get(reason, 0) + count
    return pl.concat(drafts) if drafts else None, ignored, faults


def accounted_for(rows, made):
    """Nothing of a frame may vanish."""
    assert made.rows.schema[RECORD] == pl.UInt32
    assert made.rows[RECORD].is_sorted()
    assert made.rows[RECORD].n_unique() + sum(made.ignored.values()) == rows.height
    assert all(count > 0 for count in made.ignored.values())
    assert not made.rows.height or made.rows[RECORD].max() < rows.height


def all_of(path, events, ignored, faults, blank=None):
    """Whether every line that is more than `blank` became rows, a fault, or was ignored."""
    lines = [
        line for line in Path(path).read_text(errors="replace").split("\n") if line.strip(blank)
    ]
    rows = 0 if events is None else events[RECORD].n_unique()
    return rows + sum(ignored.values()) + len(faults) == max(1, len(lines))


def table(events, *columns):
    """Some columns of draft events, row by row."""
    return events.select(columns).rows()


def write(path, lines):
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return str(path)
