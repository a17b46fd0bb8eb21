"""Each kind of source against a stand-in: the Hugging Face hub through huggingface_hub, an Ollama
registry, S3, files.
"""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import replace

import fsspec
import pytest
from aiobotocore.session import AioSession
from gguf.constants import GGUFValueType
from moto.server import ThreadedMotoServer

from erllama.errors import NotSupported
from erllama.gguf.check import inspect_gguf
from erllama.gguf.header import GgufValue, read_header
from erllama.hub.errors import PullFailed, SourceNotFound
from erllama.hub.hub import Hub
from erllama.hub.sources.huggingface import choose_files, quant_of
from erllama.hub.sources.remote import Role
from erllama.hub.sources.source import HuggingFaceSource
from erllama.testing.random_gguf import write_random_lora
from tests.erllama.hub.conftest import hub_config
from tests.support.gguf_files import serialise


def pull(hub, source, **options):
    return list(hub.pull(source, **options))


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "Q8_0"),
        ("model-IQ3_XXS.gguf", "IQ3_XXS"),
        ("DeepSeek-R1-UD-Q2_K_XL/DeepSeek-R1-UD-Q2_K_XL-00001-of-00005.gguf", "UD-Q2_K_XL"),
        ("BF16/x-00001-of-00002.gguf", "BF16"),
        ("phi-4-f16.gguf", "F16"),
        ("model.Q5_K_S.gguf", "Q5_K_S"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q8_0/model.gguf", "Q8_0"),
        ("tinyllama.gguf", None),
    ],
)
def test_a_file_name_tells_its_quantisation(path, quant):
    assert quant_of(path) == quant


LISTED = [
    "README.md",
    "M-Q8_0.gguf",
    "M-Q4_K_M.gguf",
    "M-Q4_K_S.gguf",
    "big/M-F16-00001-of-00002.gguf",
    "big/M-F16-00002-of-00002.gguf",
    "mmproj-M-F32.gguf",
    "mmproj-M-f16.gguf",
    "M.imatrix.gguf",
]
PROJECTOR = (Role.PROJECTOR, "mmproj-M-f16.gguf")


@pytest.mark.parametrize(
    ("quant", "file", "chosen"),
    [
        (None, None, [(Role.MODEL, "M-Q4_K_M.gguf"), PROJECTOR]),
        ("q8_0", None, [(Role.MODEL, "M-Q8_0.gguf"), PROJECTOR]),
        (
            "F16",
            None,
            [(Role.MODEL, "big/M-F16-00001-of-00002.gguf"), (Role.PART, "big/M-F16-00002-of-00002.gguf"), PROJECTOR],
        ),
        (None, "M-Q8_0.gguf", [(Role.MODEL, "M-Q8_0.gguf")]),
    ],
)
def test_the_files_of_a_quantisation(quant, file, chosen):
    assert choose_files(HuggingFaceSource("o", "r", quant=quant, file=file), LISTED) == chosen


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        (["a-Q8_0.gguf", "a-Q4_0.gguf"], "a-Q4_0.gguf"),
        (["a-IQ1_S.gguf", "a-Q2_K.gguf"], "a-IQ1_S.gguf"),
        (["only.gguf"], "only.gguf"),
    ],
)
def test_what_is_taken_when_nothing_is_said(listed, first):
    assert choose_files(HuggingFaceSource("o", "r"), listed) == [(Role.MODEL, first)]


@pytest.mark.parametrize("asked", [{"quant": "Q3_K_S"}, {"file": "other.gguf"}])
def test_what_is_not_there_is_answered_with_what_is(asked):
    with pytest.raises(SourceNotFound, match=r"Q4_K_M"):
        choose_files(HuggingFaceSource("o", "r", **asked), LISTED)


def test_a_repository_is_pulled_by_its_quantisation(hub, server, model_bytes, tiny_bytes):
    files = server.add_repository("o/r", {"README.md": b"#", "m-Q8_0.gguf": model_bytes, "m-F16.gguf": tiny_bytes})
    events = pull(hub, "hf.co/o/r:q8_0")
    assert hub.path_of("hf.co/o/r:Q8_0").read_bytes() == model_bytes
    assert files["m-F16.gguf"].bytes_sent == 0
    assert f"pulling {files['m-Q8_0.gguf'].sha256[:12]}" in {event.status for event in events}
    assert "signature" not in (hub.config.root / "manifests" / "hf.co+o+r@q8_0.json").read_text()


def test_all_parts_of_a_split_model_lie_beside_each_other(hub, server, tmp_path, tiny_bytes):
    parts = split_gguf(tiny_bytes, tmp_path)
    server.add_repository("o/r", {f"F16/{name}": data for name, data in parts.items()})
    pull(hub, "hf://o/r", as_name="split")
    path = hub.path_of("split")
    assert {part.name: part.read_bytes() for part in path.parent.iterdir()} == parts
    assert inspect_gguf(path).size_bytes == sum(map(len, parts.values()))
    for name, data in parts.items():
        server.add(f"/plain/{name}", data)
    pull(hub, f"{server.url}/plain/{path.name}", as_name="plain")
    assert {part.name for part in hub.path_of("plain").parent.iterdir()} == set(parts)


def test_a_token_goes_to_the_hub_and_not_to_where_it_redirects(tmp_path, server, model_bytes, caplog):
    hub = Hub(hub_config(tmp_path / "hub", server.url, hf_token="hf_hunter2"))
    files = server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})
    server.redirects = {path: target.replace("127.0.0.1", "localhost") for path, target in server.redirects.items()}
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "erllama")
    pull(hub, "hf://o/r")
    assert set(files["m-Q8_0.gguf"].authorizations) == {None}
    assert "Bearer hf_hunter2" in server.seen_authorizations
    assert "pulled model" in caplog.text
    assert "hunter2" not in caplog.text + repr(hub.config)
    assert "signature" not in caplog.text  # the redirects were signed


@pytest.mark.parametrize(
    ("source", "words"),
    [("hf://o/nothing", "no such repository"), ("hf://o/r@other", "no such revision")],
)
def test_a_repository_or_revision_that_is_not_there(hub, server, model_bytes, source, words):
    server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})
    with pytest.raises(SourceNotFound, match=words):
        pull(hub, source)


def test_a_model_of_an_ollama_registry_has_its_defaults(hub, server, model_bytes):
    layers = [
        ("model", model_bytes),
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", json.dumps({"stop": ["<|end|>"], "temperature": 0.5}).encode()),
        ("license", b"MIT"),
    ]
    server.add_ollama("library/demo", "1b", layers)
    pull(hub, "demo:1b")
    manifest = hub.show("demo:1b")
    assert hub.path_of("demo:1b").read_bytes() == model_bytes
    assert manifest.system == "Be brief."
    assert manifest.parameters == {"stop": ["<|end|>"], "temperature": 0.5}
    assert manifest.template is None
    assert hub.paths_of("demo:1b", Role.TEMPLATE)[0].read_text() == "{{ .Prompt }}"


def test_an_adapter_comes_with_its_model_and_must_be_one(hub, server, tiny_bytes, model_bytes, tmp_path):
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    base.write_bytes(tiny_bytes)
    write_random_lora(adapter, base, seed=1)
    server.add_ollama("library/tuned", "latest", [("model", tiny_bytes), ("adapter", adapter.read_bytes())])
    pull(hub, "tuned")
    assert [path.read_bytes() for path in hub.paths_of("tuned", Role.ADAPTER)] == [adapter.read_bytes()]
    server.add_ollama("library/wrong", "latest", [("model", tiny_bytes), ("adapter", model_bytes)])
    with pytest.raises(NotSupported, match="expected an adapter"):
        pull(hub, "wrong")


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {"layers": 1},
        {"layers": []},
        {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:xyz", "size": 1}]},
        {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}", "size": -1}]},
        {"layers": [{"mediaType": "application/vnd.ollama.image.system", "digest": f"sha256:{'a' * 64}", "size": 1 << 40}]},
    ],
)  # fmt: skip
def test_a_manifest_of_a_registry_that_makes_no_sense(hub, server, manifest):
    server.json["/v2/library/x/manifests/latest"] = manifest
    with pytest.raises(PullFailed, match=r"layer"):
        pull(hub, "x")


def test_a_tag_that_the_registry_does_not_have(hub, server):
    with pytest.raises(SourceNotFound, match="404"):
        pull(hub, "x:7b")


def test_files_of_this_machine_are_copied(hub, tmp_path, tiny_bytes):
    for name, data in split_gguf(tiny_bytes, tmp_path).items():
        (tmp_path / name).write_bytes(data)
    first = tmp_path / "m-00001-of-00002.gguf"
    pull(hub, str(first), as_name="mine")
    assert hub.path_of("mine").read_bytes() == first.read_bytes()
    assert not hub.path_of("mine").samefile(first)


@pytest.fixture(scope="module")
def s3():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # one session: each of its own reads the whole description of S3 again
    yield {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "hunter2", "session": AioSession()}
    server.stop()


def test_a_model_in_s3_is_pulled_by_ranges_and_its_keys_stay_secret(tmp_path, server, s3, model_bytes):
    bucket = f"models-{secrets.token_hex(4)}"
    fs = fsspec.filesystem("s3", **s3)
    fs.mkdir(bucket)
    fs.pipe(f"{bucket}/dir/m.gguf", model_bytes)
    config = hub_config(tmp_path / "hub", server.url, storage_options={"s3": s3})
    hub = Hub(config)
    assert "hunter2" not in repr(config)
    events = pull(hub, f"s3://{bucket}/dir/m.gguf")
    assert hub.path_of("m").read_bytes() == model_bytes
    assert events[-1].status == "success"
    again = pull(hub, f"s3://{bucket}/dir/m.gguf", as_name="again")
    assert [event for event in again if event.status == "verifying sha256 digest"] == []  # nothing was fetched
    with pytest.raises(SourceNotFound):
        pull(hub, f"s3://{bucket}/dir/other.gguf")


def test_a_file_that_is_written_while_it_is_copied_is_not_mixed(hub, tmp_path, model_bytes):
    path = tmp_path / "m.gguf"
    path.write_bytes(model_bytes)
    other = model_bytes[:-5] + b"other"
    events = hub.pull(str(path))
    for event in events:
        if event.total:
            path.write_bytes(other)
            break
    list(events)
    assert hub.path_of("m").read_bytes() == other


def split_gguf(data, folder):
    """A model in two parts, by name. All weights are in the first, but for the last."""
    whole = folder / "whole.gguf"
    whole.write_bytes(data)
    header = read_header(whole)
    *tensors, last = header.tensors.values()
    count = {"split.count": GgufValue(GGUFValueType.UINT16, None, 2)}
    numbers = [{"split.no": GgufValue(GGUFValueType.UINT16, None, number)} for number in range(2)]
    first = serialise(header, header.metadata | count | numbers[0], tensors)
    second = serialise(header, count | numbers[1], [replace(last, offset=0)])
    return {
        "m-00001-of-00002.gguf": first + data[header.data_offset : header.data_offset + last.offset],
        "m-00002-of-00002.gguf": second + data[header.data_offset + last.offset :],
    }
