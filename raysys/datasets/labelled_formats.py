"""Files of labelled texts that are no tables: tokens with tags, fastText, exports of annotators.

Each becomes records with columns such as `text`, `label`, `spans`; what they are is in
docs/text-files.md. Records are numbered as they come: of token files sentences, of JSON rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

import polars as pl

from raysys.datasets.chunks import Lost, as_fault, chunks, utf8
from raysys.datasets.files import Block, Fault, Part, filled, lacks_needed, nothing_but
from raysys.datasets.json_lines import text_column, value_at
from raysys.datasets.layouts import (
    LABEL,
    START,
    TRIPLE,
    conll_split,
    parsed,
    tag_column,
    token_fields,
)
from raysys.datasets.mapping import FROM_PATH, AnyFiles, fit, wanted
from raysys.datasets.span_notations import of_studio
from raysys.datasets.tagged_tokens import as_text, join_of

ROWS: Final = 16_384
"""Records of a block."""

_LOOK: Final = 2000  # token lines by which columns are told
_BETWEEN: Final = re.compile(r"[\s,]*")  # rows of a list
_PEEK: Final = 50  # records looked at for their keys
_HOLDERS: Final = ("data", "annotations", "rows", "examples", "documents", "items", "records")

Record = dict[str, Any] | Fault


def peek(part: Part, files: AnyFiles) -> list[str] | None:
    """The columns of the first records; None if there are none to see."""
    keys: dict[str, None] = {}
    for record in islice(_records(part, files), _PEEK):
        if not isinstance(record, Fault):
            keys |= dict.fromkeys(record)
    return list(keys) or None


def read(part: Part, files: AnyFiles, derived: frozenset[str] = frozenset()) -> Iterator[Block]:
    """The records of a file as text columns; see `files.read`."""
    asked = wanted(files, derived)
    names = [*files.columns.values()] if asked is None else asked
    told = dict(part.told)
    seen: dict[str, None] = {}
    row = 0
    records = _records(part, files)
    while batch := list(islice(records, ROWS)):
        numbers, good, faults = [], [], []
        for record in batch:
            row += 1
            if isinstance(record, Fault):
                faults.append(Fault(row, record.reason, record.raw, record.passing))
            else:
                numbers.append(row)
                good.append(record)
        if asked is None:
            names = list(dict.fromkeys(chain(names, *good)))
        columns = {name: text_column([value_at(r, name) for r in good]) for name in names}
        rows = pl.DataFrame(columns)
        seen |= {name: None for name in names if rows[name].null_count() < rows.height}
        rows = rows.with_columns(
            pl.col(name).fill_null(told[name.removeprefix(FROM_PATH)])
            for name in names
            if told.get(name.removeprefix(FROM_PATH)) is not None
        )
        yield Block(rows, pl.Series(numbers, dtype=pl.Int64), faults)
    if row == 0:
        yield nothing_but(Fault(0, "empty_file", "no rows"))
        return
    fitted = fit(files, list(seen), derived, told)
    if fault := lacks_needed(fitted, list(seen)) if not seen else None:
        yield nothing_but(fault)
    elif fitted.lacking:
        yield Block(filled(pl.DataFrame(), fitted).clear(), pl.Series([], dtype=pl.Int64),
                    lacking=fitted.lacking)  # fmt: skip


def _records(part: Part, files: AnyFiles) -> Iterator[Record]:
    readers: dict[str, Callable[[Part, AnyFiles], Iterator[Record]]] = {
        "conll": _conll, "fasttext": _fasttext, "triples": _triples,
        "lines": _plain, "json": _json, "brat": _brat,
    }  # fmt: skip
    return readers[part.format](part, files)


def _lines(part: Part, files: AnyFiles) -> Iterator[str | Fault]:
    """The lines of a file, without their ends; last what stopped the reading, if so."""
    for chunk in chunks(part, quoted=False, encoding=files.encoding):
        if isinstance(chunk, Lost):
            yield as_fault(chunk, 1)
            return
        text = utf8(chunk, files.encoding).decode()
        yield from (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _plain(part: Part, files: AnyFiles) -> Iterator[Record]:
    """A text a line, blank ones left out."""
    for line in _lines(part, files):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            yield {"text": line.strip()}


def _fasttext(part: Part, files: AnyFiles) -> Iterator[Record]:
    """`__label__x text`; several labels of a line are no one label and go aside."""
    for line in _lines(part, files):
        if isinstance(line, Fault):
            yield line
            continue
        words = line.split()
        labels = [word.removeprefix(LABEL) for word in words if word.startswith(LABEL)]
        text = " ".join(word for word in words if not word.startswith(LABEL))
        if len(labels) > 1:
            yield Fault(0, "several_labels", line)
        elif words:
            yield {"text": text, "label": labels[0].strip(",") if labels else None}


def _triples(part: Part, files: AnyFiles) -> Iterator[Record]:
    """Titles with all their attributes, in the order of their first line."""
    titles: dict[str, dict[str, list[str]]] = {}
    faults: list[Fault] = []
    for line in _lines(part, files):
        fields = [] if isinstance(line, Fault) else line.split(TRIPLE)
        if isinstance(line, Fault):
            faults.append(line)
        elif len(fields) == 3:
            title, name, value = (field.strip() for field in fields)
            titles.setdefault(title, {}).setdefault(name, []).append(value)
        elif line.strip():
            faults.append(Fault(0, "line_does_not_parse", line))
    yield from ({"text": text, "attributes": found} for text, found in titles.items())
    yield from faults


def _conll(part: Part, files: AnyFiles) -> Iterator[Record]:
    """Sentences of a token a line.

    Without a header they are `text`, `spans`, `tokens` and `tags`; with one lists of its names.
    """
    lines = _lines(part, files)
    head = list(islice(lines, _LOOK))
    tokens = [s for s in head if isinstance(s, str) and s.strip() and not _is_comment(s)]
    between = conll_split(tokens)
    rows = [fields for line in tokens if (fields := token_fields(line, between))]
    width = max({len(row) for row in rows} or {1}, key=[len(row) for row in rows].count)
    fitting = [row for row in rows if len(row) == width]
    tag = tag_column(fitting)
    if tag is None and (below := tag_column(fitting[1:])) is not None:  # under a header line
        tag, fitting = below, fitting[1:]
        head.remove(tokens[0])
    tag = width - 1 if tag is None else tag
    word = next((at for at in range(width) if at != tag and not _counts(fitting, at)), 0)
    join = join_of([[row[word] for row in fitting]])
    for sentence in _sentences(chain(head, lines), between):
        if isinstance(sentence, Fault):
            yield sentence
            continue
        broken = next((row for row in sentence if len(row) != width), None)
        if broken is not None:
            yield Fault(0, "line_does_not_parse", " ".join(broken))
        elif files.header:
            named = zip(files.header, zip(*sentence, strict=True), strict=False)
            yield {name: list(values) for name, values in named}
        else:
            said = [row[word] for row in sentence]
            if width == 1:
                yield {"text": join.join(said), "tokens": said}
                continue
            tags = [row[tag] for row in sentence]
            text, spans = as_text(said, tags, join)
            yield {"text": text, "spans": spans, "tokens": said, "tags": tags}


def _sentences(
    lines: Iterable[str | Fault], between: str | None
) -> Iterator[list[list[str]] | Fault]:
    """Rows of tokens between blank lines."""
    rows: list[list[str]] = []
    for line in lines:
        if isinstance(line, Fault):
            yield line
            continue
        fields = [] if _is_comment(line) else token_fields(line, between)
        if fields:
            rows.append(fields)
        elif rows and not (line.startswith("#") and line.strip()):
            yield rows
            rows = []
    if rows:
        yield rows


def _is_comment(line: str) -> bool:
    return line.startswith((START, "# "))


def _counts(rows: list[list[str]], column: int) -> bool:
    """Whether a column numbers the tokens."""
    return len(rows) > 1 and all(row[column].isdigit() for row in rows)


def _json(part: Part, files: AnyFiles) -> Iterator[Record]:
    """Rows of one document, or of lines that are no plain objects."""
    lines: list[str] = []
    for line in _lines(part, files):
        if isinstance(line, Fault):
            yield line
            return
        lines.append(line)
    full = [line for line in lines if line.strip()]
    document = None if len(full) > 1 and parsed(full[0]) is not None else _document(lines)
    if document is not None:
        for record in _rows_of(document):
            yield from _flat(record)
        return
    first = parsed(full[0]) if full else None
    if first is None:
        yield from _before_the_cut("\n".join(lines))
        return
    for line in full:
        record = parsed(line)
        yield from [Fault(0, "line_does_not_parse", line)] if record is None else _flat(record)


def _before_the_cut(text: str) -> Iterator[Record]:
    """The rows of a list that breaks off, and that it does."""
    decoder, at, found = json.JSONDecoder(), text.find("[") + 1, False
    while at and at < len(text):
        begin = _BETWEEN.match(text, at)
        assert begin
        try:
            record, at = decoder.raw_decode(text, begin.end())
        except (ValueError, RecursionError):
            break
        found = True
        yield from _flat(record)
    reason = "truncated_file" if found else "unreadable_file"
    yield Fault(0, reason, "neither one JSON document nor a JSON value a line")


def _document(lines: list[str]) -> Any:
    try:
        return json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None


def _rows_of(document: Any) -> Iterable[Any]:
    """The rows of a document: of a list, of an object that holds one, or of columns."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        return [document]
    holder = next((n for n in _HOLDERS if isinstance(document.get(n), list)), None)
    if holder and "text" not in document and "tokens" not in document:
        return [row for row in document[holder] if row is not None]
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values):
        keys = list(values[0])
        if all(list(value) == keys for value in values):  # as pandas writes columns
            return [{name: value[key] for name, value in document.items()} for key in keys]
    return [document]


def _flat(record: Any) -> Iterator[Record]:
    """A row as an object of columns; that of MAVE is one a paragraph."""
    if isinstance(record, list | tuple):
        yield _pair(list(record))
    elif not isinstance(record, dict):
        yield Fault(0, "line_does_not_parse", str(record))
    elif "row_idx" in record and isinstance(record.get("row"), dict):  # Hugging Face's viewer
        yield record["row"]
    elif isinstance(record.get("paragraphs"), list):
        yield from _mave(record)
    elif isinstance(record.get("data"), dict) and (
        "annotations" in record or "completions" in record
    ):
        told = of_studio(record.get("annotations") or record.get("completions") or [])
        yield (
            Fault(0, "not_annotated", json.dumps(record["data"], ensure_ascii=False))
            if (told is None)
            else {**record["data"], **told}
        )
    else:
        yield record


def _pair(record: list[Any]) -> Record:
    """`[text, {"entities": …}]` of spaCy, or `[text, label]`."""
    if len(record) == 2 and isinstance(record[0], str):
        text, told = record
        return {"text": text, **told} if isinstance(told, dict) else {"text": text, "label": told}
    return Fault(0, "line_does_not_parse", json.dumps(record, ensure_ascii=False, default=str))


def _mave(record: dict[str, Any]) -> Iterator[Record]:
    """A product of MAVE: its paragraphs, with the evidences of attributes in each."""
    spans: dict[int, list[dict[str, Any]]] = {}
    for attribute in record.get("attributes") or ():
        for found in attribute.get("evidences") or ():
            span = {"start": found["begin"], "end": found["end"], "text": found.get("value")}
            spans.setdefault(int(found["pid"]), []).append({**span, "label": attribute["key"]})
    for number, paragraph in enumerate(record["paragraphs"]):
        yield {
            "id": f"{record.get('id', '')}-{number}",
            "text": paragraph.get("text"),
            "source": paragraph.get("source"),
            "category": record.get("category"),
            "product": record.get("id"),
            "spans": spans.get(number, []),
        }


def _brat(part: Part, files: AnyFiles) -> Iterator[Record]:
    """A document and the spans that its `.ann` says of it."""
    beside = part.path[: -len(".ann")] + ".txt"
    document = Part(beside, part.label, "lines", 0)
    lines: list[str] = []
    for line in _lines(document, files):
        if isinstance(line, Fault):
            yield line
            return
        lines.append(line)
    spans = []
    for line in _lines(part, files):
        if isinstance(line, Fault):
            yield line
            return
        if not line.startswith("T"):
            continue  # relations, events, notes
        _, told, *said = line.split("\t")
        label, places = told.split(" ", 1)
        numbers = [int(place) for piece in places.split(";") for place in piece.split()]
        whole = said and ";" not in places
        span = {"start": min(numbers), "end": max(numbers), "label": label}
        spans.append({**span, "text": said[0]} if whole else span)
    yield {"text": "\n".join(lines), "spans": spans, "file": part.label}
