"""What people do with the stored prefixes of a model, and its sessions: list, pin, evict, export,
import, fork.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cache_store import (
    BadTransfer,
    BlockId,
    CachedPrefix,
    ChainKey,
    ImportReport,
    ImportState,
    PinInfo,
    Store,
    StoreError,
    StoreFull,
    TokenChain,
    tenant_root,
)
from cache_store.format.file import BlockEncoder
from cache_store.read.prefixes import ORDERS
from cache_store.transfer import Entry
from erllama.errors import InvalidParameter, NotSupported, PrefixNotFound, StoreUnavailable, check
from erllama.model_part import ModelPart
from erllama.session_name import session_name

_KEY = re.compile(r"[0-9a-f]{64}\Z")


class PrefixMethods(ModelPart):
    """A part of `Model`. Every method may be called from any thread and may wait for the store's file
    systems; all raise `NotSupported` without a store, `StoreUnavailable` for a tier that fails.

    A prefix is named by its key: `finish_key` of a reply, `key` of a `CachedPrefix`. One that is not
    stored, or is another model's or tenant's, raises `PrefixNotFound`. `salt` says whose are meant:
    those of the requests that have it.
    """

    store: Store | None

    def list_cached_prefixes(
        self, limit: int = 1000, order: str = "recent", *, salt: str = ""
    ) -> tuple[CachedPrefix, ...]:
        """The stored prefixes that nothing longer continues: "recent", or most "hits", "bytes" or
        "tokens" first. None without a store.
        """
        check("order", order in ORDERS, f"must be one of {', '.join(ORDERS)}, got {order!r:.40}")
        return () if self.store is None else self.store.prefixes(self._root(salt), limit, order)

    def cached_prefix(self, key: str, *, salt: str = "") -> CachedPrefix:
        """One stored prefix."""
        found = self._stored.prefix(ChainKey(key)) if _KEY.match(key) else None
        if found is None or found.root != self._root(salt):
            raise PrefixNotFound(f"no prefix {key[:80]!r} of this model is stored", param="key")
        return found

    def pin_prefix(
        self,
        prefix: str | Sequence[int],
        ttl_s: float,
        *,
        name: str = "",
        owner: str = "",
        salt: str = "",
        wait_s: float = 5.0,
    ) -> PinInfo:
        """Keep a stored prefix (its key), or what is and will be stored of a prompt (its token ids),
        from eviction for `ttl_s`, wherever its tiers are shared. The same `name` of an owner again is
        a new end; "" names it by its key. `wait_s` bounds the wait until the tiers have it. Raises
        `InvalidParameter` for what the quota of the owner does not allow.
        """
        with _told("ttl_s"):
            what = self._key(prefix, salt) if isinstance(prefix, str) else TokenChain(self._root(salt), prefix)
            pinned = self._stored.pin(what, ttl_s, name=name, owner=owner, wait_s=wait_s)
        if pinned is None:
            raise PrefixNotFound(f"no prefix {prefix!r:.80} is stored any more", param="key")
        return pinned

    def unpin(self, name: str, owner: str = "", *, salt: str = "", wait_s: float = 5.0) -> bool:
        """Take a pin back; False when there is none of that name."""
        is_ours = any((pin.owner, pin.name) == (owner, name) for pin in self.pins(salt=salt))
        return is_ours and self._stored.unpin(name, owner, wait_s)

    def pins(self, *, salt: str = "") -> tuple[PinInfo, ...]:
        """The pins of prefixes of this model, oldest first."""
        root = self._root(salt)
        return tuple(pin for pin in self._stored.pins() if pin.root == root)

    def evict_prefix(self, key: str, *, salt: str = "") -> int:
        """Delete a stored prefix, as far as nothing else begins with it and nobody has pinned it; the
        bytes that went. What the context holds of it stays until its place is needed.
        """
        with _told("key"):
            return self._stored.transfer.evict(self._key(key, salt))

    def export_prefix(self, key: str, *, salt: str = "") -> Iterator[bytes]:
        """A stored prefix as one file, in pieces of at most 1 MiB (`cache_store.transfer`). When an
        object is lost meanwhile the iterator raises, and what it gave is no whole file.
        """
        own = self._key(key, salt)
        with _told("key"):
            yield from self._stored.transfer.export(own)

    def export_plan(self, key: str, *, salt: str = "") -> tuple[str, ...]:
        """The names of the objects of such a file, in its order."""
        return tuple(id.name for id in self._stored.transfer.objects(self._key(key, salt)))

    def export_object(self, name: str, *, salt: str = "") -> bytes | None:
        """One of them, verified; None when it cannot be had (any more), or is another model's or tenant's."""
        id = BlockId.parse(name)
        if id is None or id.root != self._root(salt):
            return None
        file = self._stored.transfer.file(id, BlockEncoder())
        return None if file is None else bytes(file)

    def import_prefix(self, chunks: Iterable[bytes], *, salt: str = "") -> ImportReport:
        """Take over a file that `export_prefix` made of a model that computes the same KV, for the same salt.
        Every object is verified before it is published; the first that does not verify raises `InvalidParameter`,
        and the whole objects before it stay as a shorter prefix.
        """
        with _told("file"):
            return self._stored.transfer.import_file(self._root(salt), chunks)

    def import_part(
        self, state: ImportState | None, entries: Sequence[Entry], *, last: bool, salt: str = ""
    ) -> ImportState:
        """The next objects of such a file, which `EntryReader` has cut; None begins. With `last`, waits
        until all is safe.
        """
        with _told("file"):
            transfer, root = self._stored.transfer, self._root(salt)
            if state is not None and state.root != root:
                raise BadTransfer("the model has changed since the import began")
            state = transfer.import_entries(state or ImportState.start(root), entries)
            if last:
                transfer.settled(state)
            return state

    def fork_session(self, session_id: str, new_session_id: str, *, salt: str = "") -> bool:
        """A new session with the transcript of one; from then on they do not know of each other. Whether
        its KV was copied in the context: else it comes from the store, or is computed. Raises
        `SessionNotFound`, and `InvalidParameter` for a new name that is in use.
        """
        name, new_name = session_name(session_id, salt), session_name(new_session_id, salt, "new_session_id")
        return self._call(lambda engine: engine.fork_session(name, new_name))

    @property
    def _stored(self) -> Store:
        if self.store is None:
            raise NotSupported("there is no KV store (store.tiers is empty)")
        return self.store

    def _root(self, salt: str) -> ChainKey:
        """Of the KV that new requests with this salt get."""
        return tenant_root(self._call(lambda engine: engine.kv_root), salt)

    def _key(self, key: str, salt: str) -> ChainKey:
        return self.cached_prefix(key, salt=salt).key


@contextmanager
def _told(param: str) -> Iterator[None]:
    """What a store refuses, as an error for the caller; `param` is the field to blame."""
    try:
        yield
    except BadTransfer as error:
        raise InvalidParameter(f"the file cannot be imported: {error}", param=param) from error
    except (StoreFull, ValueError, OverflowError) as error:
        raise InvalidParameter(str(error), param=param) from error
    except StoreError as error:
        raise StoreUnavailable(str(error), retry_after_s=1) from error
