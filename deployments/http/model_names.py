"""Which model a name means: its id, one of its aliases, a pattern among them, or the default.

Clients ask for names of their own (`claude-haiku-...`, `gpt-...`) also where they were given one.
Patterns are those of shells: `*` is any text, `?` one character. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

_WILD = frozenset("*?")


def is_pattern(name: str) -> bool:
    """Whether an alias stands for many names."""
    return not _WILD.isdisjoint(name)


class ModelNames:
    """`aliases` of each model by its id; `default` is an id, or None. Fixed once built. An id wins
    over an alias, that over a pattern, and the pattern with the most characters over others. Raises
    `ValueError` for a name that two models have, and for a default that is none.
    """

    def __init__(self, aliases: Mapping[str, Sequence[str]], default: str | None = None) -> None:
        self._ids: dict[str, str] = {}
        patterns: dict[str, str] = {}
        for model_id, names in aliases.items():
            for name in names:
                known = patterns if is_pattern(name) else self._ids
                if known.setdefault(name, model_id) != model_id:
                    raise ValueError(f"alias {name!r} names two models: {known[name]} and {model_id}")
        self._ids |= {model_id: model_id for model_id in aliases}
        self._patterns = sorted(patterns.items(), key=lambda item: -len(item[0].strip("*")))
        if default is not None and default not in self._ids:
            raise ValueError(f"default_model {default!r} is none of the models")
        self._default = None if default is None else self._ids[default]

    def exact(self, name: str) -> str | None:
        """The id of the model that has `name` as its id or alias, patterns left aside."""
        return self._ids.get(name)

    def find(self, name: str) -> str | None:
        """The id of the model that `name` means, None for none."""
        if name in self._ids:
            return self._ids[name]
        matching = (model_id for pattern, model_id in self._patterns if fnmatchcase(name, pattern))
        return next(matching, self._default)
