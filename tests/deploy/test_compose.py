"""deploy/compose.yaml: services that fit together and to the config they serve."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from deployments.launch import load_args
from release.wheel import ROOT
from tests.support.dockerfile import read

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIG = DEPLOY / "compose_config.yaml"
SERVICE_KEYS = {
    *("build", "image", "depends_on", "ports", "configs", "environment", "volumes", "shm_size", "stop_grace_period"),
    *("restart", "security_opt", "cap_drop", "command", "healthcheck", "entrypoint"),
}


def seconds(text: str) -> int:
    (number,) = re.fullmatch(r"(\d+)s", text).groups()
    return int(number)


def published(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Address, port of the host, port of the container."""
    return [tuple(port.rsplit(":", 2)) for port in service.get("ports", [])]


@pytest.mark.parametrize("name", SERVICES)
def test_every_key_is_composes_and_every_name_is_declared(name):
    service = SERVICES[name]
    assert set(service) <= SERVICE_KEYS
    assert set(service.get("depends_on", ())) <= SERVICES.keys()
    volumes = {volume.split(":")[0] for volume in service.get("volumes", ())}
    assert volumes <= COMPOSE["volumes"].keys()
    assert {config["source"] for config in service.get("configs", ())} <= COMPOSE["configs"].keys()


def test_a_service_that_is_waited_for_can_tell_when():
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            checked = "healthcheck" in SERVICES[other]
            ends = SERVICES[other].get("restart") is None
            assert how["condition"] == ("service_healthy" if checked else "service_completed_successfully")
            assert checked or ends


def test_the_image_is_built_from_the_tree():
    build = SERVICES["erllama"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert len(read(DEPLOY / build["context"] / build["dockerfile"])) == 2


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"erllama"}))
def test_images_of_others_are_of_one_release(name):
    assert re.fullmatch(r"[\w/]+:RELEASE\.[\w-]+", SERVICES[name]["image"])


def test_the_config_lies_where_the_image_looks_and_volumes_where_it_writes():
    (_, image) = read(DEPLOY / "cpu.Dockerfile")
    erllama = SERVICES["erllama"]
    (config,) = erllama["configs"]
    assert config["target"] == image.last("CMD").words[-1]
    assert (DEPLOY / COMPOSE["configs"][config["source"]]["file"]).resolve() == CONFIG
    assert [volume.split(":")[1] for volume in erllama["volumes"]] == [image.last("VOLUME").text]


def test_the_port_is_the_configs_and_open_to_this_machine_alone_while_there_are_no_keys():
    document, (args,) = yaml.safe_load(CONFIG.read_text()), load_args(CONFIG)
    assert document["http_options"]["host"] == "0.0.0.0"
    ((address, _, port),) = published(SERVICES["erllama"])
    assert int(port) == document["http_options"]["port"]
    assert args.http.api_keys or address == "127.0.0.1"
    assert [name for name, service in SERVICES.items() if published(service)] == ["erllama"]


def test_the_grace_is_longer_than_what_stopping_may_take():
    (args,) = load_args(CONFIG)
    assert seconds(SERVICES["erllama"]["stop_grace_period"]) > args.drain_s + args.policy.evict_save_timeout_s


def test_the_tiers_fit_to_what_is_mounted_and_served():
    (args,) = load_args(CONFIG)
    memory, disk, bucket = args.store.tiers
    size = int(SERVICES["erllama"]["shm_size"].removesuffix("gb")) << 30
    assert memory.url.startswith("file:///dev/shm/")
    assert memory.budget_bytes <= size / 2, "the rest is Ray's object store's"
    (volume,) = SERVICES["erllama"]["volumes"]
    assert disk.url.startswith(f"file://{volume.split(':')[1]}/")
    assert bucket.url.split("/")[2] == SERVICES["bucket"]["entrypoint"][-1].split("/")[1]
    assert bucket.storage_options["client_kwargs"]["endpoint_url"] == "http://minio:9000"
    assert "minio" in SERVICES


def test_no_credential_stands_in_a_file_and_all_of_them_come_from_the_same_two_names():
    values = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    names = [re.findall(r"\$\{(\w+):\?[^}]*\}", value) for value in values]
    assert all(names)
    assert {name for found in names for name in found} == {"MINIO_USER", "MINIO_PASSWORD"}
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    (args,) = load_args(CONFIG)
    for tier in args.store.tiers:
        assert not {"key", "secret", "token"} & tier.storage_options.keys()


def test_the_secrets_command_of_the_head_sets_what_is_asked_for():
    head = "\n".join(line for line in (DEPLOY / "compose.yaml").read_text().splitlines() if line.startswith("#"))
    assert set(re.findall(r"(MINIO_\w+)=", head)) == {"MINIO_USER", "MINIO_PASSWORD"}
