"""What people do with the stored prefixes and sessions of a `Model`, on the stub backend: it asserts
that every row which is put back is that of its token.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache_store import Store, StoreConfig, TierConfig
from erllama.cache.policy import CachePolicy
from erllama.config import EngineConfig
from erllama.errors import InvalidParameter, NotSupported, PrefixNotFound, SessionNotFound
from erllama.kv.layout import KvKind
from erllama.model import Model
from erllama.request import GenerationRequest, Pin
from erllama.testing.stub_backend import StubBackend

POLICY = CachePolicy(min_tokens=256, cold_min_tokens=512, share_wait_s=0, restore_always=True)
TEXT = random.Random(0).choices(range(256), k=1000)
OTHER = random.Random(1).choices(range(256), k=1000)


def opened(path: Path, store: Store | StoreConfig | None, policy: CachePolicy = POLICY, **settings: object) -> Model:
    def make_backend(config: EngineConfig) -> StubBackend:
        return StubBackend(config.n_ctx, config.n_parallel, reply_tokens=0, kind=kind)

    kind = settings.pop("kind", KvKind.ATTENTION)
    if not (path / "model.gguf").exists():  # "trusted" looks at the time of the last change
        (path / "model.gguf").write_bytes(b"not read by the stub")
    defaults = {"path": str(path / "model.gguf"), "fingerprint": "trusted", "n_ctx": 2048, "n_parallel": 3}
    return Model(store=store, policy=policy, make_backend=make_backend, **{**defaults, **settings})


def config(path: Path, name: str = "kv", **more: object) -> StoreConfig:
    return StoreConfig(tiers=(TierConfig(str(path / name)),), retry_s=0.01, **more)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with opened(tmp_path, config(tmp_path)) as model:
        yield model


def n_cached(model: Model, tokens: list[int]) -> int:
    """What the store alone has of a prompt."""
    model.evict()
    return model.complete(tokens, response_tokens=1).stats.cached_tokens


# --- prefixes -------------------------------------------------------------------------------------


def test_a_prefix_moves_to_another_store(model: Model, tmp_path: Path):
    key = model.prefill_only(TEXT).finish_key
    model.evict()
    file = list(model.export_prefix(key))
    with opened(tmp_path, config(tmp_path, "elsewhere")) as other:
        report = other.import_prefix(file)
        assert (report.key, report.n_tokens) == (key, 1000)
        assert n_cached(other, [*TEXT, 1]) == 1000
        assert other.cached_prefix(key).n_tokens == 1000


@pytest.mark.parametrize("kind", [KvKind.RECURRENT, KvKind.WINDOW, KvKind.HYBRID])
def test_checkpoints_move_with_their_prefix(tmp_path: Path, kind: KvKind):
    with opened(tmp_path, config(tmp_path), kind=kind) as model:
        key = model.prefill_only(TEXT).finish_key
        model.evict()
        file = list(model.export_prefix(key))
    with opened(tmp_path, config(tmp_path, "elsewhere"), kind=kind) as other:
        other.import_prefix(file)
        assert n_cached(other, [*TEXT, 1]) == 1000


@pytest.mark.parametrize("change", [{"salt": "another tenant"}, {"type_k": "q8_0"}], ids=str)
def test_a_file_of_another_tenant_or_setting_is_refused(model: Model, tmp_path: Path, change: dict):
    file = list(model.export_prefix(_stored(model, TEXT)))
    salt = {key: change[key] for key in ("salt",) if key in change}
    settings = {key: change[key] for key in ("type_k",) if key in change}
    with opened(tmp_path, config(tmp_path, "elsewhere", **salt), **settings) as other:
        with pytest.raises(InvalidParameter, match="another model, build of") as caught:
            other.import_prefix(file)
        assert (caught.value.param, other.list_cached_prefixes()) == ("file", ())


def _stored(model: Model, tokens: list[int]) -> str:
    key = model.prefill_only(tokens).finish_key
    model.evict()
    return key


def test_a_prefix_of_another_tenant_does_not_exist(model: Model, tmp_path: Path):
    key = _stored(model, TEXT)
    with opened(tmp_path, config(tmp_path, salt="another")) as other:
        for call in (other.cached_prefix, other.evict_prefix, lambda key: list(other.export_prefix(key))):
            with pytest.raises(PrefixNotFound):
                call(key)
        with pytest.raises(PrefixNotFound):
            other.pin_prefix(key, 60)
    assert model.cached_prefix(key).n_tokens == 1000


def test_what_requests_of_a_salt_stored_is_known_under_that_salt_alone(model: Model):
    key = model.prefill_only(TEXT, salt="a").finish_key
    model.evict()
    [name, *_] = model.export_plan(key, salt="a")
    assert [prefix.key for prefix in model.list_cached_prefixes(salt="a")] == [key]
    assert model.export_object(name, salt="a") is not None
    for other in ("", "b"):
        assert model.list_cached_prefixes(salt=other) == ()
        assert model.export_object(name, salt=other) is None
        calls = [
            model.cached_prefix,
            model.evict_prefix,
            model.export_plan,
            lambda key, **more: model.pin_prefix(key, 9, **more),
        ]
        for call in (*calls, lambda key, **more: list(model.export_prefix(key, **more))):
            with pytest.raises(PrefixNotFound):
                call(key, salt=other)
    model.pin_prefix(key, 60, name="p", salt="a")
    assert [len(model.pins(salt=salt)) for salt in ("", "a", "b")] == [0, 1, 0]
    assert [model.unpin("p", salt=salt) for salt in ("", "b", "a")] == [False, False, True]
    assert model.evict_prefix(key, salt="a") > 0


def test_a_file_is_taken_for_the_salt_that_it_was_made_for(model: Model, tmp_path: Path):
    key = model.prefill_only(TEXT, salt="a").finish_key
    model.evict()
    file = list(model.export_prefix(key, salt="a"))
    with opened(tmp_path, config(tmp_path, "elsewhere")) as other:
        for salt in ("", "b"):
            with pytest.raises(InvalidParameter, match="tenant"):
                other.import_prefix(file, salt=salt)
        assert other.import_prefix(file, salt="a").key == key
        assert other.cached_prefix(key, salt="a").n_tokens == 1000


def test_a_pinned_prompt_is_that_of_its_salt(model: Model):
    model.pin_prefix(TEXT, 60, salt="a")
    for salt in ("a", "b"):
        model.complete(TEXT, response_tokens=4, salt=salt)
    model.evict()
    model.store.evict_bytes("disk", 1 << 40)
    cached = {salt: model.complete(TEXT, response_tokens=1, salt=salt).stats.cached_tokens for salt in ("a", "b")}
    assert (cached["a"] >= 999, cached["b"]) == (True, 0)


@pytest.mark.parametrize("key", ["", "x", "../../etc/passwd", "A" * 64, "0" * 64, "0" * 65])
def test_what_is_no_key_of_ours_is_not_found(model: Model, key: str):
    with pytest.raises(PrefixNotFound, match="no prefix"):
        model.cached_prefix(key)


def test_an_evicted_prefix_is_computed_again(model: Model):
    key, other = _stored(model, TEXT), _stored(model, OTHER)
    assert model.evict_prefix(key) > 0
    assert [prefix.key for prefix in model.list_cached_prefixes()] == [other]
    assert n_cached(model, [*TEXT, 1]) == 0


def test_a_pinned_prefix_stays(model: Model):
    key = _stored(model, TEXT)
    pin = model.pin_prefix(key, 60, name="system", owner="ada")
    assert (pin.n_tokens, [pin.name for pin in model.pins()]) == (1000, ["system"])
    assert (model.evict_prefix(key), model.cached_prefix(key).pins) == (0, ("system",))
    assert [model.unpin("system"), model.unpin("system", "ada")] == [False, True]
    assert model.evict_prefix(key) > 0


def test_a_prompt_can_be_pinned_before_it_is_stored(model: Model):
    model.pin_prefix(TEXT, 60)
    model.complete(TEXT, response_tokens=4)
    model.evict()
    model.store.evict_bytes("disk", 1 << 40)
    assert n_cached(model, TEXT) >= 999


@pytest.mark.parametrize(("ttl_s", "word"), [(0, "ttl_s"), (-1, "ttl_s"), (1e12, "ttl_s"), (float("nan"), "ttl_s")])
def test_bad_times_are_named(model: Model, ttl_s: float, word: str):
    with pytest.raises(InvalidParameter, match=word):
        model.pin_prefix(TEXT, ttl_s)


def test_what_the_quota_does_not_allow_is_told(tmp_path: Path):
    tier = TierConfig(str(tmp_path / "kv"), max_bytes="1GiB")
    with opened(tmp_path, StoreConfig(tiers=(tier,), pin_quota_bytes=10)) as model:
        key = _stored(model, TEXT)
        with pytest.raises(InvalidParameter, match="more than may be pinned"):
            model.pin_prefix(key, 60)


def test_the_order_of_a_list_is_one_of_four(model: Model):
    with pytest.raises(InvalidParameter, match="recent, hits, bytes, tokens"):
        model.list_cached_prefixes(order="name")


def test_without_a_store_there_is_nothing_to_keep(tmp_path: Path):
    with opened(tmp_path, None) as model:
        assert model.list_cached_prefixes() == ()
        for call in (model.pins, lambda: model.cached_prefix("0" * 64), lambda: model.import_prefix([b"x"])):
            with pytest.raises(NotSupported, match="no KV store"):
                call()


# --- pins that requests ask for -------------------------------------------------------------------


def ask(model: Model, tokens: list[int], pin: Pin | None, max_tokens: int = 3) -> None:
    model.submit(GenerationRequest("it", tuple(tokens), max_tokens=max_tokens, pin=pin)).result()
    model.live_prefixes().result()  # answered after the step that ended it, and that asked for the pin
    model.store._pins.make_wanted()  # what a thread of the store does every second


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_the_marked_prefix_of_a_request_is_pinned(model: Model, max_tokens: int):
    ask(model, TEXT, Pin(600, 60, "ada"), max_tokens)
    (pin,) = model.pins()
    assert (pin.n_tokens, pin.owner) == (600, "ada")
    model.evict()
    model.store.evict_bytes("disk", 1 << 40)
    assert 512 <= n_cached(model, [*TEXT[:600], *OTHER]) <= 600
    assert model.stats().cache.pins == 1


def test_a_restored_prompt_renews_its_pin(model: Model):
    _stored(model, TEXT)
    ask(model, [*TEXT, 1], Pin(1000, 60))
    assert [pin.n_tokens for pin in model.pins()] == [1000]


@pytest.mark.parametrize(
    ("policy", "n_tokens", "n_pins"),
    [
        (replace(POLICY, pin_from_requests=False), 600, 0),
        (replace(POLICY, pin_max_ttl_s=0), 600, 0),
        (POLICY, 100, 0),
        (POLICY, 5000, 1),
    ],
)
def test_the_policy_decides(tmp_path: Path, policy: CachePolicy, n_tokens: int, n_pins: int):
    with opened(tmp_path, config(tmp_path), policy) as model:
        ask(model, TEXT, Pin(n_tokens, 60))
        assert len(model.pins()) == n_pins


def test_a_pin_lasts_as_long_as_the_policy_allows_at_most(tmp_path: Path):
    with opened(tmp_path, config(tmp_path), replace(POLICY, pin_max_ttl_s=50)) as model:
        ask(model, TEXT, Pin(600, 3600))
        once = model.pins()[0].expires_s
        model.pin_prefix(TEXT[:600], 3600, name="long")
        assert model.pins()[1].expires_s - once == pytest.approx(3550, abs=20)


def test_a_pin_that_is_refused_costs_the_request_nothing(tmp_path: Path):
    tier = TierConfig(str(tmp_path / "kv"), max_bytes="1GiB")
    with opened(tmp_path, StoreConfig(tiers=(tier,), pin_quota_bytes=10)) as model:
        ask(model, TEXT, Pin(600, 60))
        assert (model.store.stats().dropped, model.pins()) == ({"pin": 1}, ())


# --- sessions -------------------------------------------------------------------------------------


def test_a_forked_session_goes_its_own_way(model: Model):
    """As two sessions that were told the same would: token for token."""
    begun = list(model.infer(TEXT, session_id="old", response_tokens=20, seed=1))
    assert begun
    assert model.fork_session("old", "new") is True
    told = model.transcript("old")
    assert model.transcript("new") == told
    ways = {}
    for name, suffix in (("old", [1, 2, 3]), ("new", [7, 8, 9])):
        done = model.continue_(name, suffix, seed=5, response_tokens=30).result()
        assert done.stats.cached_tokens >= len(told) - 1
        assert done.stats.cache_tier == "live"
        ways[name] = done.tokens
    for name, suffix in (("old", [1, 2, 3]), ("new", [7, 8, 9])):
        assert model.transcript(name) == (*told, *suffix, *ways[name])
        model.reset_session(name)
    model.evict()
    for name, suffix in (("old", [1, 2, 3]), ("new", [7, 8, 9])):
        assert model.complete([*told, *suffix], seed=5, response_tokens=30).tokens == ways[name]


def test_without_an_empty_id_a_fork_starts_from_the_same_transcript(tmp_path: Path):
    with opened(tmp_path, config(tmp_path), n_parallel=1) as model:
        model.infer(TEXT, session_id="old", response_tokens=20, seed=1).result()
        assert model.fork_session("old", "new") is False
        new = model.continue_("new", [7], seed=5, response_tokens=5).result()
        old = model.continue_("old", [7], seed=5, response_tokens=5).result()
        assert new.tokens == old.tokens
        assert old.stats.cached_tokens >= 1000


def test_a_session_that_ended_does_not_take_its_fork_along(model: Model):
    model.infer(TEXT, session_id="old", response_tokens=20, seed=1).result()
    model.fork_session("old", "new")
    model.reset_session("old")
    assert model.continue_("new", [7], response_tokens=5).result().stats.cache_tier == "live"


def test_forks_of_unknown_sessions_and_to_known_names_are_refused(model: Model):
    model.infer(TEXT, session_id="old", response_tokens=1).result()
    with pytest.raises(SessionNotFound):
        model.fork_session("unknown", "new")
    with pytest.raises(InvalidParameter, match="known already"):
        model.fork_session("old", "old")
    for name in ("", "x" * 300):
        with pytest.raises(InvalidParameter, match="new_session_id must have 1 to 256"):
            model.fork_session("old", name)


def test_sessions_of_one_name_are_each_salts_own(model: Model):
    for salt, tokens in (("", TEXT[:300]), ("a", TEXT[:400]), ("b", OTHER[:500])):
        model.infer(tokens, session_id="chat", response_tokens=1, salt=salt).result()
    told = {salt: model.transcript("chat", salt=salt) for salt in ("", "a", "b")}
    assert [len(tokens) for tokens in told.values()] == [301, 401, 501]
    model.continue_("chat", [7], salt="a", response_tokens=1).result()
    model.end_session("chat")
    model.reset_session("chat", salt="b")
    for salt in ("", "b"):
        with pytest.raises(SessionNotFound, match="no session 'chat' is known") as caught:
            model.transcript("chat", salt=salt)
        assert "\\x00" not in caught.value.message
    assert model.transcript("chat", salt="a")[:402] == (*told["a"], 7)


@pytest.mark.parametrize("salt", ["", "a"])
def test_a_fork_is_live_for_its_salt(model: Model, salt: str):
    model.infer(TEXT, session_id="old", response_tokens=3, salt=salt).result()
    assert model.fork_session("old", "new", salt=salt) is True
    with pytest.raises(SessionNotFound):
        model.fork_session("old", "newer", salt="b")
    live = model.live_prefixes().result()
    assert sorted(live.salts.values()) == [salt, salt]  # what the router is told: the copy, too


def test_no_session_id_reaches_another_salts(model: Model):
    model.infer(TEXT, session_id="chat", response_tokens=1, salt="a").result()
    for call in (model.transcript, model.end_session, model.reset_session, lambda id: model.fork_session("chat", id)):
        with pytest.raises(InvalidParameter, match="must not hold a NUL"):
            call("a\0chat")
    assert len(model.transcript("chat", salt="a")) == 1001
