"""`python -m docs.generate.site_check FOLDER`: no built page loads anything from elsewhere. Exits with
1 and the places where one does. Links that a reader follows may lead anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_TOLD_ONLY = {"canonical", "prev", "next", "alternate", "author"}


class _Assets(HTMLParser):
    """What a page loads when it is read, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        loads = values.get(_LOADS.get(tag, ""))
        if loads and values.get("rel") not in _TOLD_ONLY:
            self.found.append(loads)


def assets(page: str) -> list[str]:
    """Of a page's HTML: scripts, styles, pictures, frames."""
    parser = _Assets()
    parser.feed(page)
    return parser.found


def problems(folder: Path) -> Iterator[str]:
    """A line for each thing that comes from another host, or is not there."""
    for page in sorted(folder.rglob("*.html")):
        for asset in assets(page.read_text()):
            if asset.startswith(("http:", "https:", "//")):
                yield f"{page.name} loads {asset}"
            elif not asset.startswith(("data:", "/")) and not (page.parent / asset.split("?")[0]).exists():
                yield f"{page.name} loads {asset}, which is not there"


def main(folder: Path) -> int:
    found = list(problems(folder))
    pages = len(list(folder.rglob("*.html")))
    print("\n".join(found) or f"{pages} pages in {folder}, which load nothing from elsewhere")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
