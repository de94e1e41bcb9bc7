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
_FLAGS: Final = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|"
    "download|hidden|ismap|itemscope|loop|multiple|muted|nohref|noshade|novalidate|nowrap|open|"
    "readonly|required|reversed|selected"
)
_OPENING: Final = re.compile(r"<!--|<!doctype\b[^<>]*>|<(script|style)\b[^<>]*>", re.IGNORECASE)
_CLOSING: Final = {
    "": re.compile("-->"),
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
}
# A name that flags or `name=value` follow, as words do in `a<b and c>d`, which is no tag. No part
# passes a `<`, and none is tried twice: texts full of `<a href="` take no longer than others.
_TAG: Final = re.compile(
    rf"""</?(?:(?P<within>{_INLINE})|{_BLOCK})
    (?:
        (?:\s++(?:{_FLAGS}))*+ \s*+ (?:/\s*+)?>
      | (?:\s++(?:{_FLAGS})(?=\s))*+ \s++ [\w:.@-]++ \s*+ (?==)
        (?: (?:=\s*+(?:"[^"<]*+"|'[^'<]*+')|[^<>])*+ > | [^<>]*+> )
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_BARE: Final = re.compile(r"<([abisu])>", re.IGNORECASE)
_ENDS: Final = re.compile(r"</([abisu])\s*+>", re.IGNORECASE)


def without_markup(text: str) -> str:
    """The text that a browser would show, on one line or several.

    Only what is a tag of HTML goes: `< 5 mm`, `a<b and c>d` and `<none>` stay, and a single letter
    that nothing closes (`size <s>`). Tags that were written as entities (`&lt;br&gt;`) go as well.
    """
    text = html.unescape(text)
    if "<" not in text:
        return text
    shown = _seen(text)
    closed = {name.lower() for name in _ENDS.findall(shown)}

    def instead(tag: re.Match[str]) -> str:
        bare = _BARE.fullmatch(tag[0])
        if bare and bare[1].lower() not in closed:
            return tag[0]
        return "" if tag["within"] else " "

    shown = _TAG.sub(instead, shown)
    return text if shown == text else html.unescape(shown)


def _seen(text: str) -> str:
    """The text without comments, scripts and styles; what is not closed stays."""
    parts, start, at = [], 0, 0
    open_for_good: set[str] = set()
    while opening := _OPENING.search(text, at):
        at = opening.end()
        if not opening[0].lower().startswith("<!doctype"):
            name = (opening[1] or "").lower()
            end = None if name in open_for_good else _CLOSING[name].search(text, at)
            if end is None:
                open_for_good.add(name)  # nor is any later one
                continue
            at = end.end()
        parts.append(text[start : opening.start()])
        start = at
    return " ".join([*parts, text[start:]])
