"""The shipped configs: Ray takes their outer keys, we take `args`, and serve_config.yaml leaves no
knob of ours unmentioned.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from deployments.config import BuildArgs
from deployments.launch import load_args
from erllama.api_keys import key_hash

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "serve_config.yaml"
GPU = ROOT / "examples" / "serve_config_gpu.yaml"


def sections(kind: Any) -> set[type]:
    """Every class of settings that can stand somewhere below `kind`."""
    if isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
        return {kind}.union(*(sections(annotation) for annotation in typing.get_type_hints(kind).values()))
    return {section for inner in typing.get_args(kind) for section in sections(inner)}


def fields(section: type) -> set[str]:
    return set(section.model_fields if issubclass(section, BaseModel) else section.__dataclass_fields__)


def test_all_sections_are_found():
    assert {
        "BuildArgs",
        "ModelSpec",
        "Autoscaling",
        "AdapterSpec",
        "StoreSpec",
        "TierConfig",
        "HttpSpec",
        "CachePolicy",
    } <= {section.__name__ for section in sections(BuildArgs)}


@pytest.mark.parametrize(
    "section", sorted(sections(BuildArgs), key=lambda section: section.__name__), ids=lambda section: section.__name__
)
def test_the_shipped_config_mentions_every_knob(section):
    """With a key of its own, or in the comment that shows the entries of a list."""
    mentioned = set(re.findall(r"\b([a-z_]+):", SHIPPED.read_text()))
    assert fields(section) <= mentioned


def test_the_shipped_config_is_the_one_that_an_empty_config_means():
    args = yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]
    assert BuildArgs.model_validate(args) == BuildArgs.model_validate({"models": [{"id": "demo", "path": "demo"}]})


@pytest.mark.parametrize("path", [SHIPPED, GPU], ids=lambda path: path.name)
def test_ray_and_we_know_every_key_and_take_every_value(path):
    document = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert set(document) <= set(ServeDeploySchema.model_fields)  # Ray ignores what it does not know
    assert set(document["http_options"]) <= set(HTTPOptionsSchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert len(load_args(path)) == 1


def test_the_gpu_example_shows_what_it_promises():
    (args,) = load_args(GPU)
    assert yaml.safe_load(GPU.read_text())["proxy_location"] == "EveryNode"
    assert [tier.url.partition("://")[0] for tier in args.store.tiers] == ["file", "file", "s3"]
    on_gpu = [model for model in args.models if model.num_gpus]
    assert len(on_gpu) >= 2
    assert all(
        model.engine_config(n_threads=1).n_gpu_layers == "auto" and model.type_k == model.type_v == "q8_0"
        for model in on_gpu
    )
    assert any(model.autoscaling and model.autoscaling.min_replicas == 0 for model in args.models)
    assert [key.hash for key in args.http.api_keys] == [key_hash("replace-this-key")]


def test_the_grace_times_of_the_gpu_example_leave_room_for_what_must_happen_in_them():
    (args,) = load_args(GPU)
    for model in args.models:
        assert model.graceful_shutdown_timeout_s > model.drain_s + args.policy.evict_save_timeout_s, model.id
