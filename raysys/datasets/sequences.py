"""Sessions and sequences of items from files: JSON lines, or text lines `user item item …`.

The formats of the field's public data sets, packed or not. Items may be numbers or texts; they are
numbered in the order in which they first come up. A line that says something else is named.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from raysys.datasets.unpack import DAMAGE, ArchiveError, unpacked
from raysys.errors import UserError

SESSION = 'a line is a list of items such as [17, 4], or {"session": [17, 4]}'
CASE = 'a line is such as {"session": [17, 4], "label": 9}'
SEQUENCE = "a line is a user and then items in the order of time, such as: 7 17 4 9"
ATTRIBUTES = 'the file is a JSON object such as {"17": [3, 5], "4": [3]}'


@dataclass(frozen=True)
class Case:
    """A prefix and what followed it, as the file calls the items."""

    session: list[str]
    label: str


def read_sessions(path: Path, *, labels: bool = True) -> list[list[str]]:
    """Sessions of a JSON lines file, in its order, which is taken for the order of time.

    Args:
        path: of the file, packed or not.
        labels: overlook `label` beside a session; False: refuse it, other lines have none.

    Raises:
        UserError: the file cannot be read or holds no session, or a line is not one; names it.
    """
    sessions = []
    for number, line in _lines(path):
        content = _parsed(line, path, number, SESSION)
        if isinstance(content, dict):
            if not labels and "label" in content:
                raise _malformed("a label, which the first line has not", path, number, CASE)
            content = content.get("session")
        sessions.append(items_of(content, path, number, SESSION))
    return _some(sessions, path, "session", SESSION)


def read_cases(path: Path) -> list[Case]:
    """Test cases of a JSON lines file: a session so far and the item that came next.

    Raises:
        UserError: as `read_sessions`.
    """
    cases = []
    for number, line in _lines(path):
        content = _parsed(line, path, number, CASE)
        if not isinstance(content, dict) or not {"session", "label"} <= content.keys():
            raise _malformed("no test case", path, number, CASE)
        label = items_of([content["label"]], path, number, CASE)[0]
        cases.append(Case(items_of(content["session"], path, number, CASE), label))
    return _some(cases, path, "test case", CASE)


def read_user_sequences(path: Path) -> dict[str, list[str]]:
    """Items by user of a text file; a user's further lines continue the first.

    So `user item` a line, in the order of time, reads as well as `user item item …`.

    Raises:
        UserError: the file cannot be read or holds no sequence, or a line names no item.
    """
    users: dict[str, list[str]] = {}
    for number, line in _lines(path):
        user, *items = line.split()
        if not items:
            raise _malformed(f"user {user!r} without an item", path, number, SEQUENCE)
        users.setdefault(user, []).extend(items)
    return dict(zip(users, _some(list(users.values()), path, "sequence", SEQUENCE), strict=True))


def read_attributes(path: Path) -> dict[str, list[str]]:
    """Attributes by item of a JSON file.

    Raises:
        UserError: it is not a JSON object of lists of numbers or texts.
    """
    text = "\n".join(line for _, line in _lines(path))
    content = _parsed(text, path, 1, ATTRIBUTES)
    if not isinstance(content, dict):
        raise _malformed("no JSON object", path, 1, ATTRIBUTES)
    found = {}
    for item, values in content.items():
        given = values if isinstance(values, list) else [values]
        if not all(_is_name(value) for value in given):
            raise UserError(f"attributes of item {item!r} are no list of numbers or texts",
                            where=str(path), mend=ATTRIBUTES)  # fmt: skip
        found[item] = [str(value) for value in given]
    return found


def read_document(path: Path) -> Any:
    """What a JSON file holds as a whole: an object or a list.

    Raises:
        UserError: it cannot be read, or it is something else.
    """
    text = "\n".join(line for _, line in _lines(path))
    content = _parsed(text, path, 1, SESSION)
    if not isinstance(content, dict | list):
        raise _malformed("no JSON object or list", path, 1, SESSION)
    return content


def numbered(lists: Iterable[list[str]]) -> dict[str, int]:
    """Numbers of the items, in the order in which they first come up."""
    numbers: dict[str, int] = {}
    for items in lists:
        for item in items:
            numbers.setdefault(item, len(numbers))
    return numbers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            where = f"{path}:{number}"
            raise UserError("the line is not UTF-8", where=where, mend="save as UTF-8") from None
        if text:
            yield number, text


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked."""
    parts = []
    with readable(path) as file:
        source = unpacked(file)
        while part := source.read(1 << 20):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """The file, opened.

    Raises:
        UserError: it cannot be opened or read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            yield file
    except ArchiveError as error:
        what, _, mend = str(error).partition(": ")
        raise UserError(f"is {what}", where=str(path), mend=mend) from None
    except DAMAGE as error:
        what = f"is damaged or ends in the middle ({type(error).__name__})"
        raise UserError(what, where=str(path), mend="copy or download it again") from None
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(what, where=str(path), mend="name a file that can be read") from None


def _parsed(line: str, path: Path, number: int, form: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _malformed(f"no JSON ({error})", path, number, form) from None


def items_of(content: Any, path: Path, number: int, form: str) -> list[str]:
    """A list of numbers or texts as texts.

    Raises:
        UserError: it is none; names the line and the form that is expected.
    """
    if not isinstance(content, list) or not all(_is_name(item) for item in content):
        raise _malformed("items are no list of numbers or texts", path, number, form)
    return [str(item) for item in content]


def _is_name(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and bool(value)
    )


def _malformed(what: str, path: Path, number: int, form: str) -> UserError:
    return UserError(what, where=f"{path}:{number}", mend=form)


def _some(found: list[Any], path: Path, what: str, form: str) -> list[Any]:
    if not found:
        raise UserError(f"holds no {what}", where=str(path), mend=form)
    return found
