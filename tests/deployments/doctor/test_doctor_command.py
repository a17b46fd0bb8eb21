"""The doctor on this machine: tiers that are probed, ports that are taken, and the command whole."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cache_store import TierConfig
from cache_store.tiers.local import LocalTier
from deployments.config import ModelSpec
from deployments.doctor.__main__ import main
from deployments.doctor.hub import collect_hub
from deployments.doctor.models import collect_model
from deployments.doctor.network import collect_network
from deployments.doctor.tiers import probe_tier
from erllama.demo import demo_model_path
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub

ROOT = Path(__file__).resolve().parents[3]


def test_a_probe_measures_and_leaves_nothing_behind(tmp_path):
    facts = probe_tier(TierConfig(f"file://{tmp_path}/kv", max_bytes="1GiB"))
    assert facts.problem == ""
    assert min(facts.read_bytes_s, facts.write_bytes_s, facts.delete_s) > 0
    assert facts.free_bytes > 0
    assert [path for path in (tmp_path / "kv").rglob("*") if path.is_file()] == []


def test_an_object_store_is_probed_as_well():
    facts = probe_tier(TierConfig("memory://doctor"))
    assert (facts.problem, facts.label, facts.free_bytes) == ("", "memory", None)


def test_a_tier_that_cannot_be_used_says_why(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    facts = probe_tier(TierConfig(f"file://{tmp_path}/file/kv"))
    assert (str(tmp_path) in facts.problem, facts.unusable) == (True, True)


def test_a_tier_that_returns_other_bytes_has_a_problem_and_is_cleaned(tmp_path, monkeypatch):
    read = LocalTier.read

    def wrong(self, name, buffer, head_bytes=None):
        data = read(self, name, buffer, head_bytes)
        data[0] ^= 1
        return data

    monkeypatch.setattr(LocalTier, "read", wrong)
    assert "not what is read" in probe_tier(TierConfig(str(tmp_path))).problem
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_hub_tells_what_is_damaged_and_what_has_lost_its_file(tmp_path):
    assert collect_hub(HubConfig(dir=tmp_path / "later" / "hub")).problem == ""
    source = tmp_path / "m.gguf"
    source.write_bytes(demo_model_path().read_bytes())
    hub = Hub(HubConfig(dir=tmp_path / "hub"))
    for name in ("lost", "damaged"):
        list(hub.pull(str(source), name))
    assert (collect_hub(hub.config).n_models, collect_hub(hub.config).damaged) == (2, ())
    [damaged] = (tmp_path / "hub" / "manifests").glob("damaged*")
    damaged.write_text("no JSON")
    for blob in (tmp_path / "hub" / "blobs").glob("sha256-*"):
        blob.unlink()
    told = sorted(collect_hub(hub.config).damaged)
    assert ["missing" in line for line in told] == [False, True]
    assert "lost" in told[1]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in collect_hub(HubConfig(dir=tmp_path / "file" / "hub")).problem


def test_a_port_that_somebody_listens_on_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.close()
        assert ("HTTP", port) not in collect_network("127.0.0.1", port, 0).taken
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        facts = collect_network("127.0.0.1", port, 0)
        assert (("HTTP", port) in facts.taken, facts.healthy) == (True, False)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes a config with these `args` and tells its path; what is remembered of models goes elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def written(**args):
        application = {"name": "a", "import_path": "deployments.app:build_app", "args": args}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"applications": [application]}))
        return path

    return written


def report(capsys, path):
    status = main([str(path), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.model
def test_a_sound_config_passes(config, tmp_path, capsys):
    models = [{"id": "m", "path": "demo", "num_cpus": 1}]
    _, told = report(capsys, config(models=models, store={"tiers": [{"url": str(tmp_path / "kv")}]}))
    checks = ("model m", "tier 0", "versions", "CPUs", "llama.cpp's build")
    sound = [one for one in told["findings"] if one["check"] in checks]
    assert {one["check"] for one in sound} == set(checks)
    assert {one["level"] for one in sound} == {"ok"}


@pytest.mark.model
def test_of_a_model_that_does_not_fit_it_is_found_out_what_would(config):
    """The demo model takes some 45 MiB as it is configured by default."""
    config()
    spec = ModelSpec(id="m", path="demo", n_parallel=4)
    facts = collect_model(spec, 1, 30 << 20, measure=True)
    assert facts.need.total_bytes > 30 << 20
    assert 1 <= facts.fitted[0] < 4
    assert collect_model(spec, 1, 100 << 20, measure=True).fitted is None
    assert collect_model(spec, 1, 30 << 20, measure=False).need is None


def test_a_config_that_is_wrong_is_a_finding_beside_those_of_the_machine(config, capsys):
    status, told = report(capsys, config(models=[{"id": "m", "path": "demo", "n_ctxx": 1}]))
    assert status == 1
    [wrong] = [one for one in told["findings"] if one["check"] == "config"]
    assert "n_ctxx" in wrong["what"]
    assert {"CPUs", "memory", "open files"} <= {one["check"] for one in told["findings"]}


def test_the_command_hands_over_with_its_exit_code_and_json_alone_on_stdout(tmp_path):
    command = [sys.executable, "-m", "erllama.cli.app", "doctor", str(tmp_path / "none.yaml"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["findings"][0]["check"] == "config"


def test_people_are_told_what_to_do(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([str(config(models=[{"id": "m", "path": str(ROOT / "README.md")}], store={"tiers": []}))]) == 1
    told = capsys.readouterr().out
    assert "-> mend its keys" in told
    assert "fail," in told
