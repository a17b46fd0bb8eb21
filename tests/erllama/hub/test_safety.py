"""What a pull over HTTP must not reach, whatever names, redirects and DNS say."""

from __future__ import annotations

import socket

import httpcore
import pytest

from erllama.errors import ErllamaError, InvalidParameter
from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed, SourceRefused
from erllama.hub.hub import Hub
from erllama.hub.safety import PinnedBackend, Reach, is_public
from erllama.hub.sources.client import HttpClient
from erllama.hub.sources.source import parse_source
from tests.erllama.hub.conftest import hub_config
from tests.support.hub_server import serving

UNTRUSTED = Reach(trusted=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:1::",
        "2001:db8::1",
        "not an address",
        "",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "140.82.121.3", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "source",
    [
        "/etc/model.gguf",
        "file:///etc/model.gguf",
        "s3://bucket/m.gguf",
        "memory://d/m.gguf",
        "http://example.com/m.gguf",
    ],
)
def test_sources_that_nobody_may_name_over_http(tmp_path, source):
    hub = Hub(hub_config(tmp_path, None, ollama_registry="https://registry.invalid"))
    with pytest.raises(SourceRefused):
        list(hub.pull(source, trusted=False))


def test_protocols_of_fsspec_can_be_allowed():
    Reach.of(HubConfig(untrusted_protocols=("s3",)), False).check_source(source("s3://bucket/m.gguf"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_reached_however_it_is_written(tmp_path, server, model_bytes, host):
    """With TLS or not: no connection is made at all."""
    server.add("/m.gguf", model_bytes)
    port = server.server_address[1]
    hub = Hub(hub_config(tmp_path, None, ollama_registry="https://registry.invalid"))
    with pytest.raises((SourceRefused, PullFailed, InvalidParameter)) as raised:
        list(hub.pull(f"https://{host}:{port}/m.gguf", trusted=False))
    assert server.seen_authorizations == []
    if host in ("127.0.0.1", "localhost", "[::1]"):
        assert isinstance(raised.value, SourceRefused)


class Below(httpcore.NetworkBackend):
    """Notes what is connected to, and has nobody there."""

    def __init__(self):
        self.connected = []

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connected.append(host)
        raise httpcore.ConnectError("nobody is there")


def test_what_was_checked_is_what_is_connected_to():
    """A name that is public when it is looked up first, and this machine the next time."""
    answers = iter([["8.8.8.8", "8.8.4.4"], ["127.0.0.1"]])
    below = Below()
    backend = PinnedBackend(UNTRUSTED, lambda host, port: next(answers), below)
    with pytest.raises(httpcore.ConnectError):
        backend.connect_tcp("rebinding.example", 443)
    assert below.connected == ["8.8.8.8", "8.8.4.4"]
    with pytest.raises(SourceRefused, match="no public address"):
        backend.connect_tcp("rebinding.example", 443)
    assert below.connected == ["8.8.8.8", "8.8.4.4"]


def test_one_inner_address_among_public_ones_is_enough_to_refuse():
    below = Below()
    backend = PinnedBackend(UNTRUSTED, lambda host, port: ["8.8.8.8", "10.0.0.1"], below)
    with pytest.raises(SourceRefused):
        backend.connect_tcp("half.example", 443)
    assert below.connected == []


def test_sockets_of_this_machine_are_refused():
    with pytest.raises(SourceRefused):
        PinnedBackend(Reach(trusted=True)).connect_unix_socket("/var/run/docker.sock")


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{other}/m.gguf", "https://127.0.0.1:{other}/m.gguf", "https://localhost:{other}/m.gguf",
     "file:///etc/passwd", "ftp://example.com/m.gguf", "http://example.com/m.gguf", "//127.0.0.1:{other}/m.gguf"],
)  # fmt: skip
def test_each_hop_of_a_redirect_is_checked(tmp_path, server, other_server, target):
    """The first hop is a host that the operator vouches for; the second is not."""
    other_server.add("/m.gguf", b"secret")
    server.redirects["/go.gguf"] = target.format(other=other_server.server_address[1])
    with (
        HttpClient(hub_config(tmp_path, server.url), reach(server)) as client,
        pytest.raises(SourceRefused),
        client.send("GET", f"{server.url}/go.gguf"),
    ):
        pass
    assert other_server.seen_authorizations == []


def test_redirects_are_bounded(tmp_path, server):
    server.redirects["/round.gguf"] = "/round.gguf"
    with (
        HttpClient(hub_config(tmp_path, server.url), reach(server)) as client,
        pytest.raises(PullFailed, match="more than 5 redirects"),
        client.send("GET", f"{server.url}/round.gguf"),
    ):
        pass
    assert len(server.seen_authorizations) == 6


@pytest.mark.parametrize(("to_other", "seen"), [(False, "Bearer t"), (True, None)])
def test_authorization_stays_at_its_origin(tmp_path, server, other_server, to_other, seen):
    target = other_server if to_other else server
    target.add("/there", b"x")
    server.redirects["/here"] = f"{target.url}/there"
    with (
        HttpClient(hub_config(tmp_path, server.url), Reach(trusted=True)) as client,
        client.send("GET", f"{server.url}/here", authorization="Bearer t") as response,
    ):
        assert response.status_code == 200
    assert target.seen_authorizations[-1] == seen
    assert server.seen_authorizations[0] == "Bearer t"


def test_hosts_that_the_operator_names_may_be_inside(tmp_path, server, model_bytes):
    server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})
    hub = Hub(hub_config(tmp_path, server.url))
    list(hub.pull("hf://o/r", trusted=False))
    assert hub.path_of("hf.co/o/r").read_bytes() == model_bytes


def test_a_host_is_vouched_for_with_its_port_only(server):
    port = server.server_address[1]
    vouched = Reach(trusted=False, operator_hosts=frozenset([f"127.0.0.1:{port}"]))
    vouched.check_addresses("127.0.0.1", port, ["127.0.0.1"])
    with pytest.raises(SourceRefused):
        vouched.check_addresses("127.0.0.1", port + 1, ["127.0.0.1"])


def test_a_name_that_does_not_resolve_is_no_crash(tmp_path):
    def resolve(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    with (
        HttpClient(hub_config(tmp_path, None, ollama_registry="https://r.invalid"), UNTRUSTED, resolve) as client,
        pytest.raises(ErllamaError, match="cannot be resolved"),
    ):
        client.get_json("https://nowhere.invalid/x")


@pytest.fixture
def other_server():
    with serving() as server:
        yield server


def reach(server):
    return Reach(trusted=False, operator_hosts=frozenset([f"127.0.0.1:{server.server_address[1]}"]))


def source(text):
    return parse_source(text)
