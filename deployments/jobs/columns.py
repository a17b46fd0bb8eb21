"""The columns of a Ray Data batch, whichever of its three formats it has: read one as plain Python
values, put new ones beside the others.

pandas and pyarrow are imported only when a batch of theirs arrives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from erllama.errors import InvalidParameter


def read_column(batch: Any, name: str) -> list[Any]:
    """The values of a column, free of numpy's types. Raises `InvalidParameter`, which names the
    columns that there are."""
    names = batch.column_names if _is_arrow(batch) else list(batch)
    if name not in names:
        raise InvalidParameter(
            f"the data has no column {name!r}; it has {', '.join(map(str, names)) or 'none'}", param=name
        )
    values = batch[name].to_pylist() if _is_arrow(batch) else batch[name]
    return [plain(value) for value in values]


def add_columns(batch: Any, texts: Mapping[str, Sequence[str | None]], counts: Mapping[str, Sequence[int]]) -> Any:
    """The batch with columns of texts, which may be null, and of whole numbers; a column of the
    same name is replaced."""
    if _is_arrow(batch):
        import pyarrow as pa

        columns = {name: pa.array(values, pa.string()) for name, values in texts.items()}
        columns |= {name: pa.array(values, pa.int64()) for name, values in counts.items()}
        for name, values in columns.items():
            at = batch.schema.get_field_index(name)
            batch = batch.append_column(name, values) if at < 0 else batch.set_column(at, name, values)
        return batch
    numbers = {name: np.array(values, dtype=np.int64) for name, values in counts.items()}
    if isinstance(batch, Mapping):
        return {**batch, **{name: np.array(values, dtype=object) for name, values in texts.items()}, **numbers}
    import pandas as pd

    strings: dict[str, Any] = {name: pd.array(list(values), dtype="string") for name, values in texts.items()}
    return batch.assign(**strings, **numbers)


def plain(value: Any) -> Any:
    """Lists and dicts instead of arrays. What is null in a dict was not there: Arrow's structs have
    the same fields in every row."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return value if value and type(value[0]) is int else [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items() if item is not None}
    return value


def _is_arrow(batch: Any) -> bool:
    return hasattr(batch, "column_names")
