"""Opens the tier that a config names.

    file:///dev/shm/erllama, /var/cache/erllama, ~/cache
        a local directory: RAM file system, disk or network mount (`LocalTier`)
    s3://bucket/prefix, gs://, abfs://, memory://x, ...
        anything that fsspec has a driver for (`RemoteTier`)

Whether a local directory is RAM or disk is asked of the file system, not guessed from its path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import fsspec

from cache_store.config import MAX_READS, TierConfig
from cache_store.errors import TierError
from cache_store.tiers.base import Tier
from cache_store.tiers.local import LocalTier
from cache_store.tiers.remote import ONE_PUT_SCHEMES, RemoteTier

log = logging.getLogger("cache_store")

# Seconds, and attempts: by default botocore waits a minute for each of its five attempts, and s3fs
# makes five of those. By default it opens ten connections.
_S3_OPTIONS: Mapping[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"max_attempts": 2},
    "max_pool_connections": MAX_READS,
}
_S3FS_RETRIES = 1


def open_tier(config: TierConfig) -> Tier:
    """The tier that `config` names; a directory is made (mode 0700). TierError names the URL and
    why it cannot be used.

    A store that exists but does not answer now is not refused: the tier is opened, the failure
    logged, and calls fail until it is back.
    """
    if config.is_local:
        return LocalTier(os.path.abspath(os.path.expanduser(config.path)), config.budget_bytes)
    one_put = config.scheme in ONE_PUT_SCHEMES
    filesystem, root = _driver(config)
    _probe(config, filesystem, root, one_put=one_put)
    return RemoteTier(
        filesystem, root, url=config.url, label=config.scheme, one_put=one_put, max_bytes=config.budget_bytes
    )


def _driver(config: TierConfig) -> tuple[fsspec.AbstractFileSystem, str]:
    options = dict(config.storage_options)
    is_s3 = config.scheme in ("s3", "s3a")
    if is_s3:
        options["config_kwargs"] = {**_S3_OPTIONS, **options.get("config_kwargs", {})}
        options.setdefault("max_concurrency", 1)  # a read is one GET: s3fs otherwise asks for the size first
    try:  # an instance of our own: `close` ends it, and its listing cache is switched off
        filesystem, root = fsspec.url_to_fs(config.url, **options, skip_instance_cache=True)
    except Exception as failure:  # no such scheme, driver not installed, an option that it does not know, ...
        raise TierError(f"cannot use the tier {config.url}: {failure}") from failure
    if is_s3:
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
