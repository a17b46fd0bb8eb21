"""Over TLS: the certificate is that of the name, the connection that of the checked address."""

from __future__ import annotations

import datetime
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from erllama.hub.errors import PullCancelled, PullFailed
from erllama.hub.safety import Reach
from erllama.hub.sources.client import HttpClient


@pytest.fixture
def tls_server(server, tmp_path, monkeypatch):
    """`server` over TLS with a certificate for two names, which this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("models.test"), x509.DNSName("localhost")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password) + certificate.public_bytes(encoding)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return server


def client_of(config):
    return HttpClient(config, Reach(trusted=True), lambda host, port: ["127.0.0.1"])


def test_the_name_is_verified_and_the_address_is_the_one_that_was_resolved(config, tls_server):
    tls_server.json["/x"] = {"a": 1}
    port = tls_server.server_address[1]
    with client_of(config) as client:
        assert client.get_json(f"https://models.test:{port}/x") == {"a": 1}
        with pytest.raises(PullFailed, match="certificate"):
            client.get_json(f"https://other.test:{port}/x")


def test_who_waits_for_bytes_over_tls_is_woken(hub, tls_server, model_bytes):
    """Far earlier than the stall's time would end it: the events end while the server still holds."""
    file = tls_server.add("/m.gguf", model_bytes, held=threading.Event(), held_from=1 << 20)
    cancel = threading.Event()
    events = hub.pull(f"https://localhost:{tls_server.server_address[1]}/m.gguf", cancel=cancel)
    assert any(event.completed >= 1 << 19 for event in events)
    cancel.set()
    with pytest.raises(PullCancelled):
        list(events)
    assert not file.held.is_set()
