"""What a client will send next, as far as that is known when its reply is complete."""

from __future__ import annotations

from dataclasses import dataclass

from erllama.errors import check, check_int, check_type
from erllama.session_name import check_salt


@dataclass(frozen=True, slots=True)
class NextTurn:
    """`tokens` begin the prompt that follows on the reply to the request `request_id`. Its prompt and
    reply begin with the first `n_kept` of them: who served it has their KV, and can compute the
    others while it has nothing else to do. `salt` is that of the request.
    """

    request_id: str
    tokens: tuple[int, ...]
    n_kept: int
    salt: str = ""

    def __post_init__(self) -> None:
        check_type("request_id", self.request_id, str, "a string")
        check_salt(self.salt)
        are_ids = isinstance(self.tokens, tuple) and not set(map(type, self.tokens)) - {int}
        check("tokens", are_ids, "must be token ids, all of them integers")
        check("tokens", all(0 <= token < 2**31 for token in self.tokens), "must hold ids from 0 to 2147483647")
        check_int("n_kept", self.n_kept, 1, len(self.tokens))
