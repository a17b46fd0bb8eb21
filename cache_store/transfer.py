"""One stored prefix as a whole: found, evicted, exported as one file, imported from one.

The file, integers little-endian:

    "erllama-prefix" 00 00      magic
    uint32 version              1; the objects have a version of their own
    uint32 n_objects
    n_objects times:
        uint16 length of the name, uint64 length of the file
        the name of the object, then its file as a tier keeps it (`format/file.py`)

The objects come in the order of the prefix: ROWS from the root on, each without a gap behind the one
before, an END behind the ROWS that lead to it. Every object is verified like one that a tier gave:
name, digests, root, and that its key is the hash of all tokens so far. What does not verify ends the
import. Until then whole objects have been published in their order, so what a damaged or a cut file
leaves is a shorter prefix, every object of which was verified; of a file of another model, build or
tenant nothing is published, since its first object tells. Digests find accidents, not forgeries: import what you trust.

Both ways take one object at a time into memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cache_store.errors import BadTransfer, CorruptBlock, StoreFull, TierError
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.file import BlockEncoder, decode
from cache_store.format.header import MAX_PAYLOAD_BYTES
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain
from cache_store.read.reader import Reader
from cache_store.records import ImportReport
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack
from cache_store.write.worker import deadline_in

VERSION = 1
CHUNK_BYTES = 1 << 20
_MAGIC = b"erllama-prefix\0\0"
_HEAD = struct.Struct("<16sII")
_ENTRY = struct.Struct("<HQ")
_MAX_NAME = 512
_MAX_FILE = MAX_PAYLOAD_BYTES + (1 << 20)

Entry = tuple[str, bytes]  # the name of an object and its file


def packed_head(n_objects: int) -> bytes:
    """The beginning of a file."""
    return _HEAD.pack(_MAGIC, VERSION, n_objects)


def packed_entry(name: str, n_bytes: int) -> bytes:
    """What stands before the file of an object, of `n_bytes`."""
    return _ENTRY.pack(len(name), n_bytes) + name.encode()


class EntryReader:
    """Cuts the bytes of a file, as they come, into its objects. Not verified: `ImportState` does that."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._n_left: int | None = None  # objects that are still to come; None: the head is

    def feed(self, chunk: bytes) -> Iterator[Entry]:
        """The objects that are complete now. Raises `BadTransfer` for bytes that are none of ours."""
        self._buffer += chunk
        while (entry := self._next()) is not None:
            yield entry
        if self._n_left == 0 and self._buffer:
            raise BadTransfer("there are bytes behind the last object")

    def finish(self) -> None:
        """The last bytes have come. Raises `BadTransfer` when objects are missing."""
        if self._n_left != 0:
            missing = "its head" if self._n_left is None else f"{self._n_left} of its objects"
            raise BadTransfer(f"the file is cut: it ends before {missing}")

    def _next(self) -> Entry | None:
        if self._n_left is None and not self._read_head():
            return None
        if not self._n_left or len(self._buffer) < _ENTRY.size:
            return None
        n_name, n_file = _ENTRY.unpack_from(self._buffer)
        if not 0 < n_name <= _MAX_NAME or not 0 < n_file <= _MAX_FILE:
            raise BadTransfer(f"an object with a name of {n_name} and a file of {n_file} bytes")
        end = _ENTRY.size + n_name + n_file
        if len(self._buffer) < end:
            return None
        name = bytes(self._buffer[_ENTRY.size : _ENTRY.size + n_name]).decode("ascii", "replace")
        data = bytes(memoryview(self._buffer)[_ENTRY.size + n_name : end])
        del self._buffer[:end]
        self._n_left -= 1
        return name, data

    def _read_head(self) -> bool:
        if self._buffer[: len(_MAGIC)] != _MAGIC[: len(self._buffer)]:
            raise BadTransfer("it is not the file of an exported prefix")
        if len(self._buffer) < _HEAD.size:
            return False
        _, version, n_objects = _HEAD.unpack_from(self._buffer)
        if version != VERSION:
            raise BadTransfer(f"its version is {version}, this code reads {VERSION}")
        if n_objects == 0:
            raise BadTransfer("it holds no object")
        del self._buffer[: _HEAD.size]
        self._n_left = n_objects
        return True


@dataclass(frozen=True, slots=True)
class ImportState:
    """How far an import under `root` has come: the prefix `key` of `n_tokens`, of which `tail` are the
    ids behind the whole blocks, whose key is `block_key`. Picklable, so that another process may go on.
    """

    root: ChainKey
    block_key: ChainKey
    key: ChainKey
    tail: tuple[int, ...] = ()
    n_tokens: int = 0
    n_objects: int = 0
    n_bytes: int = 0

    @classmethod
    def start(cls, root: ChainKey) -> ImportState:
        return cls(root, root, root)

    @property
    def report(self) -> ImportReport:
        return ImportReport(self.root, self.key, self.n_tokens, self.n_objects, self.n_bytes)

    def take(self, name: str, data: bytes) -> tuple[Block, ImportState]:
        """The next object, verified, and the state behind it. Raises `BadTransfer`."""
        id = BlockId.parse(name)
        if id is None or id.kind is Kind.REPLAY:
            raise BadTransfer(f"object {self.n_objects} is none of a prefix, or of another version: {name[:200]!r}")
        if id.root != self.root:
            raise BadTransfer(
                "it is of another model, build of llama.cpp, setting or tenant than this one: "
                f"its root is {id.root[:16]}, here it is {self.root[:16]}"
            )
        if (id.parent, id.start) != (self.key, self.n_tokens):
            raise BadTransfer(f"object {self.n_objects} does not go on from the one before it")
        try:
            block = decode(data, id)
        except CorruptBlock as error:
            raise BadTransfer(f"object {self.n_objects} is damaged: {error}") from error
        counted = replace(self, n_objects=self.n_objects + 1, n_bytes=self.n_bytes + len(data))
        return block, counted if id.kind is Kind.END else counted._behind(block)

    def _behind(self, block: Block) -> ImportState:
        tail = (*self.tail, *block.tokens.tolist())
        if TokenChain(self.block_key, np.array(tail, np.uint32)).key_at(len(tail)) != block.id.key:
            raise BadTransfer(f"object {self.n_objects - 1} is not named by its tokens")
        is_whole = len(tail) == BLOCK_TOKENS
        return replace(
            self,
            block_key=block.id.key if is_whole else self.block_key,
            key=block.id.key,
            tail=() if is_whole else tail,
            n_tokens=block.id.start + block.id.n_tokens,
        )


@dataclass(frozen=True, slots=True)
class Transfer:
    """`save` hands blocks over to the store and tells how many it took, `flush(seconds)`
    waits until they are safe. `timeout_s` bounds each call of a tier. Any thread; calls block.
    """

    stack: TierStack
    reader: Reader
    save: Callable[[Sequence[Block]], int]
    flush: Callable[[float], bool]
    timeout_s: float

    def evict(self, key: ChainKey) -> int:
        """Delete the prefix `key` from all tiers, as far as nothing else that is stored begins with it
        and nobody has pinned it; the bytes that went. Raises `TierError` for a tier that fails.
        """
        self.flush(self.timeout_s)
        freed, before = 0, -1
        while before < freed and (way := self.stack.index.way_to(key)):  # a block may be there in two cuts
            before = freed
            for tier in self.stack.tiers:
                if tier.available:
                    freed += tier.run(partial(self._evict_from, tier, way), self._deadline())
        return freed

    def _evict_from(self, tier: GuardedTier, way: Sequence[BlockId]) -> int:
        self.stack.before_evicting(tier)
        freed = 0
        for found in self.stack.index.only_for(way, tier.index):
            freed += found.n_bytes * self.stack.discard(tier, found.id, "asked")
        return freed

    def export(self, key: ChainKey) -> Iterator[bytes]:
        """The file of the stored prefix `key`, in pieces of at most `CHUNK_BYTES`; empty where it is not
        stored. Its objects are not evicted here meanwhile. Raises `TierError` when one is lost: what
        was given by then is a cut file, which no import takes for a whole one.
        """
        ids = self.objects(key)
        self.stack.index.pin(ids)
        try:
            if ids:
                yield packed_head(len(ids))
            encoder = BlockEncoder()
            for id in ids:
                file = self.file(id, encoder)
                if file is None:
                    raise TierError(f"the object at token {id.start} of the prefix cannot be read")
                yield packed_entry(id.name, file.nbytes)
                for at in range(0, file.nbytes, CHUNK_BYTES):
                    yield bytes(file[at : at + CHUNK_BYTES])
        finally:
            self.stack.index.unpin(ids)

    def objects(self, key: ChainKey) -> list[BlockId]:
        """What holds the prefix `key`, in the order of its file; [] where it is not stored."""
        return self.stack.index.way_to(key)

    def file(self, id: BlockId, encoder: BlockEncoder) -> memoryview | None:
        """An object as it is exported, verified, valid until the encoder's next call; None when it
        cannot be had.
        """
        block = self.reader.get(id, self._deadline())
        return None if block is None else encoder.encode(block)

    def import_entries(self, state: ImportState, entries: Iterable[Entry]) -> ImportState:
        """Verify and publish the next objects of a file; the state behind them. Raises `BadTransfer`
        for the first that does not verify, `StoreFull` when the store takes no more. What was taken
        by then stays.
        """
        for name, data in entries:
            block, state = state.take(name, data)
            if not self.save([block]):
                raise StoreFull(f"the store took {state.n_objects - 1} objects and no more")
        return state

    def import_file(self, root: ChainKey, chunks: Iterable[bytes]) -> ImportReport:
        """Publish a whole file under `root`, and wait until it is safe. Raises as `import_entries`."""
        reader, state = EntryReader(), ImportState.start(root)
        for chunk in chunks:
            state = self.import_entries(state, reader.feed(chunk))
        reader.finish()
        return self.settled(state)

    def settled(self, state: ImportState) -> ImportReport:
        """What was imported, once it is safe. Raises `TierError` when that takes too long."""
        if not self.flush(self.timeout_s):
            raise TierError(f"the store has not written all {state.n_objects} objects within {self.timeout_s:g} s")
        return state.report

    def _deadline(self) -> int:
        return deadline_in(self.timeout_s)
