"""Who a reply is: what its ids and times are made of, which stream a client goes on with, and which
requests may have one reply.

A replica keeps what a request gives for a while (`deployments/model/recording.py`), with the head
that is made here. A client that lost its connection sends the same body again with `Last-Event-ID`;
whichever ingress gets it writes the recorded events as the first one did, for ids and times come
out of the head, and leaves out those that the client has.

Two requests have one reply only where it must be the same, or where a client says that it asks
again: nothing random is left (greedy, or a seed is given), both carry one `Idempotency-Key`, or an
official client sends a try after the first (`x-stainless-retry-count`) in the same session. Request
ids say nothing: proxies make them up, and Codex sends its thread's as `x-client-request-id`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from starlette.requests import Request

from deployments.attempt_id import split_attempt
from deployments.generation.event_ids import split_event_id
from deployments.http.dialect import dialect_of, route_path
from deployments.http.errors import StreamDiffers, StreamNotResumable
from deployments.http.middleware import engine_id, tenant_of
from deployments.http.ports import RecordedReply, ServedModel
from erllama.errors import InvalidParameter
from erllama.request import GenerationRequest, Prompt

_HEADER = "Last-Event-ID"
_SESSION_HEADERS = (
    "x-claude-code-session-id", "session-id", "session_id", "x-session-id", "x-session-affinity", "thread-id",
    "x-deepseek-harness-session-id", "x-hermes-session-id", "x-litellm-session-id",
)  # fmt: skip
"""Headers in which clients name their session: Claude Code, Codex, opencode, pi and others. A name keeps
requests on one replica where it can, and binds no history: a session asks for titles and quotas, too.
"""


def session_of(headers: Mapping[str, str]) -> str | None:
    """The session that a request names in its `headers`, whose names are in lower case."""
    given = set(headers)  # each look-up of a request's headers goes through all of them
    return next((headers[name] for name in _SESSION_HEADERS if name in given and headers[name]), None)


class ReplyIds:
    """The ids that a reply gives to what it consists of, always the same ones in the same order."""

    def __init__(self, nonce: str | None = None) -> None:
        self._nonce = (nonce or uuid4().hex).encode()
        self._n_made = 0

    def new(self, n_chars: int = 32) -> str:
        """The next one: up to 32 hexadecimal characters."""
        self._n_made += 1
        return hashlib.blake2b(b"%d" % self._n_made, key=self._nonce, digest_size=16).hexdigest()[:n_chars]


@dataclass(frozen=True, slots=True)
class ReplyIdentity:
    """`stream` is the id of the request, as the engine knows it. `nonce` is what ids are made of, `created`
    unix seconds, `digest` that of the body
    and of who sent it. The reply is kept for `keep_s` after its last reader.

    `recorded` is what a client goes on with, that has `n_seen` of its events. `extra` is kept beside
    the reply, for whoever finds it without the body.
    """

    stream: str
    nonce: str
    created: int
    digest: str
    keep_s: float
    recorded: RecordedReply | None = None
    n_seen: int = 0
    extra: str = ""

    def ids(self) -> ReplyIds:
        """Use one per reply."""
        return ReplyIds(self.nonce)

    @property
    def head(self) -> str:
        """What is kept beside the reply."""
        return json.dumps([self.nonce, self.created, self.digest, self.extra])


def recorded_identity(recorded: RecordedReply, keep_s: float, n_seen: int = 0) -> ReplyIdentity:
    """The one that a recorded reply began with."""
    nonce, created, digest, extra = json.loads(recorded.head)
    stream = split_attempt(recorded.request_id)[0]
    return ReplyIdentity(stream, nonce, created, digest, keep_s, recorded, n_seen, extra)


def new_identity(request: Request, raw: bytes, keep_s: float) -> ReplyIdentity:
    """That of a reply that begins. `raw` is the body."""
    keys = [request.headers.get(place.name, "") for place in dialect_of(request.scope).keys]
    digest = hashlib.blake2b(json.dumps([route_path(request.scope), keys]).encode(), digest_size=16)
    digest.update(raw)
    return ReplyIdentity(engine_id(request), uuid4().hex, int(time.time()), digest.hexdigest(), keep_s)


async def reply_identity(request: Request, model: ServedModel, raw: bytes, keep_s: float) -> ReplyIdentity:
    """That of the reply to a request, or of the stream that it goes on with. `keep_s` 0 keeps
    nothing. Raises `StreamNotResumable`, `StreamDiffers` and `InvalidParameter`.
    """
    fresh = new_identity(request, raw, keep_s)
    last = request.headers.get(_HEADER)
    if not last:
        return fresh
    named = split_event_id(last)
    if named is None:
        raise InvalidParameter(f"{_HEADER} must be <request id>.<number>, got {last[:160]!r}", param=_HEADER)
    stream, n_seen = named
    recorded = await model.client.find(stream) if keep_s else None
    if recorded is None or not recorded.head:
        raise StreamNotResumable(
            f"Nothing is kept of the stream {stream[:160]!r} (any more): a reply is kept for {keep_s:g} s after its "
            f"connection ended. Send the request again without {_HEADER} for a new reply.",
            param=_HEADER,
        )
    begun = recorded_identity(recorded, keep_s, n_seen)
    if begun.digest != fresh.digest:
        raise StreamDiffers(
            f"{_HEADER} names a stream that another body or key began: send the same ones", param=_HEADER
        )
    return begun


def shared_requests(
    request: Request,
    identity: ReplyIdentity,
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    *,
    resumable: bool,
) -> list[GenerationRequest]:
    """`requests` as a replica may share and keep them; those of a reply that is `resumable` can be
    found later."""
    if not identity.keep_s:
        return list(requests)
    name, again = _name(request)
    salt = tenant_of(request).salt
    shared = []
    for index, one in enumerate(requests):
        same = one.sampling.greedy or one.sampling.seed is not None
        own = "" if same else f"{name}#{index}"
        shared.append(
            replace(
                one,
                join_key=_join_key(salt, model.id, one, own) if same or name else None,
                joins=same or again,
                keep_s=identity.keep_s,
                head=identity.head if resumable else "",
            )
        )
    return shared


def _name(request: Request) -> tuple[str, bool]:
    """What a client calls this very request, "" for nothing, and whether it may have sent it before."""
    headers = request.headers
    if key := headers.get("idempotency-key"):
        return f"key {key}", True
    retries = headers.get("x-stainless-retry-count", "")
    session = session_of(headers) if retries else None
    return ("", False) if session is None else (f"session {session}", retries.isdecimal() and int(retries[:9]) > 0)


def _join_key(salt: str, model_id: str, request: GenerationRequest, name: str) -> str:
    """The digest of all that decides the reply, of the `name`, and of the tenant's salt: tenants share
    nothing.
    """
    sampling = request.sampling
    rest = replace(
        request,
        request_id="",
        prompt=Prompt.of((0,)),
        sampling=replace(sampling, seed=None) if sampling.greedy else sampling,
        affinity=None,
        prediction=(),
        priority=None,
    )
    tokens = request.prompt_tokens
    digest = hashlib.blake2b(struct.pack(f"{len(tokens)}q", *tokens), digest_size=16)
    digest.update(repr((salt, model_id, name, rest)).encode(errors="surrogatepass"))
    return digest.hexdigest()
