"""deploy/kuberay.yaml: a RayService whose pods start with the launcher's switches, share what they must
and get the time to stop that the config gives to models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from deployments.config import BuildArgs
from deployments.launch import environment, load_args
from erllama.api_keys import key_hash
from release.wheel import ROOT
from tests.support.dockerfile import read

DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "kuberay.yaml").read_text()
CLAIM, SERVICE = yaml.safe_load_all(TEXT)
CLUSTER: dict[str, Any] = SERVICE["spec"]["rayClusterConfig"]
GROUPS = {"head": CLUSTER["headGroupSpec"], **{group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}}
PODS: dict[str, dict[str, Any]] = {name: group["template"]["spec"] for name, group in GROUPS.items()}
EACH_POD = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
UNITS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def n_bytes(quantity: str) -> int:
    return int(quantity[:-2]) << UNITS[quantity[-2:]]


def image_of(pod: dict[str, Any]) -> Any:
    return read(DEPLOY / f"{container(pod)['image'].split(':')[1]}.Dockerfile")[-1]


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> BuildArgs:
    """Of serveConfigV2, checked as the launcher would."""
    path = tmp_path_factory.mktemp("kuberay") / "serve.yaml"
    path.write_text(SERVICE["spec"]["serveConfigV2"])
    (args,) = load_args(path)
    return args


def test_ray_knows_every_key_of_the_serve_config():
    document = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert set(document) <= set(ServeDeploySchema.model_fields)
    assert set(document["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert document["proxy_location"] == "EveryNode", "KubeRay sends requests to the workers' own port"
    assert document["http_options"]["host"] == "0.0.0.0"


def test_the_objects_are_of_the_kinds_that_kubernetes_and_kuberay_serve():
    assert (CLAIM["apiVersion"], CLAIM["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert set(SERVICE["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    assert set(CLUSTER) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group.keys() >= {"rayStartParams", "template"}


def test_the_version_of_ray_is_the_one_of_the_images():
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert CLUSTER["rayVersion"] == pinned


def test_ray_starts_with_the_launchers_switches_on_every_node(tmp_path):
    """The pods' own command, run here, with a stand-in for what KubeRay would have it start."""
    assert SERVICE["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    ((command, arguments),) = {
        (tuple(container(pod)["command"]), tuple(container(pod)["args"])) for pod in PODS.values()
    }
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    got = subprocess.run(
        [*command, *arguments],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "KUBERAY_GEN_RAY_START_CMD": """env; echo '{"a": 1}'""",
        },
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert {f"{name}={value}" for name, value in environment({}).items()} <= set(got)
    assert got[-1] == '{"a": 1}'


@EACH_POD
def test_pods_run_as_the_images_user_without_privileges(pod):
    security, inner = pod["securityContext"], container(pod)["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == image_of(pod).last("USER").text
    assert security["runAsNonRoot"] is True
    assert security["fsGroup"] == security["runAsGroup"], "else the volumes are root's"
    assert inner == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@EACH_POD
def test_pods_get_the_time_that_their_models_may_take_to_stop(pod, args):
    assert pod["terminationGracePeriodSeconds"] > args.drain_s + args.policy.evict_save_timeout_s


@EACH_POD
def test_every_tier_and_the_hub_lie_on_a_volume_that_is_mounted(pod, args):
    mounts = {mount["mountPath"]: mount["name"] for mount in container(pod)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == volumes.keys()
    places = [tier.url.removeprefix("file://") for tier in args.store.tiers if tier.is_local] + [str(args.hub.dir)]
    for place in places:
        assert any(place == mount or place.startswith(f"{mount}/") for mount in mounts), place
    assert volumes[mounts[str(args.hub.dir)]]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert mounts.keys() >= {image_of(pod).last("VOLUME").text, "/tmp/ray"}


def test_the_hub_is_shared_by_all_nodes():
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


@EACH_POD
def test_budgets_fit_into_the_volumes_and_memory_into_the_limit(pod, args):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    sizes = {
        mount["mountPath"]: n_bytes(volumes[mount["name"]]["emptyDir"]["sizeLimit"])
        for mount in container(pod)["volumeMounts"]
        if volumes[mount["name"]].get("emptyDir")
    }
    memory, disk, bucket = args.store.tiers
    assert memory.budget_bytes <= sizes["/dev/shm"] / 2, "the rest is Ray's object store's"
    assert disk.budget_bytes < sizes["/var/lib/erllama"]
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    assert sizes["/dev/shm"] < n_bytes(container(pod)["resources"]["limits"]["memory"])
    assert bucket.url.startswith("s3://")


@EACH_POD
def test_ports_are_named_and_the_servers_is_open(pod):
    ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
    assert len(set(ports.values())) == len(container(pod)["ports"])
    assert ports["serve"] == yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["http_options"]["port"]
    assert str(ports["serve"]) == image_of(pod).last("EXPOSE").text


@EACH_POD
def test_secrets_are_named_and_made_by_the_commands_at_the_head(pod):
    named = {source["secretRef"]["name"] for source in container(pod)["envFrom"]}
    made = set(re.findall(r"^#\s+kubectl create secret generic (\S+)", TEXT, re.MULTILINE))
    assert named == made
    assert "env" not in container(pod)
    assert not re.search(r"^kind: Secret", TEXT, re.MULTILINE)


def test_no_key_opens_the_door_before_one_was_made(args):
    """Without entries it would be open to all; a hash of zeros is nobody's."""
    assert [key.hash for key in args.http.api_keys] == ["sha256:" + "0" * 64]
    assert args.http.api_keys[0].hash != key_hash("")
    assert not {"key", "secret", "token"} & set().union(*(tier.storage_options for tier in args.store.tiers))


def test_models_go_to_workers_and_fit_there(args):
    assert GROUPS["head"]["rayStartParams"]["num-cpus"] == "0"
    cpus = min(int(container(pod)["resources"]["limits"]["cpu"]) for name, pod in PODS.items() if name != "head")
    assert all(model.num_cpus <= cpus for model in args.models)
    assert args.hub.defaults["num_cpus"] <= cpus


def test_only_the_gpu_group_has_gpus_and_the_image_for_them():
    for name, pod in PODS.items():
        limits = container(pod)["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) is (name == "gpu")
        assert container(pod)["image"] == f"erllama:{'cuda' if name == 'gpu' else 'cpu'}"
        assert Path(DEPLOY / f"{container(pod)['image'].split(':')[1]}.Dockerfile").is_file()
