"""What each check makes of facts: level, and what the finding tells."""

from dataclasses import replace

import pytest

from deployments.doctor.build import BuildFacts, build_findings, pins_of
from deployments.doctor.finding import Level
from deployments.doctor.hub import HubFacts, hub_findings
from deployments.doctor.machine import (
    MachineFacts,
    ReplicaCpus,
    cpu_findings,
    cpu_quota,
    descriptor_findings,
    lock_findings,
    memory_findings,
    shm_findings,
)
from deployments.doctor.models import ModelFacts, model_findings
from deployments.doctor.network import PortFacts, network_findings
from deployments.doctor.tiers import TierFacts, tier_findings
from erllama.footprint.fit import MemoryNeed

GIB = 1 << 30
OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
FLAGS = frozenset({"avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni"})
INFO = (
    "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | OPENMP = 1 |"
)
BUILD = BuildFacts(INFO, cpu_flags=FLAGS, versions={"ray": "2.60.0"}, pins=("ray[serve]==2.60.*",))
MACHINE = MachineFacts(
    n_cpus=8,
    cpu_quota=None,
    n_physical=4,
    ram_total=64 * GIB,
    ram_used=4 * GIB,
    shm_total=32 * GIB,
    shm_free=32 * GIB,
    n_descriptors=65_536,
    memlock_bytes=None,
)
MODEL = ModelFacts(
    "m", "/m.gguf", context=32_768, n_parallel=4, need=MemoryNeed(4 * GIB, 2 * GIB, GIB), room_bytes=60 * GIB
)
TIER = TierFacts(
    "file:///cache", "disk", write_bytes_s=1e9, read_bytes_s=2e9, delete_s=0.001, skew_s=0.1, free_bytes=100 * GIB
)


def told(findings, check):
    """Level and words of the one finding about `check`; words of a finding that is bad say what to do."""
    [one] = [finding for finding in findings if finding.check == check]
    assert one.level is OK or (one.why and one.todo)
    return one.level, f"{one.what} {one.todo}"


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, OK, "AVX512_VNNI"),
        ({"cpu_flags": FLAGS - {"avx512_vnni"}}, FAIL, "uses AVX512_VNNI, which this processor lacks"),
        ({"info": INFO.replace("AVX512_VNNI = 1", "AVX512_VNNI = 0")}, WARN, "does not use AVX512_VNNI"),
        ({"info": "CPU : NEON = 1 | ARM_FMA = 1 |"}, OK, "cannot be compared"),
        ({"cpu_flags": frozenset()}, OK, "cannot be compared"),
        ({"info": "", "problem": "status -4"}, FAIL, "status -4"),
    ],
)
def test_instructions_of_the_build_are_compared_with_the_processors(changed, level, words):
    found, text = told(build_findings(replace(BUILD, **changed)), "llama.cpp's build")
    assert (found, words in text) == (level, True), text


@pytest.mark.parametrize(
    ("gpus", "backends", "devices", "wants", "level", "words"),
    [
        ((), (), (), (), OK, "none"),
        ((), (), (), ("m",), FAIL, "num_gpus: 0"),
        (("H100",), (), (), (), WARN, "GGML_CUDA=on"),
        (("H100",), (), (), ("m",), FAIL, "GGML_CUDA=on"),
        ((), ("cuda",), (), (), WARN, "sees no GPU"),
        (("H100",), ("cuda",), (), ("m",), WARN, "nvidia-smi"),
        (("H100",), ("cuda",), ("CUDA0",), (), WARN, "no model has num_gpus"),
        (("H100",), ("cuda",), ("CUDA0",), ("m",), OK, "for m"),
        ((), ("vulkan",), ("Vulkan0",), ("m",), OK, "Vulkan0"),
    ],
)
def test_gpus_build_and_config_must_agree(gpus, backends, devices, wants, level, words):
    facts = replace(BUILD, gpus=gpus, gpu_backends=backends, devices=devices, wants_gpu=wants)
    found, text = told(build_findings(facts), "GPU")
    assert (found, words in text) == (level, True), text


@pytest.mark.parametrize(
    ("version", "level", "words"),
    [("2.60.3", OK, "ray 2.60.3"), ("2.61.0", FAIL, "wanted: ==2.60.*"), (None, FAIL, "ray is missing")],
)
def test_versions_are_compared_with_the_pins(version, level, words):
    facts = replace(BUILD, versions={"ray": version} if version else {})
    found, text = told(build_findings(facts), "versions")
    assert (found, words in text) == (level, True), text


def test_pins_are_those_of_ray_and_of_llama_cpp():
    given = ["numpy>=1.26", "ray[serve]==2.60.*", 'ray[data]==2.60.*; extra == "data"', "llama-cpp-python==0.3.36"]
    assert pins_of(given) == ("ray[serve]==2.60.*", "llama-cpp-python==0.3.36")


@pytest.mark.parametrize(
    ("changed", "models", "level", "words"),
    [
        ({}, [("a", 1, 8, 8)], OK, "8 CPUs (4 cores)"),
        ({}, [("a", 1, 4, 4), ("b", 2, 2, 2)], OK, "models use 8 threads"),
        ({}, [("a", 1, 1, 6), ("b", 1, 1, 6)], WARN, "together at most 8"),
        ({"cpu_quota": 2.5}, [("a", 1, 4, 4)], WARN, "the cgroup grants 2.5"),
        ({"cpu_quota": 3.5}, [("a", 1, 4, 4)], OK, "of which the cgroup grants 3.5"),
        ({"cpu_quota": 16.0}, [("a", 1, 8, 8)], OK, "8 CPUs"),
        ({}, [("a", 3, 4, 4)], FAIL, "ask for 12 CPUs"),
        ({}, [("a", 1, 9, 8)], FAIL, "a asks for more CPUs than the 8 here"),
        ({}, [], OK, "models use 0 threads"),
    ],
)
def test_threads_and_cpus_are_compared_with_what_there_is(changed, models, level, words):
    given = [ReplicaCpus(*model) for model in models]
    found, text = told(cpu_findings(replace(MACHINE, **changed), given), "CPUs")
    assert (found, words in text) == (level, True), text


@pytest.mark.parametrize(("n_descriptors", "level"), [(1024, WARN), (8191, WARN), (8192, OK)])
def test_few_open_files_are_told(n_descriptors, level):
    assert told(descriptor_findings(replace(MACHINE, n_descriptors=n_descriptors)), "open files")[0] is level


def test_memory_locks_are_told_for_models_that_need_more():
    limited = replace(MACHINE, memlock_bytes=GIB)
    level, text = told(lock_findings(limited, {"small": GIB, "large": GIB + 1}), "memory locks")
    assert (level, "large" in text, "small" in text) == (WARN, True, False)
    assert list(lock_findings(MACHINE, {"large": 100 * GIB})) == []


@pytest.mark.parametrize(
    ("need", "level"), [(10 * GIB, OK), (50 * GIB, OK), (51 * GIB, WARN), (60 * GIB, WARN), (61 * GIB, FAIL)]
)
def test_what_models_and_tiers_take_is_compared_with_memory(need, level):
    """64 GiB, 4 of them used: the scheduler begins at 54.4, Ray kills at 60.8."""
    assert told(memory_findings(MACHINE, need, 0.85), "memory")[0] is level


@pytest.mark.parametrize(
    ("changed", "tier_bytes", "level", "words"),
    [
        ({}, 2 * GIB, OK, "tiers take 2.0 GiB"),
        ({}, 31 * GIB, FAIL, "max_bytes of at most 16.0 GiB"),
        ({}, 20 * GIB, WARN, "share it with Ray's object store"),
        ({"shm_total": 64 << 20, "shm_free": 64 << 20}, 0, WARN, "--shm-size"),
        ({"shm_free": GIB}, 2 * GIB, WARN, "object store asks for"),
        ({"shm_total": 0, "shm_free": 0}, 0, WARN, "there is none"),
    ],
)
def test_shm_must_hold_tiers_and_rays_object_store(changed, tier_bytes, level, words):
    found, text = told(shm_findings(replace(MACHINE, **changed), tier_bytes), "/dev/shm")
    assert (found, words in text) == (level, True), text


def levels(findings):
    return [(finding.check, finding.level) for finding in findings]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [("model m", OK), ("model m", OK), ("context of m", OK)]),
        ({"missing": True, "need": None}, [("model m", WARN), ("context of m", OK)]),
        ({"problem": "is no GGUF", "need": None}, [("model m", FAIL)]),
        ({"unmeasured": "killed", "need": None}, [("model m", OK), ("model m", WARN), ("context of m", OK)]),
        ({"room_bytes": 6 * GIB}, [("model m", OK), ("model m", FAIL), ("context of m", OK)]),
        ({"context": 4096}, [("model m", OK), ("model m", OK), ("context of m", WARN)]),
    ],
)
def test_a_model_must_be_there_fit_and_have_room_for_agents(changed, expected):
    assert levels(model_findings([replace(MODEL, **changed)])) == expected


def test_what_would_fit_is_told():
    [does_not] = [
        one for one in model_findings([replace(MODEL, room_bytes=GIB, fitted=(2, 8192))]) if one.level is FAIL
    ]
    assert does_not.todo == "n_parallel: 2, n_ctx: 8192 would fit"


def test_agents_for_which_a_context_is_too_small_are_named_with_what_they_need():
    [short] = [one for one in model_findings([replace(MODEL, context=12_000)]) if one.check == "context of m"]
    assert "enough for codex" in short.what
    assert "claude (23096)" in short.what


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        (TIER, [("tier 0", OK)]),
        (replace(TIER, problem="refused"), [("tier 0", FAIL)]),
        (replace(TIER, read_bytes_s=1e6), [("tier 0", WARN)]),
        (replace(TIER, max_bytes=200 * GIB), [("tier 0", OK), ("tier 0", WARN)]),
        (replace(TIER, max_bytes=200 * GIB, used_bytes=100 * GIB), [("tier 0", OK)]),
        (replace(TIER, skew_s=-100.0), [("tier 0", OK), ("tier 0", WARN)]),
        (replace(TIER, skew_s=100.0), [("tier 0", OK), ("tier 0", WARN)]),
    ],
)
def test_a_tier_must_answer_be_fast_and_have_room(tier, expected):
    assert levels(tier_findings([tier], {})) == expected


@pytest.mark.parametrize(("unusable", "why"), [(True, "models do not load"), (False, "requests are served")])
def test_what_a_tier_without_an_answer_costs_depends_on_when_it_fails(unusable, why):
    [one] = tier_findings([replace(TIER, problem="no", unusable=unusable)], {})
    assert why in one.why


def test_tiers_must_be_listed_fastest_first():
    slow = replace(TIER, write_bytes_s=3e8)
    assert levels(tier_findings([slow, TIER], {}))[-1] == ("order of tiers", WARN)
    assert levels(tier_findings([TIER, slow], {})) == [("tier 0", OK), ("tier 1", OK)]
    assert levels(tier_findings([replace(TIER, write_bytes_s=4e8), TIER], {})) == [("tier 0", OK), ("tier 1", OK)]


def test_a_speed_is_told_in_tokens_of_the_models():
    [one] = tier_findings([TIER], {"m": 100_000.0})
    assert "20,000 tok/s of m" in one.what


@pytest.mark.parametrize(
    ("facts", "ports", "access"),
    [
        (PortFacts("127.0.0.1", 8000), OK, OK),
        (PortFacts("127.0.0.1", 8000, (("HTTP", 8000),)), FAIL, OK),
        (PortFacts("127.0.0.1", 8000, (("HTTP", 8000),), healthy=True), WARN, OK),
        (PortFacts("0.0.0.0", 8000), OK, WARN),
        (PortFacts("0.0.0.0", 8000, keys=1), OK, OK),
    ],
)
def test_ports_must_be_free_and_open_ones_have_keys(facts, ports, access):
    assert levels(network_findings(facts)) == [("ports", ports), ("access", access)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [OK]),
        ({"problem": "cannot be written"}, [FAIL]),
        ({"damaged": ("m: no JSON",)}, [WARN, OK]),
        ({"free_bytes": GIB - 1}, [WARN]),
    ],
)
def test_a_hub_must_be_readable_whole_and_have_room(changed, expected):
    facts = replace(HubFacts("/hub", n_models=2, free_bytes=GIB, keep_free_bytes=GIB), **changed)
    assert [finding.level for finding in hub_findings(facts)] == expected


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_cgroup_is_read_in_both_versions(tmp_path, files, quota):
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path) == quota
