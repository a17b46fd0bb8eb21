"""What an ingress and the manager of the hub's models say to each other. Plain data that pickles."""

from __future__ import annotations

from dataclasses import dataclass

from erllama.errors import ErllamaError


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request that wants its model. `digest` is that of the model's manifest as the ingress has
    read it; `waited_s` is for how long the request has waited, so that a new manager knows its turn.
    """

    ingress_id: str
    ticket_id: str
    model_id: str
    digest: str
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be sent to this deployment, and counts as running until it is released."""

    app_name: str
    deployment: str


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A name of the hub, as requests for it have to know it."""

    model_id: str
    digest: str
    load_timeout_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet: ask again with the same ticket. `reason` is for people."""

    reason: str


class ModelNotInTime(ErllamaError):
    """No memory was free for the model, or it was not loaded, within `hub.load_timeout_s`."""

    http_status = 503
    code = "model_not_loaded"


class ModelPulling(ErllamaError):
    """The model is being fetched: the request may come again when that is done."""

    http_status = 503
    code = "model_pulling"
