"""Imports point downwards only: deployments -> erllama -> cache_store, and inside each from later
folders to earlier ones.

Read from the source, so that unused branches count, too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom up: each folder, and each file beside the folders, imports only what stands before
# it.
ORDER = {
    "cache_store": (
        *("errors", "format", "index", "in_flight", "config", "records"),
        *("tiers", "sharing", "write", "documents", "read", "transfer", "verify", "store", "__init__", "testing"),
    ),
    "erllama": (
        *(
            "errors",
            "api_keys",
            "events",
            "grammar",
            "session_name",
            "request",
            "kv",
            "stats",
            "gguf",
            "hub",
            "sequence",
            "backend",
            "prompts",
            "chat",
            "demo",
            "config",
            "footprint",
            "diagnosis",
            "cache",
            "speculation",
            "pace",
            "stream",
        ),
        *(
            "engine",
            "model_info",
            "llama",
            "model_part",
            "pooled",
            "model_prefixes",
            "model_requests",
            "model_drafts",
            "model",
        ),
        *("__init__", "agents", "benchmark", "cli", "testing"),
    ),
    "deployments": (
        *(
            "__init__",
            "attempt_id",
            "metrics",
            "telemetry",
            "access",
            "noise",
            "capture",
            "http",
            "generation",
            "dialects",
            "page",
            "store_spec",
            "config",
            "serve_log",
            "memory",
            "routing",
            "model",
            "versions",
            "cpu_shares",
            "model_app",
            "hub",
        ),
        *("ingress", "app", "jobs", "launch", "stop_signals", "console", "service", "run", "doctor"),
    ),
}
PACKAGES = tuple(ORDER)
FORBIDDEN = {
    "cache_store": {"erllama", "deployments", "demo_model", "ray", "llama_cpp"},
    "erllama": {"deployments", "demo_model", "ray"},
    "deployments": {"demo_model"},
}


def imported(source: str) -> Iterator[str]:
    """Dotted names of the modules that a source imports, wherever in it. "" is a relative
    import.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield "" if level else (module or "")
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def may_import_llama(path: str) -> bool:
    """Only the adapters of the engine to llama.cpp know the library."""
    return path.startswith("erllama/llama/")


def violations(path: str, source: str) -> list[str]:
    """What `source`, if it lay at `path` (relative to the root), must not import."""
    forbidden = FORBIDDEN[path.split("/")[0]]
    if not path.startswith("erllama/grammar/"):
        forbidden = forbidden | {"llguidance"}
    if not may_import_llama(path):
        forbidden = forbidden | {"llama_cpp"}
    names = {name.split(".")[0] for name in imported(source)}
    return [f"{path} imports {name or 'relatively'}" for name in sorted(names) if name in forbidden or not name]


def unit(parts: list[str]) -> str:
    """The folder of a module below its package, or the file that lies beside the folders."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"


def climbs(path: str, source: str) -> list[str]:
    """Imports of `source` that lead to a folder which does not stand before its own."""
    package, *_ = parts = path.split("/")
    order, own = ORDER[package], unit(parts)
    used = {unit(name.split(".")) for name in imported(source) if name.split(".")[0] == package}
    return [f"{path} imports {name}" for name in sorted(used - {own}) if order.index(name) > order.index(own)]


def sources() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("path", sources())
def test_imports_point_downwards(path: str):
    source = (ROOT / path).read_text()
    assert violations(path, source) == []
    assert climbs(path, source) == []


def test_every_folder_has_its_place_in_the_order():
    assert {(path.split("/")[0], unit(path.split("/"))) for path in sources()} == {
        (p, name) for p in PACKAGES for name in ORDER[p]
    }


def test_no_modules_import_each_other_in_a_circle():
    names = {module(path) for path in sources()}
    above = {module(path): names & set(imported((ROOT / path).read_text())) for path in sources()}
    while free := {name for name, used in above.items() if not used & above.keys()}:
        above = {name: used for name, used in above.items() if name not in free}
    assert not above, f"in a circle, or above one: {sorted(above)}"


@pytest.mark.parametrize("path", sources())
def test_what_is_imported_is_needed_at_run_time(path: str):
    """`TYPE_CHECKING` hides a circle."""
    assert "TYPE_CHECKING" not in (ROOT / path).read_text()


@pytest.mark.parametrize("folder", sorted({str(Path(path).parent) for path in sources()}))
def test_a_folder_is_one_subject_of_at_most_16_files(folder: str):
    files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 16
    assert (ROOT / folder / "__init__.py").read_text().startswith('"""'), "a folder says what lives in it"


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


@pytest.mark.parametrize(
    "line",
    [
        "from erllama.engine.engine import Engine",
        "import erllama.engine",
        "from erllama import Model",
        "def later():\n    from erllama.model import Model",
    ],
)
def test_an_import_of_a_higher_folder_is_found_however_it_is_written(line: str):
    assert climbs("erllama/cache/flow.py", line)
    assert not climbs("erllama/testing/stub_backend.py", line)


def test_the_store_may_import_neither_the_engine_nor_llama_cpp():
    assert violations("cache_store/store.py", "import erllama\nimport llama_cpp\nimport fsspec") == [
        "cache_store/store.py imports erllama",
        "cache_store/store.py imports llama_cpp",
    ]


def test_only_the_llama_files_may_import_llama_cpp():
    assert not violations("erllama/llama/backend.py", "import llama_cpp")
    assert violations("deployments/app.py", "import llama_cpp")
    assert violations("erllama/engine/llama.py", "import llama_cpp")


def test_only_the_grammar_package_may_import_llguidance():
    assert not violations("erllama/grammar/matcher.py", "import llguidance")
    assert violations("erllama/llama/backend.py", "from llguidance import LLMatcher")
    assert violations("deployments/ingress/prompts.py", "import llguidance")


def test_names_that_only_begin_alike_are_fine():
    assert not violations(
        "erllama/engine/engine.py", "import rayon\nfrom deployments_of_others import x\nimport llama_cppx"
    )
