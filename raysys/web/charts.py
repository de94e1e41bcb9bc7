"""Small charts as inline SVG, each with its figures in words for who cannot see it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

_OLD, _NEW, _LINE = "#2f6f8f", "#d1783c", "#dde3e8"


def two_shares(reference: Sequence[float], current: Sequence[float], words: str) -> Markup:
    """Two distributions over the same bins, bars side by side.

    Args:
        reference, current: shares by bin; what is empty in both is left out.
        words: what the chart says.
    """
    pairs = [pair for pair in zip(reference, current, strict=True) if max(pair) > 0]
    top = max((max(pair) for pair in pairs), default=1.0)
    width, height = 12 * len(pairs), 36
    bars = Markup("")
    for at, pair in enumerate(pairs):
        for step, share, colour in ((1, pair[0], _OLD), (6, pair[1], _NEW)):
            tall = (height - 2) * share / top
            bars += Markup('<rect x="{}" y="{:.1f}" width="5" height="{:.1f}" fill="{}"/>').format(
                12 * at + step, height - tall, tall, colour
            )
    return _svg(width, height, bars, words)


def curve(
    points: Sequence[tuple[int, float, float, float]], words: str, width: int = 520
) -> Markup:
    """Values by position, with their intervals.

    Args:
        points: position, value, low, high.
        words: what the chart says.
        width: in pixels.
    """
    left, bottom, height = 44, 22, 170
    top = _round_up(max((high for _, _, _, high in points), default=0.0) or 1.0)
    last = max((place for place, *_ in points), default=1)
    step = (width - left - 10) / max(1, last)

    def x(place: float) -> float:
        return left + step * (place - 0.5)

    def y(value: float) -> float:
        return 8 + (height - bottom - 8) * (1 - value / top)

    drawn = Markup("")
    for part in (0.0, 0.5, 1.0):
        drawn += Markup(
            '<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="{3}"/>'
            '<text x="{4}" y="{5:.1f}" text-anchor="end" font-size="11" fill="#55616c">{6}</text>'
        ).format(
            left,
            width,
            y(top * part),
            _LINE,
            left - 6,
            y(top * part) + 4,
            f"{100 * top * part:.3g}%",
        )
    for place, value, low, high in points:
        drawn += Markup(
            '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}" stroke="{5}" '
            'stroke-width="1.5"/><circle cx="{0:.1f}" cy="{3:.1f}" r="3.5" fill="{5}"/>'
            '<text x="{0:.1f}" y="{4}" text-anchor="middle" font-size="11" '
            'fill="#55616c">{6}</text>'
        ).format(x(place), y(low), y(high), y(value), height - 4, _OLD, place)
    return _svg(width, height, drawn, words)


def _round_up(value: float) -> float:
    """The next number that reads well on an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value))


def _svg(width: int, height: int, drawn: Markup, words: str) -> Markup:
    return Markup(
        '<svg role="img" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}">{}</svg>'
    ).format(words, width, height, width, height, drawn)
