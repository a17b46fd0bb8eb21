"""Captured requests over the real HTTP application, and sent again by `erllama replay`."""

import gzip
import json

import httpx
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from deployments.capture.options import CaptureOptions
from deployments.capture.writer import PATTERN, Captured, CaptureWriter
from deployments.config import BuildArgs
from erllama.cli.app import app as command
from erllama.cli.requests.captured import read_captured
from tests.support.http_fakes import FakeModel, app_of, served
from tests.support.http_site import serving

pytestmark = pytest.mark.filterwarnings("error")
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Tell me of Zebra"}]}


@pytest.fixture
def captured(tmp_path):
    """What a server keeps of the requests that `ask(client, url)` sends, once it has stopped."""

    def run(ask, **options):
        folder = tmp_path / "captured"
        capture = {"dir": str(folder), **options}
        app = app_of(served(FakeModel()), capture=capture)
        with serving(app, lifespan="on") as url, httpx.Client(base_url=url) as http:
            ask(http)
        return read_captured(folder) if any(folder.glob(PATTERN)) else []

    return run


def test_requests_that_generate_are_kept_without_keys_and_texts(captured):
    def ask(http):
        headers = {
            "authorization": "Bearer s3cret",
            "x-api-key": "s3cret",
            "user-agent": "mine/1",
            "x-request-id": "r1",
        }
        assert http.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
        body = gzip.compress(json.dumps({**CHAT, "max_tokens": 9, "stream": False}).encode())
        assert http.post("/v1/messages", content=body, headers={"content-encoding": "gzip"}).status_code == 200
        gemini = {"contents": [{"role": "user", "parts": [{"text": "Zebra"}]}]}
        url = "/v1beta/models/demo:generateContent?key=s3cret&alt=json"
        assert http.post(url, json=gemini).status_code == 200
        assert http.post("/v1/chat/completions", json={"messages": []}).status_code == 400
        assert http.post("/v1/embeddings", json={"input": "Zebra"}).status_code < 500
        assert http.post("/tokenize", json={"content": "Zebra"}).status_code == 200

    kept = captured(ask)
    assert [one.path for one in kept] == [
        "/v1/chat/completions", "/v1/messages", "/v1beta/models/demo:generateContent?alt=json"
    ]  # fmt: skip
    assert (kept[0].id, kept[0].headers) == ("r1", {"user-agent": "mine/1"})
    assert (kept[1].body["max_tokens"], kept[1].body["stream"]) == (9, False)
    assert "Zebra" not in str(kept)
    assert "s3cret" not in str(kept)


def test_texts_are_kept_where_that_is_asked_for(captured):
    [one] = captured(lambda http: http.post("/v1/chat/completions", json=CHAT), redact="keys")
    assert one.body == CHAT


def test_files_are_for_their_owner_alone(captured, tmp_path):
    captured(lambda http: http.post("/v1/chat/completions", json=CHAT))
    [file] = (tmp_path / "captured").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def entry(i, n_bytes=1000):
    return Captured(f"r{i}", float(i), "/v1/completions", {}, json.dumps({"prompt": "x" * n_bytes}).encode())


def test_the_oldest_files_go_when_there_are_too_many_bytes(tmp_path):
    for run in range(2):  # also those of an earlier process
        writer = CaptureWriter(CaptureOptions(dir=str(tmp_path), max_bytes="1MiB", redact="keys"))
        for i in range(150):
            writer.put(entry(run * 150 + i, 9000))
        writer.close()
        writer.close()
    kept = read_captured(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20
    assert [one.id for one in kept] == [f"r{i}" for i in range(300 - len(kept), 300)]
    assert len(kept) > 50


def test_what_cannot_be_written_is_dropped_and_counted(tmp_path, caplog):
    (tmp_path / "file").touch()
    for folder, items in [(tmp_path / "file" / "below", [entry(1)]), (tmp_path, [entry(1, 1 << 18)])]:
        writer = CaptureWriter(CaptureOptions(dir=str(folder), max_bytes="1MiB", redact="keys"))
        for item in items:
            writer.put(item)
        writer.close()
        assert writer.n_dropped == 1
    assert "event=not_captured dropped=1" in caplog.text


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"dir": "relative"}, "absolute path"),
        ({"dir": "/x", "max_bytes": "10"}, "at least 1048576"),
        ({"dir": "/x", "redact": "all"}, "'text' or 'keys'"),
        ({"path": "/x"}, "Extra inputs"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_refused_by_name(keys, reason):
    with pytest.raises(ValidationError, match=reason) as refused:
        BuildArgs.model_validate({"models": [{"id": "m", "path": "m"}], "http": {"capture": keys}})
    assert refused.value.errors()[0]["loc"][:2] == ("http", "capture")


# --- replay ---------------------------------------------------------------------------------------


def replay(*words, status=0):
    result = CliRunner().invoke(command, ["replay", *map(str, words)], env={"COLUMNS": "250"})
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_captured_requests_are_sent_again_in_order_and_measured(captured, tmp_path):
    def ask(http):
        http.post("/v1/chat/completions", json={**CHAT, "stream": True}).read()
        http.post("/v1/messages", json={**CHAT, "max_tokens": 9, "stream": True}).read()
        http.post("/v1/responses", json={"model": "demo", "input": "Hi", "stream": True}).read()
        http.post("/api/chat", json=CHAT).read()
        http.post("/completion", json={"prompt": "Hi"}).read()

    kept = captured(ask)
    assert len(kept) == 5
    model = FakeModel()
    with serving(app_of(served(model))) as url:
        told = json.loads(replay(tmp_path / "captured", "--host", url, "--json").stdout)
        text = replay(tmp_path / "captured", "--host", url, "--limit", 2).stdout
    assert [one["path"] for one in told["requests"]] == [one.path for one in kept]
    assert [one["error"] for one in told["requests"]] == [""] * 5
    assert all(0 < one["ttft_ms"] <= one["total_ms"] for one in told["requests"])
    sent = [len(request.prompt_tokens) for request in model.requests]
    assert [one["prompt_tokens"] for one in told["requests"]] == sent[:5]
    assert [one["cached_tokens"] for one in told["requests"]] == [3, 3, 3, None, 3]  # Ollama's API does not tell
    assert told["sent"] == 5
    assert len(text.splitlines()) == 3


def test_another_model_may_be_asked_and_a_refusal_is_told(captured, tmp_path):
    captured(lambda http: http.post("/v1/chat/completions", json=CHAT))
    with serving(app_of(served(FakeModel()))) as url:
        refused = replay(tmp_path / "captured", "--host", url, "--model", "other", "--json", status=1)
    [one] = json.loads(refused.stdout)["requests"]
    assert (one["status"], one["ttft_ms"]) == (404, None)
    assert "other" in one["error"]


def test_what_cannot_be_replayed_is_one_line(tmp_path):
    assert "does not exist" in replay(tmp_path / "none", status=1).stderr
    assert "no captured requests" in replay(tmp_path, status=1).stderr
    (tmp_path / "a.jsonl").write_text('{"path": "/x", "time": 1, "body": {}}\nbroken\n')
    assert "line 2" in replay(tmp_path, status=1).stderr
    (tmp_path / "a.jsonl").write_text('{"path": "/x", "time": 1, "body": {}}\n{"path": "/cut')
    assert "no server answers" in replay(tmp_path, "--host", "127.0.0.1:9", status=3).stderr
