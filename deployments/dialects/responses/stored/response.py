"""A response that is kept, its ids and its bytes. Pure."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from uuid import uuid4

from erllama.errors import ErllamaError, RequestError

_RESPONSE_PREFIX = "resp_"
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9]+\Z")
_LENGTHS = struct.Struct("<III")


def new_id(prefix: str) -> str:
    """Clients drop ids of other forms."""
    return f"{prefix}_{uuid4().hex}"


def item_id(prefix: str, response_id: str, index: int) -> str:
    """The id of an item of a response's output, out of which `holder_id` reads the response."""
    return f"{prefix}_{response_id.removeprefix(_RESPONSE_PREFIX)}{index}"


def holder_id(item_id: str) -> str | None:
    """The id of the response whose output has this item, if any has."""
    match = _ITEM.match(item_id)
    return None if match is None else _RESPONSE_PREFIX + match[1]


class ResponseNotFound(RequestError):
    """No response of this id is kept here: never, not any more, or not for this tenant."""

    http_status = 404
    code = "response_not_found"


class PreviousResponseNotFound(RequestError):
    """The conversation that a request goes on is not kept here, or not all of it."""

    code = "previous_response_not_found"


class ResponseNotDeleted(ErllamaError):
    """The place where it is kept does not answer, so that nobody knows whether it has gone."""

    http_status = 503
    code = "response_not_deleted"


class BadResponse(ValueError):
    """Bytes that are no stored response."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`earlier` are the ids of the conversation before it, the first one first; `input` is the JSON
    of the items that this request brought itself, `body` that of the whole response; `item_ids` are
    those of its output.
    """

    id: str
    earlier: tuple[str, ...]
    input: str
    body: str
    item_ids: tuple[str, ...] = ()

    @property
    def previous(self) -> str | None:
        """The id of the response that it goes on from."""
        return self.earlier[-1] if self.earlier else None

    @property
    def n_bytes(self) -> int:
        return len(self.input.encode()) + len(self.body.encode())

    def packed(self) -> bytes:
        """Its bytes: lengths, then ids, input and body."""
        ids = json.dumps({"id": self.id, "earlier": self.earlier, "items": self.item_ids}).encode()
        parts = ids, self.input.encode(), self.body.encode()
        return _LENGTHS.pack(*map(len, parts)) + b"".join(parts)

    @classmethod
    def unpacked(cls, data: bytes) -> StoredResponse:
        """Raises `BadResponse`."""
        try:
            lengths = _LENGTHS.unpack_from(data)
            ends = [_LENGTHS.size + sum(lengths[:number]) for number in range(4)]
            if ends[-1] != len(data):
                raise BadResponse(f"{len(data)} bytes, not {ends[-1]}")
            told, given, body = (data[start:end] for start, end in pairwise(ends))
            ids = json.loads(told)
            return cls(ids["id"], tuple(ids["earlier"]), given.decode(), body.decode(), tuple(ids["items"]))
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise BadResponse(str(error)) from None
