"""Tells other processes what this one did, and takes over into the own index what they tell. Any thread; no I/O.

What is heard is a hint like a listing: it says where an object was a moment ago. A claim that is wrong costs what a stale listing costs: a
reader finds nothing, corrects the index and computes. Tokens are taken over where the object's name proves them, else read when they are
needed: wrong ones would hide an object for good. News about places that none of our tiers is are skipped, so those about another node's RAM
are too. What one process removes and another writes at the same moment may be heard in the wrong order: the next listing tells.

Hits that others had count like our own, so every process has nearly the cluster's opinion of what is worth keeping.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import Kind
from cache_store.format.keys import BLOCK_TOKENS
from cache_store.index.delta import BadNews, Changes, Item, News, NewsLog, Packer, PlaceNews
from cache_store.index.radix import MAX_FIELD
from cache_store.sharing.identity import Places
from cache_store.tiers.guarded import Shelf
from cache_store.tiers.stack import Stockroom

log = logging.getLogger("cache_store")

_MAX_USES = 1 << 16  # hits on one object between two pieces of news: more is a mistake of the teller's


class Relay:
    def __init__(self, stock: Stockroom, news_log: NewsLog, places: Places, owner: str) -> None:
        self._stock = stock
        self._log = news_log
        self._places = places
        self._owner = owner

    def tell(self) -> News:
        """What happened here since the last call."""
        changes, packer = self._log.take(), Packer()
        places = tuple(self._place(packer, shelf, changes) for shelf in self._stock.shelves)
        used = packer.pack(Item(id, n_uses) for id, n_uses in changes.used.items())
        return News(self._owner, places, packer.roots, used, changes.incomplete)

    def hear(self, news: Iterable[News]) -> int:
        """Take over what others tell; how many objects came or went. News that make no sense are counted and end where they do not."""
        n_changed = 0
        for piece in news:
            if piece.owner == self._owner:
                continue
            try:
                n_changed += sum(self._hear_place(piece, place) for place in piece.places)
                self._hear_uses(piece)
            except BadNews as error:
                self._stock.tally.add("corrupt", "news")
                log.warning("owner=%s news ignored: %s", piece.owner, error)
        return n_changed

    def _place(self, packer: Packer, shelf: Shelf, changes: Changes) -> PlaceNews:
        changed = changes.tiers[shelf.level].items()
        tokens_of = self._stock.catalogue.tokens_of
        written = packer.pack(Item(id, n_bytes, tokens_of(id)) for id, n_bytes in changed if n_bytes is not None)
        removed = packer.pack(Item(id) for id, n_bytes in changed if n_bytes is None)
        tier = shelf.tier
        return PlaceNews(shelf.label, tier.url, tier.local, self._places.marks(shelf.level), tier.max_bytes, written, removed)

    def _hear_place(self, news: News, place: PlaceNews) -> int:
        level = self._places.at(place.marks)
        if level is None:
            return 0
        n_changed = 0
        for item in news.items(place.written):
            if not _is_plausible(item):
                raise BadNews(f"no object of ours: {item.id.name}")
            n_changed += self._stock.catalogue.add(item.id, level, item.number, self._proven_tokens(item))
        for item in news.items(place.removed):
            n_changed += self._stock.catalogue.remove(item.id, level)
        return n_changed

    def _proven_tokens(self, item: Item) -> NDArray[np.uint32] | None:
        if item.tokens is None:
            return None
        tokens = np.frombuffer(item.tokens, ">u4").astype(np.uint32)
        return tokens if self._stock.catalogue.proves(item.id, tokens) else None

    def _hear_uses(self, news: News) -> None:
        for item in news.items(news.used):
            self._stock.catalogue.hear_uses(item.id, max(1, min(item.number, _MAX_USES)))


def _is_plausible(item: Item) -> bool:
    """Whether a listing could name it: what the index takes must be something that can be deleted again."""
    id = item.id
    fits = id.start % BLOCK_TOKENS + id.n_tokens <= BLOCK_TOKENS if id.kind is Kind.ROWS else id.n_tokens == 0
    return fits and item.number <= MAX_FIELD and (item.tokens is None or id.kind is Kind.ROWS)
