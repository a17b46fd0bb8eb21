"""Every key of the configuration, read from the types that check it. Pure introspection."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, cast

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployments.config import BuildArgs

_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
_SIGNS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Key:
    """`path` is where it stands below `args` ("models[].n_ctx"), `owner` the class that defines it.
    `default` is written as in YAML, or "required".
    """

    path: str
    kind: str
    default: str
    owner: type

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @property
    def section(self) -> str:
        """The path of what it stands in; "" at the top."""
        return self.path.rpartition(".")[0]


def all_keys(section: type = BuildArgs, prefix: str = "") -> Iterator[Key]:
    """Depth first, in the order in which the classes define them. A key that stands for a section has
    no row of its own: the keys below tell what it takes.
    """
    hints = typing.get_type_hints(section, include_extras=True)
    for name, default in _fields(section):
        path, hint = f"{prefix}{name}", hints[name]
        below = list(sections(hint))
        if not below or default is None:  # an optional section can be left out as a whole
            yield Key(path, describe(hint), _yaml(default), section)
        dots = "[]." if _is_list(hint) else "."
        yield from _merged(key for inner in below for key in all_keys(inner, f"{path}{dots}"))


def _merged(keys: Iterable[Key]) -> Iterator[Key]:
    """One of each path: an entry of a list may be of several classes, which share keys."""
    by_path: dict[str, Key] = {}
    for key in keys:
        known = by_path.setdefault(key.path, key)
        kinds = dict.fromkeys([*known.kind.split(" or "), *key.kind.split(" or ")])
        by_path[key.path] = dataclasses.replace(known, kind=" or ".join(kinds))
    yield from by_path.values()


def _fields(section: type) -> Iterator[tuple[str, Any]]:
    """Names and defaults; `REQUIRED` where there is none."""
    if issubclass(section, BaseModel):
        for name, info in section.model_fields.items():
            yield name, REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
        return
    for field in dataclasses.fields(cast(Any, section)):
        if field.default is not dataclasses.MISSING:
            default = field.default
            yield field.name, default.get_default() if isinstance(default, FieldInfo) else default
        elif field.default_factory is not dataclasses.MISSING:
            yield field.name, field.default_factory()
        else:
            yield field.name, REQUIRED


def sections(hint: Any) -> Iterator[type]:
    """Classes of settings that can stand in a value."""
    if isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)):
        yield hint
        return
    for inner in typing.get_args(hint):
        yield from sections(inner)


def _is_list(hint: Any) -> bool:
    """Somewhere a tuple of any length, as a list of YAML is read."""
    if typing.get_origin(hint) is tuple:
        return True
    return any(_is_list(inner) for inner in typing.get_args(hint) if not isinstance(inner, type))


def describe(hint: Any) -> str:
    """A type in an operator's words: "integer, at least 1, or null"."""
    if hint in _WORDS:
        return str(_WORDS[hint])
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return ", ".join([describe(inner[0]), *bounds(inner[1:])])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(kind) for kind in inner))
    if origin in (tuple, frozenset):
        return f"list of: {describe(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{value.value}`" for value in hint)
    if list(sections(hint)):
        return "section"
    return "any"


def bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    """Limits in what stands beside an annotated type."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from bounds(tuple(item.metadata))
        elif type(item) in _SIGNS:
            words, name = _SIGNS[type(item)]
            yield f"{words} {getattr(item, name)}"
        elif isinstance(item, MinLen | Len) and item.min_length == 1:
            yield "not empty"
        elif isinstance(item, MaxLen) and item.max_length is not None:
            yield f"at most {item.max_length} long"


def _yaml(value: Any) -> str:
    return REQUIRED if value == REQUIRED else str(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value)
