"""`python -m docs.generate.screenshots DIR` writes all pictures into a directory, but those that still say the same."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser

from docs.generate.screenshots.commands import terminal_pictures
from docs.generate.screenshots.compare import difference
from docs.generate.screenshots.page import page_pictures
from docs.generate.screenshots.site import picture_site
from tests.support.page_site import chromium


@contextmanager
def made() -> Iterator[tuple[dict[str, bytes], Browser]]:
    """The bytes of each picture's file by its name, and the browser, which may be used further. Commands run
    before the browser starts: its event loop counts as running in this thread, and they have their own.
    """
    with tempfile.TemporaryDirectory() as here, picture_site() as (url, _):
        found = {name: svg.encode() for name, svg in terminal_pictures(url, Path(here))}
    with chromium() as browser:
        found |= page_pictures(browser)
        yield found, browser


def write(folder: Path) -> None:
    """Other files of the folder are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with made() as (found, browser):
        for name, picture in found.items():
            path = folder / name
            why = difference(path.read_bytes(), picture, browser) if path.is_file() else "it is new"
            if why:
                path.write_bytes(picture)
                print(f"{name}, {len(picture):,} bytes: {why}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="docs.generate.screenshots", description="Make the documentation's pictures.")
    parser.add_argument("folder", type=Path, help="where to")
    write(parser.parse_args(argv).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
