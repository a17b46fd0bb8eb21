"""serve_config.yaml documents every knob with its default, and what is wrong in a config is refused
by name before anything starts.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cache_store import StoreConfig, TierConfig
from deployments.config import (
    BuildArgs,
    FailoverPolicy,
    HttpSpec,
    HubSpec,
    ModelSpec,
    RoutingSpec,
    SchedulerSpec,
    deployment_name,
)
from deployments.http.options import HttpOptions
from deployments.launch import IMPORT_PATH, SWITCHES, ConfigError, check_files, environment, load_args, main
from deployments.store_spec import StoreSpec
from erllama.api_keys import key_hash
from erllama.cache.policy import CachePolicy
from erllama.config import EngineConfig
from erllama.request import SamplingParams
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "serve_config.yaml"


def shipped_args() -> dict:
    return yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]


def args(**model) -> BuildArgs:
    return BuildArgs.model_validate({"models": [{"id": "m", "path": "m.gguf", **model}]})


def test_the_shipped_config_names_every_knob_and_only_defaults():
    (model,) = shipped_args()["models"]
    assert set(model) == set(ModelSpec.__dataclass_fields__)
    assert ModelSpec(**model) == ModelSpec(id="demo", path="demo")
    assert set(shipped_args()["http"]) == set(HttpSpec.__dataclass_fields__)
    assert HttpSpec(**shipped_args()["http"]) == HttpSpec()
    assert set(shipped_args()["routing"]) == set(RoutingSpec.model_fields)
    assert RoutingSpec.model_validate(shipped_args()["routing"]) == RoutingSpec()
    assert set(shipped_args()["store"]) == set(StoreSpec.__dataclass_fields__)
    assert StoreSpec(**shipped_args()["store"]) == StoreSpec()
    assert set(shipped_args()["policy"]) == set(CachePolicy.__dataclass_fields__)
    assert BuildArgs.model_validate(shipped_args()).policy == CachePolicy()
    assert set(shipped_args()["failover"]) == set(FailoverPolicy.model_fields)
    assert FailoverPolicy.model_validate(shipped_args()["failover"]) == FailoverPolicy()
    assert set(shipped_args()["scheduler"]) == set(SchedulerSpec.model_fields)
    assert SchedulerSpec.model_validate(shipped_args()["scheduler"]) == SchedulerSpec()
    assert set(shipped_args()["hub"]) == set(HubSpec.__dataclass_fields__)
    assert HubSpec(**shipped_args()["hub"]) == HubSpec()
    assert set(shipped_args()) == set(BuildArgs.model_fields)


def test_every_gate_of_the_cache_can_be_set_in_the_config_and_arrives_at_the_replicas():
    defaults = {name: field.default for name, field in CachePolicy.__dataclass_fields__.items()}
    other = {name: not value if isinstance(value, bool) else 2 * value for name, value in defaults.items()}
    parsed = BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], "policy": other})
    assert parsed.policy == CachePolicy(**other)
    assert BuildArgs.model_validate(parsed.model_dump(mode="json")) == parsed  # as the ingress gets it
    assert BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}]}).model_dump()["policy"] == defaults


def test_the_store_has_the_defaults_of_the_store():
    tiers = (TierConfig("file:///x"),)
    assert with_store(tiers=[{"url": "file:///x"}]).store.config() == StoreConfig(tiers=tiers)


def test_every_setting_of_the_store_can_be_set_in_the_config():
    defaults = {name: field.default for name, field in StoreConfig.__dataclass_fields__.items() if name != "tiers"}
    texts = {"salt": "t", "pin_quota_bytes": "2GiB"}
    other = {name: texts[name] if name in texts else 2 * value for name, value in defaults.items()}
    config = with_store(tiers=[{"url": "file:///x"}], **other).store.config()
    assert config == StoreConfig(tiers=(TierConfig("file:///x"),), **other)
    assert type(config) is StoreConfig


def test_every_setting_of_the_engine_can_be_set_in_the_config():
    assert EngineConfig.__dataclass_fields__.keys() <= ModelSpec.__dataclass_fields__.keys()
    for name, field in EngineConfig.__dataclass_fields__.items():
        if name not in ("id", "path"):
            assert ModelSpec.__dataclass_fields__[name].default == field.default, name
    config = args(n_ctx=512, rope_freq_base=2.0, type_k="q8_0").models[0].engine_config(n_threads=3)
    assert isinstance(config, EngineConfig)
    assert (config.n_ctx, config.rope_freq_base, config.type_k, config.thread_limit) == (512, 2.0, "q8_0", 3)


def test_http_options_are_those_of_the_front_and_their_keys_stay_out_of_logs():
    parsed = BuildArgs.model_validate(
        {"models": [{"id": "x", "path": "a"}], "http": {"api_keys": ["secret"], "ingress_replicas": 2}}
    )
    assert isinstance(parsed.http, HttpOptions)
    assert ([key.hash for key in parsed.http.api_keys], parsed.http.ingress_replicas) == ([key_hash("secret")], 2)
    assert "secret" not in repr(parsed) + str(parsed.model_dump())
    assert key_hash("secret") not in repr(parsed)
    assert BuildArgs.model_validate(parsed.model_dump(mode="json")) == parsed  # as the ingress gets it


@pytest.mark.parametrize(
    ("responses", "named"),
    [
        ({"max_bytes": "much"}, "http.responses.max_bytes"),
        ({"max_bytes": 0}, "http.responses.max_bytes"),
        ({"ttl_s": 0}, "http.responses.ttl_s"),
        ({"ttl": 5}, "http.responses.ttl"),
    ],
)
def test_what_is_kept_of_responses_is_checked_by_name(responses, named):
    with pytest.raises(ValidationError) as caught:
        BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], "http": {"responses": responses}})
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == named


def test_sampling_and_a_grammar_of_replies_reach_the_ingress():
    grammar = 'root ::= "yes" | "no"'
    parsed = args(sampling={"temperature": 0, "logit_bias": {7: -1}}, reply_grammar=grammar)
    again = BuildArgs.model_validate(parsed.model_dump(mode="json"))
    assert again == parsed
    defaults = again.models[0].reply_defaults()
    assert defaults.sampling == SamplingParams(temperature=0, logit_bias=((7, -1.0),))
    assert defaults.grammar is not None
    assert defaults.grammar.text == grammar


def test_all_sections_of_a_config_survive_the_ways_to_replicas_and_ingress():
    parsed = args(autoscaling={"max_replicas": 2}, adapters=[{"path": "x"}], resources={"fast": 1}, memory=1)
    assert BuildArgs.model_validate(parsed.model_dump(mode="json")) == parsed
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"n_ctxx": 1}, "n_ctxx"),
        ({"n_ctx": -1}, "n_ctx"),
        ({"n_parallel": 0}, "n_parallel"),
        ({"type_k": "f17"}, "type_k"),
        ({"type_v": "q8_0", "flash_attn": False}, "type_v"),
        ({"n_gpu_layers": 10}, "num_gpus"),
        ({"num_replicas": 0}, "num_replicas"),
        ({"num_replicas": 2, "autoscaling": {"max_replicas": 3}}, "autoscaling"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas"),
        ({"autoscaling": {"min": 3}}, "autoscaling.min"),
        ({"id": "a b"}, "id"),
        ({"stream_interval_ms": -1}, "stream_interval_ms"),
        ({"sampling": {"temprature": 1}}, "temprature"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"logit_bias": {"x": 1}}}, "logit_bias"),
        ({"sampling": 3}, "sampling"),
        ({"reply_grammar": "root ::= nobody"}, "grammar"),
        ({"reply_grammar": ""}, "grammar"),
        ({"decode_budget_s": -1}, "decode_budget_s"),
        ({"drain_s": 700}, "graceful_shutdown_timeout_s"),
        ({"max_surge_percent": 101}, "max_surge_percent"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(model, named):
    with pytest.raises(ValidationError) as caught:
        args(**model)
    assert named.split(".")[-1] in str(caught.value)


def test_two_models_may_not_answer_to_one_name():
    with pytest.raises(ValidationError, match="answer to 'x'"):
        BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}, {"id": "y", "path": "b", "aliases": ["x"]}]})
    with pytest.raises(ValidationError, match="default_model 'z' is none of the models"):
        BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], "default_model": "z"})


def with_store(**store) -> BuildArgs:
    return BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], "store": store})


def test_tiers_become_those_of_the_store_and_an_empty_list_is_no_store():
    config = with_store(
        tiers=[{"url": "file:///x", "max_bytes": "2GiB", "compression": "zstd"}], salt="t"
    ).store.config()
    assert config is not None
    assert [(tier.url, tier.budget_bytes, tier.compression) for tier in config.tiers] == [
        ("file:///x", 2 << 30, "zstd")
    ]
    assert config.salt == "t"
    assert with_store(tiers=[]).store.config() is None


def test_without_tiers_memory_of_the_machine_and_the_users_cache_directory_are_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = with_store().store.config()
    assert config is not None
    urls = [tier.url for tier in config.tiers]
    assert urls[-1] == f"file://{tmp_path}/erllama/kv"
    assert all(tier.budget_bytes for tier in config.tiers)
    assert not any(tmp_path.iterdir())  # a config touches nothing


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"store": {"tiers": [{"url": ""}]}}, "url"),
        ({"store": {"tiers": [{"url": "file:///x", "max_bytes": "2 parsecs"}]}}, "max_bytes"),
        ({"store": {"tiers": [{"url": "file:///x", "compression": "rar"}]}}, "compression"),
        ({"store": {"tiers": [{"urls": "file:///x"}]}}, "urls"),
        ({"store": {"queue_bytes": 1}}, "queue_bytes"),
        ({"store": {"tiers": [], "queue_bytes": 1}}, "queue_bytes"),
        ({"store": {"tiers": [], "queue_byte": 1}}, "queue_byte"),
        ({"policy": {"min_tokens": -1}}, "min_tokens"),
        ({"policy": {"checkpoint_interval": 100}}, "checkpoint_interval"),
        ({"policy": {"min_token": 1}}, "min_token"),
    ],
)
def test_a_wrong_store_or_policy_is_refused_by_name(section, named):
    with pytest.raises(ValidationError) as caught:
        BuildArgs.model_validate({"models": [{"id": "x", "path": "a"}], **section})
    assert named in str(caught.value)


def test_without_a_gpu_no_layer_is_offloaded_and_a_configured_thread_count_wins():
    assert args().models[0].engine_config(n_threads=3).n_gpu_layers == 0
    assert args().models[0].engine_config(n_threads=3).thread_limit == 3
    assert args(max_threads=2).models[0].engine_config(n_threads=3).thread_limit == 2
    assert args(n_threads=7).models[0].engine_config(n_threads=3).thread_limit == 7
    assert args(num_gpus=1).models[0].engine_config(n_threads=3).n_gpu_layers == "auto"


def test_ids_with_a_tag_give_a_deployment_name_that_can_name_a_file():
    assert deployment_name("qwen:0.5b") == "model-qwen-0.5b"


# --- the launcher ---------------------------------------------------------------------------------


def test_the_shipped_config_passes_the_launcher():
    assert [model.id for model in load_args(SHIPPED)[0].models] == ["demo"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("applications: [", "is not YAML"),
        ("a: 1", "no list of applications"),
        ("applications: [{name: x, import_path: other:app}]", IMPORT_PATH),
        (f"applications: [{{name: x, import_path: '{IMPORT_PATH}', args: {{models: []}}}}]", "args.models"),
        (
            f"applications: [{{name: x, import_path: '{IMPORT_PATH}', args: {{modelz: []}}}}]",
            "args.modelz: there is no such key",
        ),
        (
            f"applications: [{{name: x, import_path: '{IMPORT_PATH}', args: {{models: [{{id: x, path: a, n_ctxx: 1}}]}}}}]",
            "args.models.0.n_ctxx: there is no such key",
        ),
    ],
)
def test_the_launcher_says_what_is_wrong_and_where(tmp_path, text, complaint):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_args(path)


def test_the_launcher_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_args(tmp_path / "none.yaml")


def written(folder: Path, **model: Any) -> Path:
    path = folder / "c.yaml"
    models = {"models": [{"id": "small", **model}]}
    path.write_text(yaml.safe_dump({"applications": [{"name": "x", "import_path": IMPORT_PATH, "args": models}]}))
    return path


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"type_k": "q8_0"}, "model small: type_k: q8_0 keeps blocks of 32 elements, the heads of tiny.gguf have 16"),
        ({"type_v": "q4_0"}, "model small: type_v: q4_0 keeps blocks of 32 elements"),
        ({"adapters": [{"path": "tiny.gguf"}]}, "model small: "),
    ],
)
def test_the_launcher_refuses_what_a_header_already_tells(tmp_path, monkeypatch, capsys, keys, reason):
    monkeypatch.chdir(tmp_path)
    write_random_model(tmp_path / "tiny.gguf", SHAPES["tiny-llama"], vocab=None, file_type="F16", seed=1)
    with pytest.raises(SystemExit) as left:
        main([str(written(tmp_path, path="tiny.gguf", **keys))])
    assert left.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_launcher_leaves_a_file_that_is_not_here_to_the_replica(tmp_path):
    check_files(load_args(written(tmp_path, path="/on/another/node.gguf")))


def test_the_launcher_refuses_a_chat_template_that_is_none(tmp_path):
    for value, words in (("/nowhere/x.jinja", "cannot read /nowhere/x.jinja"), ("{% nonsense %}", "does not compile")):
        with pytest.raises(ConfigError, match=f"model .*: chat_template: .*{words}"):
            check_files(load_args(written(tmp_path, path="/on/another/node.gguf", chat_template=value)))
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages }}")
    check_files(load_args(written(tmp_path, path="/on/another/node.gguf", chat_template=str(mine))))


def test_the_launcher_takes_one_config(capsys):
    with pytest.raises(SystemExit) as left:
        main(["a.yaml", "b.yaml"])
    assert left.value.code == 2
    assert "'b.yaml' is too much" in capsys.readouterr().err


def test_what_the_user_has_set_wins_over_the_switches():
    name = next(iter(SWITCHES))
    assert environment({name: "mine", "OTHER": "1"})[name] == "mine"
    assert environment({"OTHER": "1"})["OTHER"] == "1"
