"""Tokens and their tags as a text and its spans: BIO, IOB1, BIOES, BMES, or labels alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

_PREFIXED: Final = re.compile(r"([BIESMLU])[-_](.+)", re.DOTALL)
_DENSE: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff]")
_MOSTLY: Final = 0.8  # of tokens: what makes a file one of a script without blanks
_MANY: Final = 0.5


def join_of(sentences: Sequence[Sequence[str]]) -> str:
    """What stood between the tokens: nothing where they are characters of Chinese or its like.

    Where they are words of such a script it is nothing either; else a blank.
    """
    tokens = [token for tokens in sentences for token in tokens]
    dense = sum(bool(_DENSE.search(token)) for token in tokens)
    single = sum(len(token) <= 1 for token in tokens)
    without = (dense and single >= _MOSTLY * len(tokens)) or dense > _MANY * len(tokens)
    return "" if without else " "


def as_text(
    tokens: Sequence[str], tags: Sequence[str], join: str
) -> tuple[str, list[dict[str, Any]]]:
    """The text that tokens make, and spans {start, end, label} of its characters.

    Raises:
        ValueError: not as many tags as tokens.
    """
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens, {len(tags)} tags")
    spans: list[dict[str, Any]] = []
    at, label, open_ = 0, "", False
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        at += len(join) if number else 0
        end = at + len(token)
        match = _PREFIXED.fullmatch(tag)
        prefix, name = match.groups() if match else ("I" if tag not in ("O", "", "_") else "", tag)
        if not prefix:
            open_ = False
        elif open_ and name == label and prefix in "IMEL":
            spans[-1]["end"] = end
        elif token:
            spans.append({"start": at, "end": end, "label": name})
            open_, label = True, name
        if prefix in ("E", "L", "S", "U"):
            open_ = False
        at = end
    return join.join(tokens), spans
