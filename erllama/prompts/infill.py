"""A text with a gap, as a model that fills in the middle reads it: what llama-server's /infill builds.

    [repository] myproject  [file] a.py  <text of a.py>  ...  [file] filename
    BOS [prefix] <text before the gap> <what is written of the gap> [suffix] <text behind it> [middle]

The first line is there where the vocabulary has tokens for it; without them each file stands behind
a line "--- snippet ---". Static; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erllama.backend.base import Vocab
from erllama.backend.special_tokens import FimTokens
from erllama.errors import NotSupported

_NEAR_TOKENS = 2048  # llama-server's default batch, which is its measure: a small model does not need more
_N_MARKS = 4  # BOS and those around the gap, at most
_CHARS_PER_TOKEN = 64  # hardly any token has more: a text is read so far and no farther
_PROJECT, _FILE = "myproject\n", "filename\n"  # nobody says what they are called; llama-server neither
_SNIPPET = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class Gap:
    """What stands around a gap. `prefix` is text or token ids; `begun` is what is written of the gap
    already, behind the prefix, and may name control tokens. `files` are others of the project, name
    and text, the most relevant one last.
    """

    prefix: str | Sequence[int]
    suffix: str
    begun: str = ""
    files: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that a prompt may have: of the text around the gap (`near`), three quarters of them
    before it and one behind, and of other files with their marks (`far`).
    """

    near: int
    far: int

    @classmethod
    def of(cls, n_ctx: int, n_predict: int | None) -> Room:
        """What llama-server gives them in a context of `n_ctx`, where `n_predict` tokens shall be
        generated, None for until the end.
        """
        reply = n_ctx // 4 if n_predict is None else min(n_predict, n_ctx)
        near = min(_NEAR_TOKENS, max(0, n_ctx - reply - _N_MARKS))
        return cls(near, max(0, n_ctx - near - max(reply + _N_MARKS, 0 if n_predict is None else 2 * reply)))


def infill_tokens(vocab: Vocab, gap: Gap, room: Room | None = None, *, suffix_first: bool = False) -> list[int]:
    """The prompt. What `room` does not hold is left out where it is farthest from the gap; without
    one all of the text stays, and there is no line of files. Raises `NotSupported` for a vocabulary
    without these tokens.
    """
    fim = vocab.specials.fim
    if fim is None:
        raise NotSupported("this model's vocabulary has no tokens to fill in the middle with", param="model")
    begun = vocab.tokenize(gap.begun, add_special=False, parse_special=True)
    near = None if room is None else room.near
    before = [fim.prefix, *_tail(vocab, gap.prefix, None if near is None else 3 * (near // 4)), *begun]
    n_behind = None if near is None else max(0, near // 4 - 2 - len(begun))
    behind = [fim.suffix, *_beginning(vocab, gap.suffix, n_behind)]
    bos = vocab.specials.bos if vocab.adds_bos else None
    around = [*behind, *before] if suffix_first else [*before, *behind]
    files = [] if room is None else _files(vocab, fim, gap.files, room.far)
    return [*files, *([] if bos is None else [bos]), *around, fim.middle]


def _files(vocab: Vocab, fim: FimTokens, files: Sequence[tuple[str, str]], n_tokens: int) -> list[int]:
    """The last `n_tokens` of all files with their marks; those before them are not read."""
    parts: list[list[int]] = [] if fim.file is None else [[fim.file, *_plain(vocab, _FILE)]]
    n_read = sum(map(len, parts))
    for name, text in reversed(files):
        if n_read >= n_tokens:
            break
        mark = _plain(vocab, _SNIPPET) if fim.file is None else [fim.file, *_plain(vocab, f"{name}\n")]
        parts.append([*mark, *_tail(vocab, text, n_tokens)])
        n_read += len(parts[-1])
    if fim.repository is not None:
        parts.append([fim.repository, *_plain(vocab, _PROJECT)])
    tokens = [token for part in reversed(parts) for token in part]
    return tokens[max(0, len(tokens) - n_tokens) :]


def _plain(vocab: Vocab, text: str) -> list[int]:
    return vocab.tokenize(text, add_special=False, parse_special=False)


def _tail(vocab: Vocab, text: str | Sequence[int], n_tokens: int | None) -> Sequence[int]:
    if n_tokens is None:
        return _plain(vocab, text) if isinstance(text, str) else text
    if isinstance(text, str):
        text = _plain(vocab, text[max(0, len(text) - n_tokens * _CHARS_PER_TOKEN) :])
    return text[max(0, len(text) - n_tokens) :]


def _beginning(vocab: Vocab, text: str, n_tokens: int | None) -> list[int]:
    return _plain(vocab, text if n_tokens is None else text[: n_tokens * _CHARS_PER_TOKEN])[:n_tokens]
