"""What a router compares: the prompt of a call as a chain of hashes, and the session it belongs to.
Pure.

    h_i = the first 8 bytes of the chain key at the end of chunk i
          (`TokenChain`, with chunks for blocks and one root for all)

Equal hashes mean equal prefixes up to the end of their chunk, so one number stands for all tokens
before it. Tokens are what the engine will see, with every message and tool rendered into them: a
chain over them is finer than one over messages or raw text, and needs neither (our clients tokenise
raw text first). Tokens after the last full chunk are not covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from cache_store import ChainKey, TokenChain, tenant_root
from deployments.attempt_id import split_attempt
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest

Tokens = Sequence[int] | NDArray[np.uint32]

_ROOT = ChainKey("00" * 32)  # a deployment has one model: what else decides KV bytes is the same for all its prompts
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class RoutedPrompt:
    """`chain` has one hash per full chunk of the `n_tokens`, in order. `session` is the hash of the
    session's id, `affinity` of what the request has in common with others.

    `join` is the hash of its join key; one that `joins` may read what another one computes.
    From `attempt` 2 on it has failed on another replica, as the client of `request` says.
    """

    n_tokens: int = 0
    chain: tuple[int, ...] = ()
    session: int | None = None
    request: str = ""
    attempt: int = 1
    affinity: int | None = None
    join: int | None = None
    joins: bool = False


def chunk_chain(tokens: Tokens, chunk_tokens: int, salt: str = "") -> TokenChain:
    """The chain of `tokens`, with a key per chunk instead of one per block. `salt` is that of the
    request: others have no use for its KV.
    """
    return TokenChain(tenant_root(_ROOT, salt), tokens, chunk_tokens)


def chunk_hashes(chain: TokenChain) -> list[int]:
    """One hash per full chunk, in order."""
    return [int(key[:_HASH_DIGITS], 16) for key in chain.block_keys()]


def session_hash(session_id: str) -> int:
    """What stands for the name of a session or an affinity."""
    return xxhash.xxh3_64_intdigest(session_id.encode(errors="surrogatepass"))


def pack_hashes(hashes: Iterable[int]) -> bytes:
    """Eight bytes each: what replicas publish."""
    return np.fromiter(hashes, dtype="<u8").tobytes()


def unpack_hashes(data: bytes) -> frozenset[int]:
    """The reverse. Raises `ValueError` for a length that is no multiple of eight."""
    return frozenset(np.frombuffer(data, dtype="<u8").tolist())


def named_replica(method: str, args: Sequence[Any]) -> str | None:
    """The replica that a call of `ModelReplica` has to reach, for one that no other can answer."""
    match method, args:
        case "attach", [str(replica_id), *_]:
            return replica_id
    return None


def prompt_of(method: str, args: Sequence[Any], chunk_tokens: int) -> RoutedPrompt | None:
    """What a call of `ModelReplica` asks for; None for one that any replica may answer."""
    salt, affinity = "", None
    join, joins = None, False
    match method, args:
        case "generate", [GenerationRequest() as request, *_]:
            tokens, session_id = (*request.prompt_tokens, *request.resumed), request.session_name
            salt = request.salt
            name, attempt = split_attempt(request.request_id)
            if request.affinity is not None:
                affinity = session_hash(f"{salt}\0{request.affinity}" if salt else request.affinity)
            if request.join_key is not None and not request.resumed:
                join, joins = session_hash(request.join_key), request.joins
        case "continue_", [str(session_id), _, _, {"salt": str(salt)}, *_] if salt:
            tokens, session_id, name, attempt = (), f"{salt}\0{session_id}", "", 1
        case "continue_", [session_id, *_]:
            tokens, name, attempt = (), "", 1
        case "answer", [str(ref), "export_object" | "import_part", [str(transfer), *_], *_]:
            # the parts of one file: a replica may have tiers that others do not see
            (name, attempt), tokens, session_id, affinity = split_attempt(ref), (), None, session_hash(transfer)
        case "answer", [_, "expect", [NextTurn() as turn], *_]:  # where the request is that it follows on
            tokens, session_id, name, attempt, salt = turn.tokens, None, "", 1, turn.salt
        case "answer", [str(ref), *_]:
            (name, attempt), tokens, session_id = split_attempt(ref), (), None
        case _:
            return None
    session = None if session_id is None else session_hash(session_id)
    chain = tuple(chunk_hashes(chunk_chain(tokens, chunk_tokens, salt)))
    return RoutedPrompt(len(tokens), chain, session, name, attempt, affinity, join, joins)
