"""Reasoning as `encrypted_content`: what a client without a store sends back unread.

It hides nothing, since the client gets the same text in the clear; it only survives clients that
drop the text and keep this. What another server has sealed cannot be read and is no reasoning.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "erllama1:"


def seal(text: str) -> str:
    return _MARK + base64.b64encode(text.encode()).decode()


def unseal(sealed: str) -> str:
    """The text, "" for what was not sealed here."""
    if not sealed.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(sealed.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
