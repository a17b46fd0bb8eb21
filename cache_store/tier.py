"""How a tier is configured, and opening it. Callers import everything about tiers from here.

    file:///dev/shm/erllama, /var/cache/erllama, ~/cache    a local directory: RAM file system, disk or network mount (`LocalTier`)
    s3://bucket/prefix, gs://, abfs://, memory://x, ...     anything that fsspec has a driver for (`RemoteTier`)

Whether a local directory is RAM or disk is asked of the file system, not guessed from its path.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec

from cache_store.errors import TierError
from cache_store.local_tier import LocalTier
from cache_store.remote_tier import ONE_PUT_SCHEMES, RemoteTier
from cache_store.tier_base import NoSpace, ReadBuffer, Stat, Tier, Verify

__all__ = ["LocalTier", "NoSpace", "ReadBuffer", "RemoteTier", "Stat", "Tier", "TierConfig", "Verify", "open_tier", "parse_bytes"]

log = logging.getLogger("cache_store")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power for power, letter in enumerate("kmgt", start=1) for suffix, base in (("b", 1000), ("ib", 1024))
}
_LOCAL_SCHEMES = ("", "file", "local")
# Seconds, and attempts: by default botocore waits a minute for each of its five attempts, and s3fs makes five of those.
_S3_PATIENCE: Mapping[str, Any] = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}
_S3FS_RETRIES = 1


def parse_bytes(size: int | str) -> int:
    """The number of bytes that "2GiB", "500 MB", "1.5TB" or a number stands for. ValueError for anything else, and for less than one."""
    match = _SIZE.match(size.strip()) if isinstance(size, str) else None
    if match is not None and match[2].lower() in _UNITS:
        n_bytes = int(Decimal(match[1]) * _UNITS[match[2].lower()])
    elif isinstance(size, int) and not isinstance(size, bool):
        n_bytes = size
    else:
        raise ValueError(f'{size!r} is not a size: write a number of bytes, or a number with a unit, as in "500MB" or "2GiB"')
    if n_bytes < 1:
        raise ValueError(f"{size!r} is not a size: it must be at least one byte")
    return n_bytes


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier as an operator writes it.

    url              where; credentials do not belong in it
    max_bytes        budget: a number or "20GiB"; None: no limit of ours
    compression      of the objects written to it
    storage_options  arguments of the fsspec driver (endpoint_url, key, secret, ...); never logged
    """

    url: str
    max_bytes: int | str | None = None
    compression: Literal["zstd", "lz4"] | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str) or not self.url.strip():
            raise ValueError(f"url: a tier needs a URL or a path, not {self.url!r}")
        self._check_url()
        if self.compression not in (None, "zstd", "lz4"):
            raise ValueError(f'compression: {self.compression!r} is none of "zstd", "lz4", null')
        if not isinstance(self.storage_options, Mapping) or not all(isinstance(key, str) for key in self.storage_options):
            raise ValueError("storage_options: must be a mapping of names to values")
        if self.is_local and self.storage_options:
            raise ValueError(f"storage_options: the local directory {self.url!r} takes none")
        try:
            _ = self.budget_bytes
        except ValueError as failure:
            raise ValueError(f"max_bytes: {failure}") from None

    def _check_url(self) -> None:
        if "::" in self.url:
            raise ValueError(f"url: chained URLs are not supported (they cache, and a tier must see what others write): {self.url!r}")
        if self.scheme and urlsplit(self.url).password is not None:
            raise ValueError(f"url: the {self.scheme} URL holds a password; put credentials into storage_options")
        if self.scheme and self.is_local and not self.path.startswith(("/", "~")):
            raise ValueError(f"url: {self.url!r} is not absolute; a local URL has three slashes, as in file:///dev/shm/cache")

    @property
    def scheme(self) -> str:
        """Lower-case; "" for a plain path."""
        scheme, separator, _ = self.url.partition("://")
        return scheme.lower() if separator else ""

    @property
    def path(self) -> str:
        """What follows the scheme."""
        return self.url.partition("://")[2] if self.scheme else self.url

    @property
    def is_local(self) -> bool:
        return self.scheme in _LOCAL_SCHEMES

    @property
    def budget_bytes(self) -> int | None:
        return None if self.max_bytes is None else parse_bytes(self.max_bytes)


def open_tier(config: TierConfig) -> Tier:
    """The tier that `config` names; a directory is made (mode 0700). TierError names the URL and why it cannot be used.

    A store that exists but does not answer now is not refused: the tier is opened, the failure logged, and calls fail until it is back.
    """
    if config.is_local:
        return LocalTier(os.path.abspath(os.path.expanduser(config.path)), config.budget_bytes)
    one_put = config.scheme in ONE_PUT_SCHEMES
    filesystem, root = _driver(config)
    _probe(config, filesystem, root, one_put=one_put)
    return RemoteTier(filesystem, root, url=config.url, label=config.scheme, one_put=one_put, max_bytes=config.budget_bytes)


def _driver(config: TierConfig) -> tuple[fsspec.AbstractFileSystem, str]:
    options = dict(config.storage_options)
    if config.scheme in ("s3", "s3a"):
        options["config_kwargs"] = {**_S3_PATIENCE, **options.get("config_kwargs", {})}
        options.setdefault("max_concurrency", 1)  # a read is one GET: s3fs otherwise asks for the size first
    try:  # an instance of our own: `close` ends it, and its listing cache is switched off
        filesystem, root = fsspec.url_to_fs(config.url, **options, skip_instance_cache=True)
    except (
        Exception
    ) as failure:  # ValueError: no such scheme; ImportError: driver not installed; TypeError: an option it does not know; ...
        raise TierError(f"cannot use the tier {config.url}: {failure}") from failure
    if config.scheme in ("s3", "s3a"):
        filesystem.retries = _S3FS_RETRIES
    if not root.strip("/") and config.scheme != "memory":
        raise TierError(f"cannot use the tier {config.url}: the URL names no bucket or directory")
    return filesystem, root


def _probe(config: TierConfig, filesystem: fsspec.AbstractFileSystem, root: str, *, one_put: bool) -> None:
    """Find out now what will never work; buckets are not ours to make, directories are."""
    try:
        if config.scheme == "memory":
            return
        if one_put:
            filesystem.info(root.split("/")[0])
        else:
            filesystem.makedirs(root, exist_ok=True)
    except (FileNotFoundError, PermissionError, NotImplementedError, TypeError, ValueError) as failure:
        raise TierError(f"cannot use the tier {config.url}: {failure or type(failure).__name__}") from failure
    except Exception as failure:
        log.warning("tier=%s does not answer: %s", config.url, failure)
