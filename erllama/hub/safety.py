"""Where a pull may connect to.

Whoever may ask a server for a pull over HTTP must not reach what only the server can reach: its own
machine, its network, the cloud's metadata service. So for a pull that is not trusted each hop of
each request is checked: https, no redirect chain beyond the bound, and only public addresses. A
host is resolved once for each connection, and the addresses that were checked are those that are
connected to: a name that resolves differently a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore

from erllama.errors import InvalidParameter
from erllama.hub.config import HubConfig
from erllama.hub.errors import SourceRefused
from erllama.hub.sources.source import FileSource, FsspecSource, Source

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
# What Python counts as global in some of its versions, or what is and still leads inside: 6to4 and
# Teredo carry an IPv4 address of anybody's choice, and Azure answers its machines on one of its
# public addresses.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet. Text that is no address is not."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address not in _UNICAST:
            return False
    if any(address.version == network.version and address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, in the system's order; raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


@dataclass(frozen=True, slots=True)
class Reach:
    """What one pull may reach. `operator_hosts` are vouched for by the configuration: neither
    their scheme nor their addresses are checked.
    """

    trusted: bool
    operator_hosts: frozenset[str] = frozenset()
    protocols: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: HubConfig, trusted: bool) -> Reach:
        return cls(trusted, config.operator_hosts, config.untrusted_protocols)

    def check_source(self, source: Source) -> None:
        """Raises `SourceRefused` for a source that no request over HTTP may name."""
        if self.trusted:
            return
        if isinstance(source, FileSource):
            raise SourceRefused("model: files of the server may not be pulled over HTTP", param="model")
        if isinstance(source, FsspecSource) and source.protocol not in self.protocols:
            raise SourceRefused(f"model: {source.protocol}:// may not be pulled over HTTP", param="model")

    def check_url(self, url: str) -> None:
        """Raises `SourceRefused` for a URL or a redirect to one that may not be asked. Does not
        resolve its host: `check_addresses` does when it is connected to.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceRefused(f"the source leads to {parts.scheme or 'no'}://, expected https", param="model")
        if "@" in parts.netloc:
            raise InvalidParameter("model: the source leads to a URL with credentials in it", param="model")
        if not self._vouched(parts.hostname, parts.port) and not self.trusted and parts.scheme != "https":
            raise SourceRefused(f"the source leads to http://{parts.hostname}: only https is allowed", param="model")

    def check_addresses(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """Raises `SourceRefused` unless all addresses of `host` are public."""
        if self.trusted or self._vouched(host, port):
            return
        for address in addresses:
            if not is_public(address):
                raise SourceRefused(f"the source leads to {host}, which is no public address", param="model")

    def _vouched(self, host: str, port: int | None) -> bool:
        host = host.lower()
        named = f"[{host}]" if ":" in host else host
        return bool(self.operator_hosts & {named, f"{named}:{port}"})


class PinnedBackend(httpcore.NetworkBackend):
    """Makes httpcore's connections: resolves a host once, checks, and connects to what was checked.

    `abort` ends all reads and writes that are under way, from any thread; it cannot be undone.
    """

    def __init__(
        self, reach: Reach, resolve: Resolve = resolve_host, below: httpcore.NetworkBackend | None = None
    ) -> None:
        self._reach = reach
        self._resolve = resolve
        self._below = below or httpcore.SyncBackend()
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._aborted = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        self._reach.check_addresses(host, port, addresses)
        last: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return self._keep(self._below.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise SourceRefused("the source leads to a socket of this machine", param="model")

    def sleep(self, seconds: float) -> None:
        self._below.sleep(seconds)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            streams = list(self._streams)
        for stream in streams:
            stream.shut()

    def _keep(self, below: httpcore.NetworkStream) -> _Stream:
        stream = _Stream(below, self._keep)
        with self._lock:
            self._streams.add(stream)
            aborted = self._aborted
        if aborted:
            stream.shut()
        return stream


class _Stream(httpcore.NetworkStream):
    """A connection that another thread can shut: closing a socket does not wake who reads it."""

    def __init__(self, below: httpcore.NetworkStream, keep: Callable[[httpcore.NetworkStream], _Stream]) -> None:
        self._below = below
        self._keep = keep

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._below.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._below.write(buffer, timeout)

    def close(self) -> None:
        self._below.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return self._keep(self._below.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._below.get_extra_info(info)

    def shut(self) -> None:
        connection = self._below.get_extra_info("socket")
        try:
            # Not the method of a TLS socket, which would first take the session from the reader.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except (OSError, TypeError):
            return  # it is closed already, or (TypeError) stands for a socket in a test
