"""How annotators write spans, all of them as (start, end, label, what they say)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

STARTS: Final = (
    *("start", "start_offset", "begin", "startOffset", "start_char", "start_idx", "startIndex"),
    *("start_position", "from", "offset"),
)
ENDS: Final = (
    *("end", "end_offset", "stop", "endOffset", "end_char", "end_idx", "endIndex"),
    *("end_position", "to"),
)
LABELS: Final = (
    *("label", "labels", "entity", "entity_type", "entity_group", "type", "tag", "category"),
    *("name", "class", "key"),
)
SAYS: Final = ("text", "value", "word", "surface", "mention")
_HOLDERS: Final = ("entities", "spans", "labels", "label", "annotations", "ents")


@dataclass(frozen=True)
class Told:
    """A span as a file says it: `end` may be its last character, offsets may be UTF-16's."""

    start: int
    end: int
    label: str
    says: str | None = None


def told_spans(content: Any) -> Iterator[Told]:
    """The spans of a row, whatever notation they are in.

    Raises:
        ValueError, TypeError, KeyError: they are in none.
    """
    if isinstance(content, Mapping):
        yield from _of_mapping(content)
        return
    if isinstance(content, str):
        raise ValueError(f"no list of spans: {content[:50]!r}")
    for one in content:
        yield from _of_one(one)


def of_studio(annotations: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What one annotator of Label Studio says of a task: `spans`, `label`, `rating`.

    The ground truth if there is one, else the first who did not cancel; None: there is nobody.
    """
    done = [one for one in annotations if not one.get("was_cancelled")]
    if not done:
        return None
    chosen = next((one for one in done if one.get("ground_truth")), done[0])
    found: dict[str, Any] = {"spans": []}
    for region in chosen.get("result") or ():
        value = region.get("value") or {}
        if "choices" in value:
            found["label"] = value["choices"][0] if value["choices"] else None
        elif "taxonomy" in value:
            found["label"] = value["taxonomy"][0] if value["taxonomy"] else None
        elif "rating" in value:
            found["rating"] = value["rating"]
        elif "start" in value:
            found["spans"].append(value)
    return found


def placed(told: Told, text: str) -> tuple[int, int, str | None]:
    """Start and end of a span in characters, `end` exclusive, and how they had to be mended.

    Where the span says its text, that decides; one that fits in no way stays as it is told.
    """
    start, end = told.start, told.end
    says = told.says
    if not says or text[start:end] == says:
        return start, end, None
    if text[start : end + 1] == says:
        return start, end + 1, "span_end_inclusive"
    if not text.isascii():
        wide = text.encode("utf-16-le", "surrogatepass")
        before = wide[: 2 * start].decode("utf-16-le", "replace")
        inside = wide[2 * start : 2 * end].decode("utf-16-le", "replace")
        if inside == says:
            return len(before), len(before) + len(inside), "span_in_utf16"
    if text[start:end].split() != says.split():
        return start, end, "span_says_other_text"
    return start, end, None


def _of_mapping(content: Mapping[str, Any]) -> Iterator[Told]:
    """`{"entities": […]}`, or label → places, or label → what they say → places."""
    for holder in _HOLDERS:
        if isinstance(content.get(holder), list):
            yield from told_spans(content[holder])
            return
    for label, places in content.items():
        if isinstance(places, Mapping):
            for says, found in places.items():
                for start, end in found:
                    yield Told(_whole(start), _whole(end), str(label), str(says))
        else:
            for place in places or ():
                one = dict(place) if isinstance(place, Mapping) else {}
                start = _first(one, STARTS) if one else place[0]
                end = _first(one, ENDS) if one else place[1]
                yield Told(_whole(start), _whole(end), str(label), _said(one))


def _of_one(one: Any) -> Iterator[Told]:
    if isinstance(one, Mapping):
        yield from _of_object(one)
        return
    if isinstance(one, str) or len(one) < 3:
        raise ValueError(f"no span: {one!r}")
    start, end, label = one[0], one[1], one[2]
    if isinstance(start, str) and not start.isdigit():  # the label first
        start, end, label = end, label, start
    for name in _names(label):
        yield Told(_whole(start), _whole(end), name)


def _of_object(one: Mapping[str, Any]) -> Iterator[Told]:
    if "result" in one:  # an annotation of Label Studio
        told = of_studio([one])
        yield from told_spans(told["spans"] if told else [])
    elif isinstance(one.get("value"), Mapping):  # a region of Label Studio
        yield from _of_object(one["value"])
    elif isinstance(one.get("points"), list):  # Dataturks: the label, and where it stands
        for point in one["points"]:
            yield from _of_object({**point, "label": one.get("label")})
    else:
        start, end = _first(one, STARTS), _first(one, ENDS)
        if end is None and one.get("length") is not None:
            end = _whole(start) + _whole(one["length"])
        for name in _names(_first(one, LABELS)):
            yield Told(_whole(start), _whole(end), name, _said(one))


def _first(one: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of the names that says something."""
    return next((one[name] for name in names if one.get(name) is not None), None)


def _said(one: Mapping[str, Any]) -> str | None:
    return next((one[name] for name in SAYS if isinstance(one.get(name), str)), None)


def _names(label: Any) -> list[str]:
    """The labels of a span: mostly one.

    Raises:
        ValueError: there is none.
    """
    listed = list(label) if isinstance(label, list | tuple) else [label]
    names = [str(name).strip() for name in listed if name is not None]
    if not names or not all(names):
        raise ValueError("a span without a label")
    return names


def _whole(value: Any) -> int:
    """A whole number, also of text or a float.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(value, float) and value != int(value):
        raise ValueError(f"no place in a text: {value!r}")
    return int(value)
