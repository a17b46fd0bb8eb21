"""`python -m docs.generate.pictures`: measure (`measured_prompts`), and draw what was measured into
docs/pictures/. A test draws and counts again. Drawing is pure.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from docs.generate.measured_prompts import Prompt, measure, read_json, to_json

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
DATA = FOLDER / "prompts.json"
TITLES = {
    "conversation": "Tokens of each turn's prompt: taken over, and computed",
    "places": "One prompt, and where its KV was found",
}
_ROW, _BAR, _TOP, _LEFT, _WIDTH, _RIGHT = 30, 20, 64, 170, 400, 230
# Readable on light and on dark pages; the same two colours in both.
_STYLE = """\
text { font: 14px sans-serif; fill: #333 } .title { font-weight: bold }
.cached { fill: #2a9d6f } .computed { fill: #d9822b }
@media (prefers-color-scheme: dark) { text { fill: #ddd } }"""


def draw(title: str, rows: list[Prompt]) -> str:
    """An SVG: a bar for each prompt, its cached beginning before what was computed."""
    height = _TOP + _ROW * len(rows) + 8
    most = max(row.prompt_tokens for row in rows)
    said = "; ".join(f"{row.label}: {row.cached_tokens} of {row.prompt_tokens} cached" for row in rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{_STYLE}</style>",
        f'<text class="title" x="10" y="22">{escape(title)}</text>',
        f'<rect class="cached" x="{_LEFT}" y="36" width="14" height="14"/><text x="{_LEFT + 20}" y="48">cached</text>',
        f'<rect class="computed" x="{_LEFT + 100}" y="36" width="14" height="14"/>'
        f'<text x="{_LEFT + 120}" y="48">computed</text>',
        *(_row(row, _TOP + _ROW * index, most) for index, row in enumerate(rows)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _row(row: Prompt, top: int, most: int) -> str:
    cached, whole = (round(_WIDTH * n / most, 1) for n in (row.cached_tokens, row.prompt_tokens))
    where = {"": "", "live": " (in the context)", "store": " (from the store)"}[row.tier]
    told = f"{row.prompt_tokens - row.cached_tokens} computed{where}"
    return (
        f'<text x="{_LEFT - 10}" y="{top + 15}" text-anchor="end">{escape(row.label)}</text>'
        f'<rect class="cached" x="{_LEFT}" y="{top}" width="{cached}" height="{_BAR}"/>'
        f'<rect class="computed" x="{round(_LEFT + cached, 1)}" y="{top}" width="{round(whole - cached, 1)}" '
        f'height="{_BAR}"/><text x="{round(_LEFT + whole + 8, 1)}" y="{top + 15}">{told}</text>'
    )


def drawn(data: str) -> dict[str, str]:
    """The pictures of measured data, by the names of their files."""
    return {f"{name}.svg": draw(TITLES[name], rows) for name, rows in read_json(data).items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    DATA.write_text(to_json(measure()))
    for name, picture in drawn(DATA.read_text()).items():
        (FOLDER / name).write_text(picture)


if __name__ == "__main__":
    main()
