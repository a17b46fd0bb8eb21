"""Bodies that come compressed: `Content-Encoding: zstd`, as Codex sends them, or `gzip`.

A small body may stand for a huge one, so no more is decompressed than a body may have.
"""

from __future__ import annotations

import pyarrow as pa

from deployments.http.errors import BodyTooLarge, UnsupportedEncoding
from erllama.errors import InvalidParameter

ENCODINGS = ("zstd", "gzip")
_PLAIN = ("", "identity")


def is_compressed(encoding: str) -> bool:
    """Whether a body of this `Content-Encoding` has to be decompressed. Raises
    `UnsupportedEncoding`.
    """
    name = encoding.strip().lower()
    if name not in (*_PLAIN, *ENCODINGS):
        raise UnsupportedEncoding(
            f"The body has the content-encoding {name[:40]!r}; accepted are {' and '.join(ENCODINGS)}, or none."
        )
    return name in ENCODINGS


def decompressed(raw: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body. Raises `BodyTooLarge`, and `InvalidParameter` for what is no whole stream of its
    encoding. Some milliseconds per MB.
    """
    name = encoding.strip().lower()
    try:
        with pa.CompressedInputStream(pa.BufferReader(raw), name) as stream:
            body: bytes = stream.read(max_bytes + 1)
    except (OSError, pa.ArrowException):
        raise InvalidParameter(f"The body is not valid {name}, as its content-encoding says.") from None
    if len(body) > max_bytes:
        raise BodyTooLarge(f"The body has more than {max_bytes} bytes once it is decompressed.")
    return body
