"""Many objects into a graph at once: what a snapshot brings. The same as one by one, but each step
is done for all rows of a batch. Pure, not thread-safe.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cache_store.index import frecency
from cache_store.index.columns import Columns, Digests, IndexRow
from cache_store.index.nodes import KEY_BYTES, LOOSE, NONE, find_many, key_of, link_many
from cache_store.index.radix import END, KIND_MASK, LARGE, MAX_USES, OFF_PATH, ROWS, Graph

Numbers = NDArray[np.uint32]


def put_many(graph: Graph, some: Columns, tier_index: int, now_s: float, lead_s: float) -> tuple[int, int]:
    """A tier has these objects, which are plausible: (how many it had not, by how many bytes it has
    more). `now_s` is the index's time, which leads the clock by `lead_s`.
    """
    items = _put_all(graph, some)
    n_uses = some.hits + np.uint64(1)
    used_s = frecency.from_unix(some.last_used_s, now_s, lead_s)
    _raise_scores(graph, items, n_uses, frecency.scores_of(n_uses, used_s))
    added = _put_in(graph, items, tier_index, some.n_bytes)
    _learn_all(graph, items, some)
    return added


def _put_all(graph: Graph, some: Columns) -> Numbers:
    """The number of each row's object, which is made, in no tier and not used yet, where there is
    none. Rows are plausible; several may be of one object.
    """
    on_path = some.on_path()
    kind = some.kind | np.where(on_path, 0, OFF_PATH).astype(np.uint8)
    parent, child = _nodes(graph, some, on_path)
    items = _find_many(graph, kind, parent, child, some.n_tokens)
    missing = np.flatnonzero(items == NONE)
    if len(missing):
        names = np.stack([child, parent, kind.astype(np.uint32) << 16 | some.n_tokens], axis=1)[missing]
        _, firsts = np.unique(np.ascontiguousarray(names).view("V12").ravel(), return_index=True)
        new = missing[np.sort(firsts)]
        _append(graph, kind[new], parent[new], child[new], some.n_tokens[new], some.first[new])
        items[missing] = _find_many(graph, kind[missing], parent[missing], child[missing], some.n_tokens[missing])
    return items


def _nodes(graph: Graph, some: Columns, on_path: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """The nodes that each row begins at, and that it leads to."""
    known, which = _different(some.root)
    held = np.array([graph.nodes.roots.of_node(key_of(root.tobytes())) for root in known], np.uint32)
    roots = held[which] | np.where(on_path, 0, LOOSE).astype(np.uint32)
    depth = np.where(on_path, some.start + some.n_tokens, 0).astype(np.uint32)
    nodes = graph.nodes.make_many(
        np.concatenate([roots, roots]),
        np.concatenate([some.parent, some.key]),
        np.concatenate([some.start, depth]),
    )
    for number in held.tolist():
        graph.nodes.roots.leave(number)
    return nodes[: len(some)], nodes[len(some) :]


def _different(roots: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The different ones of many roots, and which of them each is."""
    if (roots == roots[:1]).all():
        return roots[:1], np.zeros(len(roots), np.int64)
    _, firsts, which = np.unique(
        np.ascontiguousarray(roots).view("V32").ravel(), return_index=True, return_inverse=True
    )
    return roots[firsts], which


def _find_many(
    graph: Graph, kind: NDArray[np.uint8], parent: Numbers, child: Numbers, n_tokens: NDArray[np.uint16]
) -> Numbers:
    is_end = kind == END
    into = np.where(is_end, NONE, np.frombuffer(graph.nodes.into, np.uint32)[child]).astype(np.uint32)

    def same(items: Numbers, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        parents, kinds = np.frombuffer(graph.parent, np.uint32), np.frombuffer(graph.kind, np.uint8)
        alike: NDArray[np.bool_] = (parents[items] == parent[rows]) & (kinds[items] == kind[rows])
        alike &= np.frombuffer(graph.n_tokens, np.uint16)[items] == n_tokens[rows]
        return alike

    found = find_many(into, graph.next_into, same)
    found[is_end] = np.frombuffer(graph.nodes.end, np.uint32)[child[is_end]]
    return found


def _append(
    graph: Graph,
    kind: NDArray[np.uint8],
    parent: Numbers,
    child: Numbers,
    n_tokens: NDArray[np.uint16],
    first: Numbers,
) -> None:
    """New objects, all different."""
    n = len(kind)
    items = np.arange(len(graph.kind), len(graph.kind) + n, dtype=np.uint32)
    graph.append(n)
    for column, values in ((graph.kind, kind), (graph.parent, parent), (graph.child, child)):
        np.frombuffer(column, values.dtype)[items] = values
    np.frombuffer(graph.n_tokens, np.uint16)[items] = n_tokens
    np.frombuffer(graph.first, np.uint32)[items] = first
    graph.n_objects += n
    is_end = kind == END
    np.frombuffer(graph.nodes.end, np.uint32)[child[is_end]] = items[is_end]
    edges = ~is_end
    if edges.any():
        link_many(items[edges], child[edges], graph.nodes.into, graph.next_into)
        graph.attach_many(items[edges], parent[edges])


def _raise_scores(graph: Graph, items: Numbers, n_uses: NDArray[np.uint64], scores: NDArray[np.float64]) -> None:
    """Uses and score of each object are at least these."""
    np.maximum.at(np.frombuffer(graph.n_uses, np.uint32), items, np.minimum(n_uses, MAX_USES).astype(np.uint32))
    np.maximum.at(np.frombuffer(graph.score), items, scores)


def _put_in(graph: Graph, items: Numbers, tier_index: int, n_bytes: NDArray[np.uint64]) -> tuple[int, int]:
    """A tier has these objects in so many bytes: (how many it had not, by how many bytes it has
    more).
    """
    items, rows = np.unique(items, return_index=True)
    sizes = np.frombuffer(graph.sizes[tier_index], np.uint32)
    was_here = sizes[items] != 0
    small = sizes[items][was_here & (sizes[items] != LARGE)]
    large = (graph.bytes_in(item, tier_index) for item in items[sizes[items] == LARGE].tolist())
    before = int(small.sum(dtype=np.int64)) - len(small) + sum(large)
    is_small = (n_bytes[rows] + 1 < LARGE) & (sizes[items] != LARGE)
    sizes[items[is_small]] = (n_bytes[rows][is_small] + 1).astype(np.uint32)
    for item, size in zip(items[~is_small].tolist(), n_bytes[rows][~is_small].tolist(), strict=True):
        graph.resize(item, tier_index, size)
    new = items[~was_here]
    hanging = new[np.frombuffer(graph.kind, np.uint8)[new] & OFF_PATH == 0]
    nodes = np.frombuffer(graph.parent, np.uint32)[hanging]
    np.add.at(np.frombuffer(graph.nodes.hanging[tier_index], np.uint32), nodes, np.uint32(1))
    return len(new), int(n_bytes[rows].sum()) - before


def _learn_all(graph: Graph, items: Numbers, some: Columns) -> None:
    """Tokens, as far as there is room for them, and fingerprints."""
    kind = np.frombuffer(graph.kind, np.uint8)[items]
    other = np.flatnonzero((np.frombuffer(graph.first, np.uint32)[items] != some.first) & (kind == ROWS))
    for i in other.tolist():
        graph.learn_first(int(items[i]), int(some.first[i]))
    for i, tokens in some.tokens.items():
        if kind[i] == ROWS and graph.tokens.has_room:
            graph.learn(int(items[i]), tokens)


def columns_of(graph: Graph, start: int, stop: int, tier_index: int, lead_s: float) -> Columns:
    """What a tier has of the objects with these numbers."""
    sizes = np.frombuffer(graph.sizes[tier_index], np.uint32)[start:stop]
    items = np.flatnonzero(sizes) + start
    n_bytes = sizes[items - start].astype(np.uint64) - np.uint64(1)
    for i in np.flatnonzero(sizes[items - start] == LARGE).tolist():
        n_bytes[i] = graph.bytes_in(int(items[i]), tier_index)
    parent, child = (np.frombuffer(column, np.uint32)[items] for column in (graph.parent, graph.child))
    keys, n_uses = graph.nodes.keys(), np.frombuffer(graph.n_uses, np.uint32)[items].astype(np.uint64)
    known = ((i, graph.tokens.get(item)) for i, item in enumerate(items.tolist())) if len(graph.tokens) else ()
    return Columns(
        _root_keys(graph, parent),
        np.frombuffer(graph.kind, np.uint8)[items] & np.uint8(KIND_MASK),
        keys[parent],
        keys[child],
        np.frombuffer(graph.nodes.depth, np.uint32)[parent],
        np.frombuffer(graph.n_tokens, np.uint16)[items],
        n_bytes,
        np.frombuffer(graph.first, np.uint32)[items],
        n_uses - np.uint64(1),
        frecency.mean_uses_s(n_uses, np.frombuffer(graph.score)[items]) - lead_s,
        {i: tokens for i, tokens in known if tokens is not None},
    )


def row_of(graph: Graph, item: int, n_bytes: int, lead_s: float) -> IndexRow:
    """One object."""
    n_uses = graph.n_uses[item]
    used_s = frecency.mean_use_s(n_uses, graph.score[item]) - lead_s
    return IndexRow(graph.id_of(item), n_bytes, graph.tokens.get(item), n_uses - 1, used_s, graph.first[item])


def _root_keys(graph: Graph, nodes: Numbers) -> Digests:
    numbers, which = np.unique(
        np.frombuffer(graph.nodes.root, np.uint32)[nodes] & np.uint32(~LOOSE & NONE), return_inverse=True
    )
    keys = b"".join(bytes.fromhex(graph.nodes.roots.key(number)) for number in numbers.tolist())
    return np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)[which]
