"""What a browser would show of a text."""

from __future__ import annotations

import pytest

from raysys.text.markup import without_markup


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("<p>Two<br>lines</p>", "Two lines"),
        ("<ul><li>One</li><li class='x'>Two</li></ul>", "One Two"),
        ("wo<b>r</b>d H<sub>2</sub>O", "word H2O"),
        ("&lt;p&gt;caf&amp;eacute;&lt;/p&gt;", "café"),
        ("4 &lt; 5 &amp; 6", "4 < 5 & 6"),
        ("a <none> of 3<5 or <5 mm", "a <none> of 3<5 or <5 mm"),
        ("<style>p {}</style>a<!-- b --> c<script>d</script>", "a c"),
        ('<img alt="x" src="y"/>seen', "seen"),
        ('Black & Decker 5"', 'Black & Decker 5"'),
    ],
)
def test_tags_go_and_signs_stay(written: str, shown: str) -> None:
    assert " ".join(without_markup(written).split()) == shown
