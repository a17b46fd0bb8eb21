"""Markdown that grows: what is printed once is final, and nothing is lost."""

import io
import itertools
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from docs.generate.screenshots.terminal import settled
from erllama.cli.chat.markdown_stream import MarkdownStream, split_finished

LINES = st.lists(st.sampled_from(["a", "", "- b", "```", "~~~", "  c", "# d"])).map("\n".join)


@given(LINES)
def test_the_parts_are_the_text_and_no_code_block_is_cut(text):
    done, rest = split_finished(text)
    assert done + rest == text
    fence = ""
    for line in done.splitlines():
        if fence:
            fence = "" if line.strip() == fence else fence
        elif line.lstrip()[:3] in ("```", "~~~"):
            fence = line.lstrip()[:3]
    assert fence == ""


@given(LINES, st.integers(0, 40))
def test_what_is_finished_stays_so_whatever_follows(text, cut):
    done, _ = split_finished(text[:cut])
    assert split_finished(text)[0].startswith(done)


def test_all_of_a_reply_is_on_the_screen_at_the_end():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=8)
    text = "# Title\n\n" + "\n\n".join(f"Paragraph {i} here." for i in range(30)) + "\n\n```\ncode\n\nmore\n```\nlast"
    with MarkdownStream(console) as stream:
        for start in range(0, len(text), 7):
            stream.feed(text[start : start + 7])
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    for i in range(30):
        assert plain.count(f"Paragraph {i} here.") >= 1
    assert plain.rstrip().endswith("last")


@given(st.lists(st.integers(1, 40), min_size=1), st.integers(1, 5))
def test_whatever_was_drawn_meanwhile_each_line_stands_on_the_screen_once(sizes, frames_apart):
    """However the reply comes in pieces, and however often it is drawn before it is whole."""
    text = "".join(f"Paragraph {i} here.\n\n" for i in range(6)) + "```\ncode here\n\nmore\n```\nlast"
    file, n_asked = io.StringIO(), itertools.count()
    console = Console(file=file, force_terminal=True, width=60, height=8)
    with MarkdownStream(console, clock=lambda: next(n_asked) / 8 / frames_apart) as stream:
        at = 0
        for size in itertools.cycle(sizes):
            stream.feed(text[at : at + size])
            at += size
            if at >= len(text):
                break
    lines = re.sub(r"\x1b\[[0-9;]*m", "", settled(file.getvalue())).split("\n")
    shown = [line.strip() for line in lines if line.strip()]
    assert shown == [*(f"Paragraph {i} here." for i in range(6)), "code here", "more", "last"]
