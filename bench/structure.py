"""How the source is laid out: files and lines per folder, floors of imports, circles, duplicates of
what one file should hold.

    python bench/structure.py [--root CHECKOUT] [--json FILE]

For each package: `files` and `lines` (all lines, as `wc -l` counts them), `folders`,
`largest_folder` (files in it), `short` and `long` (files of fewer than 60 and of more than 400
lines, package docstrings apart), `floors` (the longest chain of modules of the package that import
each other), `folder_floors` (the same for folders), `circles` (groups of modules that import each
other, `TYPE_CHECKING` included).
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

PACKAGES = ("cache_store", "erllama", "deployments")
Graph = Mapping[str, set[str]]


def module_of(path: Path) -> str:
    """The dotted name of a file that is given relative to the root."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, names: Iterable[str]) -> set[str]:
    """Those of the modules `names` that a source imports."""
    known, found = set(names), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= whole or {node.module}
    return found & known


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [*graph[start]]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph[node]
        return seen

    reach = {node: reached(node) for node in graph}
    groups = {
        tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph if node in reach[node]
    }
    return [list(group) for group in sorted(groups)]


def floors(graph: Graph) -> int:
    """Nodes of the longest chain, a circle counting as one."""
    group = {node: members[0] for members in circles(graph) for node in members}
    above = {group.get(node, node): set[str]() for node in graph}
    for node, used in graph.items():
        above[group.get(node, node)] |= {group.get(other, other) for other in used} - {group.get(node, node)}

    @cache
    def height(node: str) -> int:
        return 1 + max(map(height, above[node]), default=0)

    return max(map(height, above), default=0)


def measure(root: Path, package: str) -> dict[str, object]:
    """The figures of one package of the checkout at `root`."""
    paths = sorted(path.relative_to(root) for path in (root / package).rglob("*.py"))
    sources = {path: (root / path).read_text() for path in paths}
    names = {path: module_of(path) for path in paths}
    modules = {names[path]: imports(source, names.values()) - {names[path]} for path, source in sources.items()}
    folder_of = {names[path]: path.parent.as_posix() for path in paths}
    folders = {folder: set[str]() for folder in folder_of.values()}
    for name, used in modules.items():
        folders[folder_of[name]] |= {folder_of[other] for other in used} - {folder_of[name]}
    code = [len(source.splitlines()) for path, source in sources.items() if path.name != "__init__.py"]
    per_folder = [
        sum(path.parent.as_posix() == folder and path.name != "__init__.py" for path in paths) for folder in folders
    ]
    return {
        "files": len(paths),
        "lines": sum(len(source.splitlines()) for source in sources.values()),
        "folders": len(folders),
        "largest_folder": max(per_folder),
        "short": sum(n < 60 for n in code),
        "long": sum(n > 400 for n in code),
        "floors": floors(modules),
        "circles": circles(modules),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {package: measure(args.root, package) for package in PACKAGES if (args.root / package).is_dir()}
    for package, figures in result.items():
        print(package, *(f"{name}={value}" for name, value in figures.items()), sep="  ")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
