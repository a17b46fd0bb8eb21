"""What is saved when, and that nothing is saved twice."""

from dataclasses import replace

import pytest

from cache_store import BLOCK_TOKENS, Store
from erllama.cache.policy import SaveReason
from erllama.chat.transcript import message_signature, prompt_key, reply_signature, transcript_id
from erllama.grammar.reasoning_budget import ReasoningBudget
from tests.support.engine_kit import TRANSCRIPT_ROOT, Rig, request, root_of
from tests.support.flow_kit import POLICY, WAIT_S, ask, flushed, prompt, reply, rig_of

# --- saves ----------------------------------------------------------------------------------------


def test_the_five_reasons(store: Store):
    rig = rig_of(store, replace(POLICY, continued_interval=100))
    rig.submit(request("it", prompt(1000), max_tokens=600))
    rig.step(4 + 301)
    rig.engine.evict()
    rig.step(50)
    rig.engine.save_all(SaveReason.SHUTDOWN)
    rig.run()
    assert set(flushed(store).saved) == {"cold", "continued", "evict", "shutdown", "finish"}
    assert set(rig.engine.stats.cache.saves) == {"cold", "continued", "evict", "shutdown", "finish"}
    assert rig.engine.stats.cache.stall_ms >= rig.engine.stats.cache.max_stall_ms > 0


def test_a_long_prompt_is_saved_step_by_step_while_it_is_computed(store: Store, saves: list):
    ask(rig_of(store), "it", prompt(1500))
    assert saves == [
        ("cold", [(0, 256), (256, 256)]),
        ("cold", [(512, 256), (768, 256)]),
        ("cold", [(1024, 256), (1280, 188)]),
        ("finish", [(1468, 32 + 3)]),
    ]


def test_a_continued_save_comes_every_interval_and_writes_new_blocks_only(store: Store, saves: list):
    rig = rig_of(store, replace(POLICY, continued_interval=300, boundary_trim_tokens=0))
    ask(rig, "it", prompt(256), max_tokens=1000)
    continued = [rows for reason, rows in saves if reason == "continued"]
    assert continued == [[(256, 256)], [(512, 256)], [(768, 256)]]
    assert flushed(store).saved["continued"] == 3


def test_a_dead_engine_loses_at_most_an_interval(store: Store):
    rig = rig_of(store, replace(POLICY, continued_interval=300))
    rig.submit(request("it", prompt(300), max_tokens=1000))
    rig.step(2 + 700)
    delivered = rig.ids("it")
    other = rig_of(store)
    stats = ask(other, "on", [*prompt(300), *delivered], max_tokens=20).stats
    assert stats.cached_tokens >= 300 + len(delivered) - 300 - BLOCK_TOKENS
    assert [*delivered, *other.ids("on")] == reply(prompt(300), max_tokens=len(delivered) + 20)


def test_the_finish_save_holds_all_that_was_computed(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(600), max_tokens=77)
    whole = [*prompt(600), *rig.ids("it")]
    assert [prefix.n_tokens for prefix in store.prefixes(root_of(()))] == [len(whole) - 1]
    other = rig_of(store)
    assert ask(other, "on", [*whole, 1, 2]).stats.cached_tokens == len(whole) - 1


def test_a_cancelled_request_is_saved_like_any_other(store: Store, saves: list):
    rig = rig_of(store)
    rig.submit(request("it", prompt(600)))
    rig.step(10)
    rig.engine.cancel("it")
    rig.step()
    assert saves[-1][0] == "finish"
    assert sum(n for _, rows in saves for _, n in rows) == 600 + len(rig.ids("it")) - 1


def test_a_conversation_is_stored_once_whatever_its_turns(store: Store, saves: list):
    rig = rig_of(store)
    tokens = prompt(300)
    for turn in range(5):
        ask(rig, f"turn {turn}", tokens, max_tokens=20)
        tokens += [*rig.ids(f"turn {turn}"), *prompt(40, turn + 1)]
    assert sum(n for _, rows in saves for _, n in rows) == len(tokens) - 40 - 1


@pytest.mark.parametrize(
    ("policy", "n_prompt", "expected"),
    [
        ({}, 12, []),
        ({}, 13, ["finish"]),
        ({}, 33, ["cold", "finish"]),
        ({"cold_min_tokens": 601}, 600, ["finish"]),
        ({"cold_min_tokens": 600}, 600, ["cold", "finish"]),
        ({"min_tokens": 700}, 600, ["cold"]),
        ({"min_tokens": 700, "cold_min_tokens": 700}, 600, []),
    ],
    ids=str,
)
def test_gates_keep_short_sequences_out_of_the_store(
    store: Store, saves: list, policy: dict, n_prompt: int, expected: list[str]
):
    ask(rig_of(store, replace(POLICY, cold_step_tokens=5000, **policy)), "it", prompt(n_prompt))
    assert [reason for reason, _ in saves] == expected


def test_the_cold_saves_of_one_request_are_capped(store: Store, saves: list):
    ask(rig_of(store, replace(POLICY, cold_max_tokens=600)), "it", prompt(1500), max_tokens=0)
    assert sum(n for reason, rows in saves if reason == "cold" for _, n in rows) == 600


def test_what_was_restored_is_not_saved_again(store: Store, saves: list):
    ask(rig_of(store), "first", prompt(1000), max_tokens=0)
    saves.clear()
    ask(rig_of(store), "second", prompt(1000), max_tokens=0)
    assert saves == []


def test_without_a_store_nothing_is_read_out():
    rig = rig_of(None)
    ask(rig, "it", prompt(1000))
    rig.engine.evict()
    assert rig.backend.calls["read_kv"] == 0


def recorded(store: Store, rig: Rig, name: str, tokens: list[int]) -> list[int] | None:
    """The ids that are found for the text of a reply."""
    signature = reply_signature(rig.text(name))
    assert signature is not None
    block = store.get(transcript_id(TRANSCRIPT_ROOT, prompt_key(TRANSCRIPT_ROOT, tokens), signature), WAIT_S)
    return None if block is None else block.tokens.tolist()


def test_the_ids_of_a_reply_that_will_come_back_are_stored(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(300), max_tokens=30, record_transcript=True)
    assert recorded(store, rig, "it", prompt(300)) == rig.ids("it")


def test_the_ids_that_a_stop_string_cuts_off_are_not_stored(store: Store):
    stop = bytes(reply(prompt(300), max_tokens=30)[20:24]).decode()
    rig = rig_of(store)
    ask(rig, "it", prompt(300), max_tokens=30, record_transcript=True, stop=(stop,))
    assert bytes(recorded(store, rig, "it", prompt(300))).decode() == rig.text("it")


@pytest.mark.parametrize("keeps", [False, True])
def test_a_reply_is_stored_for_when_it_comes_back_without_its_reasoning_where_that_is_wanted(store: Store, keeps: bool):
    rig = rig_of(store, keep_sampled_reasoning=keeps)
    budget = ReasoningBudget(5, tuple(b"</think>"))
    ask(rig, "it", prompt(300), max_tokens=30, record_transcript=True, in_reasoning=True, reasoning=budget)
    message = {"role": "assistant", "content": rig.text("it").partition("</think>")[2]}
    signature = message_signature(message, reasoned=True)
    assert signature is not None
    block = store.get(transcript_id(TRANSCRIPT_ROOT, prompt_key(TRANSCRIPT_ROOT, prompt(300)), signature), WAIT_S)
    assert (block is not None and block.tokens.tolist() == rig.ids("it")) == keeps


def test_replies_are_recorded_on_demand_when_whole_and_not_too_short(store: Store):
    rig = rig_of(store)
    ask(rig, "unasked", prompt(300), max_tokens=30)
    assert recorded(store, rig, "unasked", prompt(300)) is None
    ask(rig, "short", prompt(5), max_tokens=3, record_transcript=True)
    assert recorded(store, rig, "short", prompt(5)) is None
    rig.submit(request("cancelled", prompt(300), record_transcript=True))
    rig.step(20)
    rig.engine.cancel("cancelled")
    rig.step()
    assert recorded(store, rig, "cancelled", prompt(300)) is None
