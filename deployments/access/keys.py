"""API keys as a configuration lists them. A key itself is hashed as soon as it is read: nothing that
is kept, logged or sent to another process has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from deployments.access.tenant import DEFAULT_NAME, Tenant, owner_of, salt_of
from erllama.api_keys import NAME, check_hash, key_hash
from erllama.request import MAX_PRIORITY
from erllama.session_name import MAX_SALT_CHARS

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Salt = Annotated[str, Field(max_length=MAX_SALT_CHARS, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Field(ge=1, le=10**9)] | None


class KeySpec(BaseModel):
    """One key. Give its `hash` ("sha256:..."), or the `key` itself, which is hashed at once.

    Limits are this key's own, per minute and per ingress process.

    hash: of the key, as `erllama key new` prints it; `key` in its place is hashed when it is read.
    name: of its tenant in logs; keys of one name share what is kept of their requests, unless a
        `salt` says otherwise.
    models: ids that it may use; None: all of them.
    requests_per_minute: None: no limit.
    tokens_per_minute: of prompts and replies; None: no limit.
    admin: opens the routes that look into the server.
    pull: a request for a model that the hub does not have fetches it.
    priority: of its requests where they say nothing; they may say a higher number, which goes later.
    salt: what keeps a tenant's KV apart; None: made of the name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hash: Annotated[str, Field(repr=False)]
    name: Name = DEFAULT_NAME
    models: tuple[str, ...] | None = None
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    admin: bool = False
    pull: bool = False
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    salt: Annotated[Salt | None, Field(repr=False)] = None

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "key" not in given:
            return given
        values = dict(given)
        key = values.pop("key")
        if "hash" in values:
            raise ValueError("key and hash exclude each other")
        if not isinstance(key, str) or not key:
            raise ValueError("key must be a text that is not empty")
        return {**values, "hash": key_hash(key)}

    @field_validator("hash")
    @classmethod
    def _valid_hash(cls, value: str) -> str:
        return check_hash(value)

    @property
    def tenant(self) -> Tenant:
        return Tenant(
            self.name,
            salt_of(self.name) if self.salt is None else self.salt,
            None if self.models is None else frozenset(self.models),
            self.admin,
            owner_of(self.name),
            self.pull,
            self.priority,
        )


def _as_spec(given: Any) -> Any:
    return {"key": given} if isinstance(given, str) else given


ApiKey = Annotated[KeySpec, BeforeValidator(_as_spec)]
"""A `KeySpec`, or a key alone, as text."""
