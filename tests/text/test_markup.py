"""What a browser would show of a text."""

from __future__ import annotations

import time

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
        ("a<b and c>d", "a<b and c>d"),
        ("size <s> m, if i<i>j", "size <s> m, if i<i>j"),
        ("<s>old</s> new", "old new"),
        ("<a href='x>y'>k</a>", "k"),
        ('<a href=x title="y > z" data-z>k</a>', "k"),
        ('<input disabled>a<td nowrap width="1">b<br / >c</td >', "a b c"),
        ("<p title=Men's>It's <b class=x>here</b>", "It's here"),
        ('<p class="x>seen</p>', "seen"),
        ("<!DOCTYPE html><SCRIPT src=x>d</Script >a<!-- unclosed", "a<!-- unclosed"),
    ],
)
def test_tags_go_and_signs_stay(written: str, shown: str) -> None:
    assert " ".join(without_markup(written).split()) == shown


@pytest.mark.parametrize(
    "part", ["<!--", "<script>", "<style", "<!doctype", '<a href="', "<a b='\"", "<b ", "</p\t"]
)
def test_texts_that_open_and_close_nothing_are_read_once(part: str) -> None:
    text = part * 40_000
    began = time.process_time()
    assert without_markup(text) == text
    assert without_markup(f"<b{' ' * 200_000}x") == f"<b{' ' * 200_000}x"
    assert time.process_time() - began < 1.0
