"""What can go wrong with a pull and is nobody's parameter."""

from __future__ import annotations

from erllama.errors import ErllamaError, RequestError


class PullFailed(ErllamaError):
    """The source cannot be reached, is not what it says, or changes while it is read."""

    http_status = 502
    code = "pull_failed"


class PullCancelled(RequestError):
    """Whoever asked for the pull gave it up. What was fetched is kept for the next one."""

    http_status = 499
    code = "pull_cancelled"


class SourceRefused(RequestError):
    """A pull that was asked for over HTTP may not reach this source: its scheme or an address."""

    http_status = 403
    code = "source_refused"


class SourceNotFound(RequestError):
    """The source has no such repository, file, tag or quantisation."""

    http_status = 404
    code = "source_not_found"


class NoSpace(ErllamaError):
    """The disk has no room for what is missing of a model; the message has both numbers."""

    http_status = 507
    code = "insufficient_storage"


class CorruptManifest(ErllamaError):
    """What the hub wrote down about a model cannot be read; pulling the model again mends it."""

    code = "corrupt_manifest"
