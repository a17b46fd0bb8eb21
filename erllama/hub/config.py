"""The configuration of a hub. Wrong values fail at once, with the field's name and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from erllama.errors import check, check_int, check_number
from erllama.gguf.fingerprint import user_cache_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """Where models lie, where they may come from, and how they are fetched.

    dir: the hub's directory; None is "hub" in the user's cache directory. Processes, and machines
        whose file system has locks, may share one.
    hf_endpoint: the Hugging Face hub or a mirror of it; None is what huggingface_hub takes.
    hf_token: None is the token that huggingface_hub finds in its usual places; "" is none.
    ollama_registry: where `ollama://` sources and names without a source come from.
    storage_options: per protocol of fsspec, what its file system is made with (keys, endpoints).
    untrusted_protocols: the protocols of fsspec that a pull over HTTP may use.
    internal_hosts: hosts (`name` or `name:port`) that a pull over HTTP may reach although their
        addresses are not public, and without TLS; those of the two endpoints above belong to them.
    architectures: what llama.cpp can run; None is what the gguf package knows.
    connections: ranges of one file that are fetched at a time.
    chunk_bytes: the bytes of one range; what a process that dies fetches again at most, times
        `connections`.
    connect_timeout_s, stall_timeout_s: bounds of making a connection, and of a time in which fewer
        than `stall_bytes` arrive over it.
    stall_bytes: as many must arrive in `stall_timeout_s`, else the connection is made anew.
    attempts: tries of one range before the pull fails.
    backoff_s, max_backoff_s: what it waits after the first failed try, twice as long each time; and at
        most.
    max_redirects: hops of one request.
    max_header_bytes: what is fetched at most of a GGUF to see whether it can run.
    keep_free_bytes: what a pull leaves free on the disk.
    partial_max_age_s: a download that nobody went on with for so long is garbage.
    lock_timeout_s: how long the hub's own short lock may be held by others.
    """

    dir: Path | None = None
    hf_endpoint: str | None = None
    hf_token: str | None = field(default=None, repr=False)
    ollama_registry: str = "https://registry.ollama.ai"
    storage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    untrusted_protocols: tuple[str, ...] = ()
    internal_hosts: tuple[str, ...] = ()
    architectures: frozenset[str] | None = None
    connections: int = 4
    chunk_bytes: int = 16 << 20
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    stall_bytes: int = 16 << 10
    attempts: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_redirects: int = 5
    max_header_bytes: int = 64 << 20
    keep_free_bytes: int = 256 << 20
    partial_max_age_s: float = 7 * 86400.0
    lock_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("connections", "attempts"):
            check_int(name, getattr(self, name), 1, 64)
        for name in ("chunk_bytes", "max_header_bytes"):
            check_int(name, getattr(self, name), 1024)
        for name in ("stall_bytes", "keep_free_bytes", "max_redirects"):
            check_int(name, getattr(self, name), 0)
        for name in ("connect_timeout_s", "stall_timeout_s", "lock_timeout_s"):
            check_number(name, getattr(self, name), 0.01)
        for name in ("backoff_s", "max_backoff_s", "partial_max_age_s"):
            check_number(name, getattr(self, name), 0)
        for name in ("hf_endpoint", "ollama_registry"):
            url = getattr(self, name)
            if url is not None:
                parts = urlsplit(url)
                check(name, parts.scheme in ("http", "https") and bool(parts.hostname), "must be an http(s) URL")
                check(name, "@" not in parts.netloc, "must not contain credentials")

    @property
    def root(self) -> Path:
        """The hub's directory."""
        return user_cache_dir() / "hub" if self.dir is None else Path(self.dir)

    @property
    def operator_hosts(self) -> frozenset[str]:
        """Hosts that the operator vouches for, in lower case."""
        own = (urlsplit(url).netloc for url in (self.hf_endpoint, self.ollama_registry) if url)
        return frozenset(host.lower() for host in (*self.internal_hosts, *own))
