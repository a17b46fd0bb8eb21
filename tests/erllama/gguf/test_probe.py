"""What kills llama.cpp kills a child process, and this one gets a `ModelLoadError` that names the
file and the reason.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGUFValueType

from erllama import Model
from erllama.demo import demo_model_path
from erllama.errors import ModelLoadError
from erllama.gguf import probe as module
from erllama.gguf.check import check_adapter, inspect_gguf
from erllama.gguf.header import INTEGERS, TENSOR_TYPES, GgufValue, read_header
from erllama.gguf.probe import probe_gguf
from erllama.llama.vocab import LlamaVocab
from erllama.testing.random_gguf import write_random_lora, write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.gguf_files import TYPE_IDS, serialise, with_value

BUILD = "build 1"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "qwen.gguf"
    write_random_model(path, SHAPES["tiny-qwen2"], file_type="F16", seed=1)
    return path


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "mutated.gguf"


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "probes.json"


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Puts a program in the place of the child and counts how often it starts: its lines of Python,
    with `path`.
    """
    program, starts = tmp_path / "child.py", tmp_path / "starts"
    starts.touch()

    class Child:
        n_starts = property(lambda _: len(starts.read_text()))

        def does(self, *lines: str) -> None:
            count = f"import json, os, signal, sys\npath = sys.argv[1]\nopen({str(starts)!r}, 'a').write('.')\n"
            program.write_text(count + "\n".join(lines))

    child = Child()
    child.does("""print('{"error": null, "generates": true}')""")
    monkeypatch.setattr(module, "CHILD", program)
    return child


def refusal(path: Path, **options) -> str:
    with pytest.raises(ModelLoadError) as caught:
        probe_gguf(path, build=BUILD, **options)
    assert str(path) in caught.value.message
    assert caught.value.param == "path"
    return caught.value.message


# --- through llama.cpp --------------------------------------------------------------------------


@pytest.mark.model
def test_what_llama_cpp_says_of_a_file(tiny, encoder):
    assert probe_gguf(demo_model_path(), build=BUILD) is True
    assert probe_gguf(tiny, build=BUILD) is True
    assert probe_gguf(encoder, build=BUILD) is False


@pytest.mark.model
@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("tiny-")])
def test_every_tiny_shape_passes(tmp_path, name):
    write_random_model(tmp_path / "m.gguf", SHAPES[name])
    assert probe_gguf(tmp_path / "m.gguf", build=BUILD)


@pytest.mark.model
def test_a_file_without_weights_is_refused(scratch, tiny):
    scratch.write_bytes(serialise(read_header(tiny), tensors=[]))
    assert "token_embd.weight" in refusal(scratch)


@pytest.mark.model
def test_a_probe_reads_no_weights(scratch, tiny):
    """12 GB of them, of which the file holds nothing; the child may have 8 GB."""
    header = read_header(tiny)
    width, n_ff = 64, 25_000_000
    shapes = {"ffn_up": (width, n_ff), "ffn_gate": (width, n_ff), "ffn_down": (n_ff, width)}
    tensors, offset = [], 0
    for info in header.tensors.values():
        shape = shapes.get(info.name.split(".")[-2], info.shape)
        n_elements = int(np.prod(shape))
        n_bytes = n_elements * (4 if info.type == "F32" else 2)
        tensors.append(replace(info, shape=shape, n_elements=n_elements, n_bytes=n_bytes, offset=offset))
        offset += -(-n_bytes // 32) * 32
    feed_forward = GgufValue(GGUFValueType.UINT32, None, n_ff)
    scratch.write_bytes(serialise(header, header.metadata | {"llama.feed_forward_length": feed_forward}, tensors))
    with scratch.open("rb+") as file:
        file.truncate(scratch.stat().st_size + offset)
    assert inspect_gguf(scratch).size_bytes > 12e9
    assert probe_gguf(scratch, build=BUILD)


@pytest.mark.model
@pytest.mark.parametrize(
    ("key", "data", "kind", "reason"),
    [
        ("general.alignment", 24, None, "alignment 24 is not a power of 2"),
        ("general.alignment", 0, None, "alignment 0 is not a power of 2"),
        ("general.alignment", 32, GGUFValueType.UINT64, "must be of type u32 but is u64"),
        ("llama.block_count", 100_000, None, "dies of it (SIGABRT): llama-model.cpp"),
        ("llama.block_count", 1, None, "wrong number of tensors"),
        ("llama.block_count", 3, None, "tensor 'blk.2.attn_norm.weight' not found"),
        ("llama.embedding_length", 96, None, "invalid n_rot: 16, expected 24"),
        ("llama.attention.head_count", 0, None, "'blk.0.attn_q.weight' has wrong shape"),
        ("llama.attention.head_count_kv", 3, None, "'blk.0.attn_k.weight' has wrong shape"),
        ("llama.rope.dimension_count", 8, None, "invalid n_rot: 8, expected 16"),
        ("llama.expert_used_count", 2, None, "n_expert_used_max <= hparams.n_expert"),
        ("llama.expert_count", 4, None, "n_expert_used_max > 0"),
        ("llama.expert_group_count", 4, None, "hparams.n_expert_groups == 0"),
        ("llama.nextn_predict_layers", 3, None, "hparams.n_layer_nextn <= hparams.n_layer_all"),
        ("llama.pooling_type", 9, None, "makes an embedding context and dies of it (SIGABRT): llama-graph.cpp"),
        ("llama.rope.scaling.type", b"spiral", GGUFValueType.STRING, "rope_scaling_type_train"),
        ("split.count", 1, GGUFValueType.UINT32, "split.count has wrong type u32"),
        ("tokenizer.ggml.model", b"none", None, "has no tokenizer"),
        ("tokenizer.ggml.model", b"new", None, "unknown tokenizer: 'new'"),
        ("tokenizer.ggml.pre", b"new", None, "unknown pre-tokenizer type: 'new'"),
        ("tokenizer.ggml.token_type", np.array([1, 2], dtype="<i4"), None, "toktypes (2 < 579)"),
        ("tokenizer.ggml.scores", 1.0, GGUFValueType.FLOAT32, "invalid gguf type for tokenizer.ggml.scores"),
        ("tokenizer.ggml.add_bos_token", 1, GGUFValueType.UINT8, "add_bos_token has wrong type u8"),
    ],
)
def test_a_value_that_llama_cpp_does_not_take_is_refused_in_its_words(scratch, tiny, key, data, kind, reason):
    scratch.write_bytes(with_value(tiny, key, data, kind))
    assert reason in refusal(scratch)


@pytest.mark.model
@pytest.mark.parametrize(("key", "data"), [("qwen2.rope.dimension_count", 8), ("qwen2.attention.head_count", 5)])
def test_what_only_the_graph_of_an_architecture_asserts_is_found(scratch, qwen, key, data):
    scratch.write_bytes(with_value(qwen, key, data))
    assert refusal(scratch)


@pytest.mark.model
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "other.weight"}, "tensor 'token_embd.weight' not found"),
        ({"shape": (579, 64)}, "tensor 'token_embd.weight' has wrong shape"),
        ({"shape": (64, 0)}, "has offset 74112, expected 0"),
        ({"shape": ()}, "has offset 74112, expected 32"),
        ({"shape": (1,) * 5}, "has invalid number of dimensions: 5 > 4"),
        ({"shape": (33, 64), "type": "Q4_0"}, "not a multiple of block size (32)"),
        ({"offset": 8}, "has offset 8, expected 0"),
        ({"name": "blk.1.ffn_up.weight"}, "duplicate tensor name 'blk.1.ffn_up.weight'"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(scratch, tiny, changes, reason):
    header = read_header(tiny)
    first, *others = header.tensors.values()
    scratch.write_bytes(serialise(header, tensors=[replace(first, **changes), *others]))
    assert reason in refusal(scratch)


@pytest.mark.model
def test_a_sentence_piece_vocabulary_needs_every_byte(scratch, tiny):
    scratch.write_bytes(with_value(tiny, "tokenizer.ggml.model", b"llama"))
    assert "tokenises the byte 0x00 and dies of it (SIGABRT)" in refusal(scratch)


@pytest.mark.model
def test_a_bos_that_is_added_must_exist(scratch, tiny):
    header = read_header(tiny)
    metadata = {key: value for key, value in header.metadata.items() if not key.endswith("_token_id")}
    metadata["tokenizer.ggml.tokens"] = replace(metadata["tokenizer.ggml.tokens"], data=[b"%d" % i for i in range(5)])
    metadata["tokenizer.ggml.add_bos_token"] = GgufValue(GGUFValueType.BOOL, None, True)
    scratch.write_bytes(serialise(header, metadata, []))
    assert "bos" in refusal(scratch)


@pytest.mark.model
def test_a_word_piece_vocabulary_has_no_byte_tokens(scratch, encoder):
    types = np.array(read_header(encoder).metadata["tokenizer.ggml.token_type"].data)
    types[7] = 6
    scratch.write_bytes(with_value(encoder, "tokenizer.ggml.token_type", types))
    assert "loads the file and dies of it (SIGABRT): llama-vocab.cpp" in refusal(scratch)


@pytest.mark.model
@pytest.mark.parametrize("load", [lambda path: Model(path=path), LlamaVocab.load])
def test_what_would_kill_this_process_is_refused_by_whoever_loads_it(scratch, tiny, monkeypatch, tmp_path, load):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scratch.write_bytes(with_value(tiny, "tokenizer.ggml.model", b"llama"))
    with pytest.raises(ModelLoadError, match="dies of it"):
        load(str(scratch))


# --- what the child does, and how it ends ---------------------------------------------------------


def test_a_child_that_dies_by_a_signal_is_reported_with_its_step_and_last_lines(tiny, child):
    child.does(
        """print('{"step": "makes a context"}', flush=True)""",
        "sys.stderr.write('one\\ntwo\\nthree\\nfour\\n/build/src/five.cpp:5: no\\n'); sys.stderr.flush()",
        "os.kill(os.getpid(), signal.SIGSEGV)",
    )
    message = refusal(tiny)
    assert message.endswith("llama.cpp makes a context and dies of it (SIGSEGV): two; three; four; five.cpp:5: no")


def test_a_child_that_dies_at_once_is_reported(tiny, child):
    child.does("os.kill(os.getpid(), signal.SIGKILL)")
    assert refusal(tiny).endswith("llama.cpp starts and dies of it (SIGKILL)")


def test_a_child_that_does_not_come_back_is_ended(tiny, child):
    child.does("""print('{"step": "loads the file"}', flush=True)""", "signal.pause()")
    assert "llama.cpp loads the file for more than" in refusal(tiny, timeout_s=1)


@pytest.mark.parametrize(
    "line", ["raise OSError('no room')", "print('nonsense')", "print('[1]')", "print('{}')", "pass", "sys.exit(3)"]
)
def test_a_child_that_fails_otherwise_is_no_pass(tiny, child, memory, line):
    child.does(line)
    message = refusal(tiny, memory_path=memory)
    assert "the child process that tries it failed with status" in message
    assert not memory.exists()


def test_a_refusal_has_the_reason_and_what_llama_cpp_logged(tiny, child):
    child.does("sys.stderr.write('bad tensor')", """print('{"error": "cannot be loaded", "generates": false}')""")
    assert refusal(tiny).endswith(": cannot be loaded: bad tensor")


def test_a_child_that_cannot_be_started_is_reported(tiny, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/none/python")
    assert "cannot be tried in a child process" in refusal(tiny)


def test_a_missing_file_is_named_before_any_process_starts(tmp_path, child):
    refusal(tmp_path / "none.gguf")
    assert child.n_starts == 0


# --- what is remembered ---------------------------------------------------------------------------


def test_a_pass_is_remembered_and_starts_no_process(tiny, child, memory):
    results = [probe_gguf(tiny, build=BUILD, memory_path=memory) for _ in range(3)]
    assert results == [True] * 3
    assert child.n_starts == 1


def test_without_a_memory_every_probe_starts_a_process(tiny, child):
    for _ in range(2):
        probe_gguf(tiny, build=BUILD)
    assert child.n_starts == 2


def test_a_pass_under_another_build_is_ignored(tiny, child, memory):
    probe_gguf(tiny, build=BUILD, memory_path=memory)
    child.does("""print('{"error": "is too new", "generates": false}')""")
    with pytest.raises(ModelLoadError, match="is too new"):
        probe_gguf(tiny, build="build 2", memory_path=memory)
    assert probe_gguf(tiny, build=BUILD, memory_path=memory)  # a refusal is not remembered


def test_a_changed_file_is_tried_again(scratch, tiny, child, memory):
    scratch.write_bytes(tiny.read_bytes())
    probe_gguf(scratch, build=BUILD, memory_path=memory)
    scratch.write_bytes(tiny.read_bytes() + b"\0")
    probe_gguf(scratch, build=BUILD, memory_path=memory)
    assert child.n_starts == 2


def test_a_file_that_changes_while_it_is_tried_has_not_passed(scratch, tiny, child, memory):
    scratch.write_bytes(tiny.read_bytes())
    child.does("open(path, 'a').write('x')", """print('{"error": null, "generates": true}')""")
    assert "changed while" in refusal(scratch, memory_path=memory)
    assert not memory.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "entries": 3}'])
def test_a_corrupt_memory_is_ignored_and_replaced(tiny, child, memory, content):
    memory.parent.mkdir()
    memory.write_text(content)
    for _ in range(2):
        probe_gguf(tiny, build=BUILD, memory_path=memory)
    assert child.n_starts == 1


@pytest.mark.parametrize("damage", [{"generates": "yes"}, {"parts": None}, {"build": None}])
def test_a_corrupt_entry_is_no_pass(tiny, child, memory, damage):
    probe_gguf(tiny, build=BUILD, memory_path=memory)
    content = json.loads(memory.read_text())
    for entry in content["entries"].values():
        entry |= damage
    memory.write_text(json.dumps(content))
    probe_gguf(tiny, build=BUILD, memory_path=memory)
    assert child.n_starts == 2


def test_probes_of_one_file_at_the_same_time_agree(tiny, child, memory):
    with ThreadPoolExecutor(4) as pool:
        probes = [pool.submit(probe_gguf, tiny, build=BUILD, memory_path=memory) for _ in range(8)]
        assert all(probe.result() for probe in probes)
    n_starts = child.n_starts
    assert probe_gguf(tiny, build=BUILD, memory_path=memory)
    assert child.n_starts == n_starts


# --- damaged files --------------------------------------------------------------------------------

# Forks a child for each file of argv[2:], which probes it, loads it and decodes, or does that with
# the model beside it and the file as its adapter, and prints how that ended: the exit status (1:
# refused), or minus the signal.
RUNNER = """
import ctypes, os, signal, sys
import llama_cpp
from erllama.llama.probe import probe
silent = llama_cpp.llama_log_callback(lambda *arguments: None)
def load(path, adapter=None):
    llama_cpp.llama_log_set(silent, None)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model: return
    lora = llama_cpp.llama_adapter_lora_init(model, adapter.encode()) if adapter else None
    if adapter and not lora: return
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 128, 1, 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context: return
    if lora:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
        llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))
    text, tokens = b"Hello, \\xe2\\x82\\xac world\\xff", (llama_cpp.llama_token * 64)()
    n = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), text, len(text), tokens, 64, True, True)
    if n > 0: llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, n))
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
for path in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        if sys.argv[1] == "load":
            load(path)
            os._exit(0)
        if sys.argv[1] == "adapt":
            load(os.path.join(os.path.dirname(path), "base.gguf"), path)
            os._exit(0)
        os.dup2(2, 1)
        os._exit(0 if probe(path)["error"] is None else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), path)
"""


def _run(what: str, paths: list[str]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, what, *paths], capture_output=True, text=True, timeout=250, check=True
    )
    results = {path: int(status) for status, path in (line.split() for line in done.stdout.splitlines())}
    assert results.keys() == set(paths)
    return results


def _mutated(path: Path, rng: random.Random) -> bytes:
    """One plausible lie: a number of the metadata, a tensor's type or shape, or some bytes of the
    header.
    """
    header = read_header(path)
    tensors = list(header.tensors.values())
    scalars = [key for key, value in header.metadata.items() if value.type in INTEGERS | {GGUFValueType.BOOL}]
    match rng.randrange(3):
        case 0 if scalars:
            key = rng.choice(scalars)
            value = header.metadata[key]
            if value.type is GGUFValueType.BOOL:
                return with_value(path, key, not value.data)
            return with_value(
                path,
                key,
                rng.choice([0, 1, 2, 3, 8, 63, 255, 256, 65535, 2**31, 2**32 - 1, value.data * 2, value.data // 2]),
            )
        case 1:
            i = rng.randrange(len(tensors))
            kind = rng.choice(list(TYPE_IDS))
            tensors[i] = replace(tensors[i], type=kind, shape=rng.choice([tensors[i].shape, tensors[i].shape[::-1]]))
            return serialise(header, tensors=_laid_out(tensors)) + bytes(1 << 16)
        case _:
            raw = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 4])):
                raw[rng.randrange(header.data_offset)] = rng.randrange(256)
            return bytes(raw)


def _laid_out(tensors: list) -> list:
    offset = 0
    placed = []
    for info in tensors:
        _, block, block_bytes = TENSOR_TYPES[TYPE_IDS[info.type]]
        placed.append(replace(info, offset=offset))
        offset += -(-(info.n_elements // block * block_bytes) // 32) * 32
    return placed


@pytest.mark.model
@pytest.mark.parametrize("name", ["tiny", "qwen", "encoder"])
def test_what_passes_does_not_kill_llama_cpp(tmp_path, request, name):
    base, rng, passed = request.getfixturevalue(name), random.Random(20), []
    for i in range(200):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(_mutated(base, rng))
        try:
            inspect_gguf(path)
            passed.append(str(path))
        except ModelLoadError:
            path.unlink()
    probed = _run("probe", passed)
    survivors = [path for path, status in probed.items() if status == 0]
    assert len(survivors) > 50
    assert [path for path, status in _run("load", survivors).items() if status != 0] == []


@pytest.mark.model
def test_an_adapter_that_passes_does_not_kill_llama_cpp(tmp_path, tiny):
    base, good, rng, passed = tmp_path / "base.gguf", tmp_path / "good.gguf", random.Random(20), []
    base.write_bytes(tiny.read_bytes())
    write_random_lora(good, base, rank=4)
    for i in range(400):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(_mutated(good, rng))
        with contextlib.suppress(ModelLoadError):
            check_adapter(path, inspect_gguf(base))
            passed.append(str(path))
    assert len(passed) > 50
    assert [path for path, status in _run("adapt", passed).items() if status != 0] == []
