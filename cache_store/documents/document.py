"""A document as a file. Pure.

Name:

    documents/<kind>/<scope>/<xx>/<id>.v1.doc

`kind` says whose documents they are, `scope` is a digest of salt and tenant: without them nobody
finds one, however well he knows its id. `xx` is the end of the id.

Bytes, little-endian:

    0   8   magic, with the version of the format
    8   16  xxh3-128 of all that follows
    24  8   when it was made, unix seconds (double)
    32  4   length of the name: a good file under another's name is none
    36  8   length of the content
    44      the name, then the content as zstd
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from cache_store.format.keys import digest_of

_MAGIC = b"erldoc\x00\x01"
_HEAD = struct.Struct("<8s16sdIQ")
_DIGESTED_FROM = 24
_MAX_BYTES = 256 << 20  # keeps a damaged length from taking all memory

_ID = re.compile(r"[A-Za-z0-9_-]{2,128}\Z")
_NAME = re.compile(r"documents/[a-z]+/[0-9a-f]{32}/[A-Za-z0-9_-]{2}/[A-Za-z0-9_-]{2,128}\.v1\.doc\Z")


class BadDocument(Exception):
    """A file that is no document, not this one, or damaged."""


@dataclass(frozen=True, slots=True)
class Document:
    """`created_s` is unix seconds."""

    content: bytes
    created_s: float


def prefix_of(kind: str) -> str:
    """The beginning of the names of all documents of a kind."""
    return f"documents/{kind}/"


def document_name(kind: str, salt: str, scope: str, id: str) -> str | None:
    """Where the document lies; None for an id that no document can have."""
    if not _ID.match(id):
        return None
    return f"{prefix_of(kind)}{digest_of(salt, scope)[:32]}/{id[-2:]}/{id}.v1.doc"


def is_document(name: str) -> bool:
    """Whether a file has the name of one. Others are foreign: left alone and not counted."""
    return _NAME.match(name) is not None


def encode_document(name: str, document: Document) -> bytes:
    """Raises `ValueError` for a content that is too long."""
    content = document.content
    if len(content) > _MAX_BYTES:
        raise ValueError(f"a document of {len(content)} bytes: at most {_MAX_BYTES}")
    packed = pa.compress(content, codec="zstd", asbytes=True) if content else b""
    plain_name = name.encode()
    head = _HEAD.pack(_MAGIC, bytes(16), document.created_s, len(plain_name), len(content))
    digested = head[_DIGESTED_FROM:] + plain_name + packed
    return _MAGIC + xxhash.xxh3_128_digest(digested) + digested


def decode_document(name: str, data: memoryview) -> Document:
    """The document that lies at `name`. Raises `BadDocument`."""
    if len(data) < _HEAD.size:
        raise BadDocument("too short")
    magic, digest, created_s, name_bytes, content_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise BadDocument("not a document of this version")
    if xxhash.xxh3_128_digest(data[_DIGESTED_FROM:]) != digest:
        raise BadDocument("damaged")
    begin = _HEAD.size + name_bytes
    if bytes(data[_HEAD.size : begin]) != name.encode():
        raise BadDocument("another document")
    if content_bytes > _MAX_BYTES:
        raise BadDocument("too long")
    if not content_bytes:
        return Document(b"", created_s)
    try:
        content = pa.decompress(bytes(data[begin:]), decompressed_size=content_bytes, codec="zstd", asbytes=True)
    except (OSError, pa.ArrowException) as error:
        raise BadDocument(str(error)) from None
    return Document(content, created_s)
