"""API keys: made at random, and known by their hashes alone.

A key has 256 random bits, so that one round of SHA-256 protects it as well as many would. A word
that a person chose is no such key.
"""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "erl-"
_KEY_BYTES = 32
_ALGORITHM = "sha256:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # of whose key it is: a word in a log line
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def key_hash(key: str | bytes) -> str:
    """What a configuration keeps of a key."""
    return _ALGORITHM + hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def check_hash(text: str) -> str:
    """`text` if it has the form of a hash. Raises `ValueError`, whose words do not repeat it: it may be
    a key.
    """
    if not _HASH.fullmatch(text):
        raise ValueError("must be sha256: and 64 lower-case hex digits, as `erllama key new` prints it")
    return text
