"""Imports point downwards only: deployments -> erllama -> cache_store. Read from the source, so that unused branches count, too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cache_store", "erllama", "deployments")
FORBIDDEN = {
    "cache_store": {"erllama", "deployments", "demo_model", "ray", "llama_cpp"},
    "erllama": {"deployments", "demo_model", "ray"},
    "deployments": {"demo_model"},
}


def imported(source: str) -> Iterator[str]:
    """Top-level names of the modules that a source imports, wherever in it, `TYPE_CHECKING` blocks included. "" is a relative import."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.split(".")[0] for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield "" if level else (module or "").split(".")[0]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name.split(".")[0]


def may_import_llama(path: str) -> bool:
    """Only the adapters of the engine to llama.cpp know the library."""
    return path.startswith("erllama/llama/")


def violations(path: str, source: str) -> list[str]:
    """What `source`, if it lay at `path` (relative to the root), must not import."""
    forbidden = FORBIDDEN[path.split("/")[0]]
    if not may_import_llama(path):
        forbidden = forbidden | {"llama_cpp"}
    return [f"{path} imports {name or 'relatively'}" for name in imported(source) if name in forbidden or not name]


def sources() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources())
def test_imports_point_downwards(path: str):
    assert violations(path, (ROOT / path).read_text()) == []


def test_every_package_is_there():
    assert {path.split("/")[0] for path in sources()} == set(PACKAGES)


@pytest.mark.parametrize(
    "line",
    [
        "import ray",
        "import os, ray.serve as serve",
        "from ray import serve",
        "from ray.serve.handle import DeploymentHandle",
        "import importlib\nimportlib.import_module('ray.serve')",
        "from importlib import import_module\nimport_module('ray')",
        "__import__('ray')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray",
        "def later():\n    import ray",
        "try:\n    import ray\nexcept ImportError:\n    pass",
        "import deployments.app",
        "import llama_cpp",
        "from .errors import ErllamaError",
    ],
)
def test_a_forbidden_import_is_found_however_it_is_written(line: str):
    assert violations("erllama/engine/engine.py", line)


def test_the_store_may_import_neither_the_engine_nor_llama_cpp():
    assert violations("cache_store/store.py", "import erllama\nimport llama_cpp\nimport fsspec") == [
        "cache_store/store.py imports erllama",
        "cache_store/store.py imports llama_cpp",
    ]


def test_only_the_llama_files_may_import_llama_cpp():
    assert not violations("erllama/llama/backend.py", "import llama_cpp")
    assert violations("deployments/app.py", "import llama_cpp")
    assert violations("erllama/demo/llama_eval.py", "import llama_cpp")


def test_names_that_only_begin_alike_are_fine():
    assert not violations("erllama/engine/engine.py", "import rayon\nfrom deployments_of_others import x\nimport llama_cppx")
