"""A local HTTP server for the hub's tests: files with ranges, and every way to lie about them; the
Hugging Face hub's and an Ollama registry's answers over the same files.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

BLOCK = 64 << 10
SHA = "c0ffee" * 6 + "beef"
LAYER = "application/vnd.ollama.image."


@dataclass
class Served:
    """One file, and how its server behaves. `mode` is one of the words in `Handler._lie`."""

    data: bytes
    etag: str | None = None
    mode: str = "honest"
    cuts: int = 0  # so many answers end in the middle
    fails: int = 0  # so many answers are a 503
    held: threading.Event | None = None  # bodies wait for it after their first block ...
    held_from: int = 0  # ... if they begin here or later
    next_data: bytes | None = None  # what the file becomes after its first range
    bytes_sent: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    authorizations: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.etag is None:
            self.etag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def take(self, name: str) -> bool:
        """One of the `cuts` or `fails` that are left."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.seen_authorizations.append(self.headers.get("Authorization"))
        if path in self.server.redirects:
            self._send(302, {"Location": self.server.redirects[path]}, b"")
        elif path in self.server.json:
            body = json.dumps(self.server.json[path]).encode()
            self._send(200, {"Content-Type": "application/json"}, body)
        elif path in self.server.files:
            self._file(self.server.files[path])
        else:
            why = "RevisionNotFound" if "/revision/" in path else "RepoNotFound"
            self._send(404, {"Content-Type": "application/json", "X-Error-Code": why}, b'{"error": "no such thing"}')

    def _file(self, file: Served) -> None:
        file.requests[self.command] += 1
        file.authorizations.append(self.headers.get("Authorization"))
        data, etag = file.data, file.etag
        headers = {"ETag": etag} if etag else {}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(data))
            return self._send(200, headers, b"")
        if file.take("fails"):
            return self._send(503, {}, b"busy")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        whole = match is None or (condition is not None and condition != etag) or file.mode == "ignores ranges"
        start, end = (0, len(data)) if whole else (int(match[1]), min(int(match[2]) + 1, len(data)))
        if not whole:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        status, body = (200 if whole else 206), data[start:end]
        status, headers, body = self._lie(file, status, headers, body, start)
        self._send(status, headers, body, file, start)
        if file.next_data is not None and match is not None and start > 0:
            file.data, file.next_data = file.next_data, None
            file.etag = f'"{hashlib.sha256(file.data).hexdigest()[:16]}"' if etag else None
        return None

    def _lie(
        self, file: Served, status: int, headers: dict[str, str], body: bytes, start: int
    ) -> tuple[int, dict[str, str], bytes]:
        match file.mode:
            case "wrong Content-Range" if status == 206:
                body = file.data[start + 1 :][: len(body)]  # and these are the bytes that it sends
                headers["Content-Range"] = f"bytes {start + 1}-{start + len(body)}/{len(file.data)}"
            case "no Content-Range":
                headers.pop("Content-Range", None)
            case "other total" if status == 206:
                headers["Content-Range"] = headers["Content-Range"].rpartition("/")[0] + f"/{len(file.data) + 5}"
            case "short bodies" if status == 206 and len(body) > BLOCK:
                body = body[: len(body) // 2]
            case "long bodies":
                body += b"more than was asked for"
                headers["Transfer-Encoding"] = "chunked"
            case "long ranges" if status == 206:
                body += b"more than was asked for"
            case "gzip":
                body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
            case "wrong bytes":
                body = body[:-1] + bytes([body[-1] ^ 1])
            case "denied":
                status, body = 403, b"no"
        return status, headers, body

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, file: Served | None = None, start: int = 0
    ) -> None:
        self.send_response(status)
        chunked = "Transfer-Encoding" in headers
        if not chunked:
            headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = file is not None and status in (200, 206) and file.take("cuts")
        blocks = [body[i : i + BLOCK] for i in range(0, len(body), BLOCK)]
        for block in blocks[: len(blocks) // 2] if cut else blocks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            if file is not None:
                with file.lock:
                    file.bytes_sent += len(block)
                if file.held is not None and start >= file.held_from:
                    self.wfile.flush()
                    file.held.wait(60)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        if cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True


class FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.json: dict[str, Any] = {}
        self.redirects: dict[str, str] = {}
        self.seen_authorizations: list[str | None] = []
        self._connections = 0
        self._changed = threading.Condition()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._connections -= 1
                self._changed.notify_all()

    def wait_until_left(self) -> None:
        """Until all clients are gone, and with them what is still being sent."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._connections == 0, timeout=60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, path: str, data: bytes, **how: Any) -> Served:
        self.files[path] = Served(data, **how)
        return self.files[path]

    def add_repository(self, repo: str, contents: dict[str, bytes], revision: str = "main") -> dict[str, Served]:
        """A repository as the Hugging Face hub shows it; each file is a redirect to its content."""
        served, siblings = {}, []
        for name, data in contents.items():
            file = served[name] = self.add(f"/lfs/{repo}/{name}", data)
            lfs = {"sha256": file.sha256, "size": len(data), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(data), "blobId": "b" * 40, "lfs": lfs})
            self.redirects[f"/{repo}/resolve/{SHA}/{name}"] = f"{self.url}/lfs/{repo}/{name}?signature=secret"
        info = {"_id": "1", "id": repo, "modelId": repo, "sha": SHA, "siblings": siblings, "tags": [], "private": False}
        self.json[f"/api/models/{repo}"] = self.json[f"/api/models/{repo}/revision/{revision}"] = info
        return served

    def add_ollama(self, name: str, tag: str, layers: list[tuple[str, bytes]]) -> dict[str, Served]:
        """A model of an Ollama registry; layers are (kind, content)."""
        served, listed = {}, []
        for kind, data in layers:
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            served[kind] = self.add(f"/v2/{name}/blobs/{digest}", data)
            listed.append({"mediaType": LAYER + kind, "digest": digest, "size": len(data)})
        self.json[f"/v2/{name}/manifests/{tag}"] = {"schemaVersion": 2, "layers": listed}
        return served

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


@contextmanager
def serving(prepare: Callable[[FileServer], None] | None = None) -> Iterator[FileServer]:
    with FileServer() as server:
        if prepare is not None:
            prepare(server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            for file in server.files.values():
                if file.held is not None:
                    file.held.set()
            server.shutdown()
            thread.join()
