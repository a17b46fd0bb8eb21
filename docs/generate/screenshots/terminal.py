"""What a command wrote to a terminal, as text and as an SVG."""

from __future__ import annotations

import io
import re

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

WIDTH = 100
_CODES = re.compile(r"(\n|\x1b\[\d*A|\x1b\[2K)")
_OTHER_CODES = re.compile(r"\r|\x1b\[\?\d+[hl]")
# Nothing is loaded from elsewhere when a picture is read: the font is that of the reader's machine.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def settled(output: str) -> str:
    """The output as it stands on the screen in the end: what was drawn again stands there once. Of a
    terminal's codes these are known that rich draws with: one line up, and a line erased.
    """
    lines, at = [""], 0
    for piece in _CODES.split(_OTHER_CODES.sub("", output)):
        if piece == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b["):
            at -= int(piece[2:-1] or 1)
        elif piece == "\x1b[2K":
            lines[at] = ""
        else:
            lines[at] += piece
    return "\n".join(lines).rstrip()


def svg(title: str, output: str) -> str:
    """Of the same output the same bytes."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(settled(output)))
    return console.export_svg(title=title, code_format=_FORMAT, unique_id="terminal")
