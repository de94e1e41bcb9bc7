"""Texts out of web pages: tags left out, entities put right."""

from __future__ import annotations

import html
import re
from typing import Final

_INLINE: Final = (
    "a|abbr|acronym|b|big|cite|code|em|font|i|mark|s|small|span|strike|strong|sub|sup|u|wbr"
)
_BLOCK: Final = (
    "address|article|aside|blockquote|body|br|button|caption|center|col|colgroup|dd|div|dl|dt|"
    "figcaption|figure|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|li|link|main|"
    "meta|nav|noscript|object|ol|option|p|param|pre|section|select|source|table|tbody|td|textarea|"
    "tfoot|th|thead|title|tr|ul|video"
)
_UNSEEN: Final = re.compile(
    r"<!--.*?-->|<!doctype[^>]*>|<(script|style)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_WITHIN: Final = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BETWEEN: Final = re.compile(rf"</?(?:{_BLOCK})(?:\s[^<>]*)?/?>", re.IGNORECASE)


def without_markup(text: str) -> str:
    """The text that a browser would show, on one line or several.

    Only what is a tag of HTML goes: `< 5 mm` and `<none>` stay. Tags that were written as entities
    (`&lt;br&gt;`) go as well.
    """
    text = html.unescape(text)
    if "<" not in text:
        return text
    shown = _UNSEEN.sub(" ", text)
    shown = _BETWEEN.sub(" ", _WITHIN.sub("", shown))
    return text if shown == text else html.unescape(shown)
