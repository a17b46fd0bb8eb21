"""The generated conversations: a function of the seed, right about their own facts, disjoint from
the evaluation side.
"""

import json
import random

import pytest

from demo_model import conversations, entities, samples
from demo_model.entities import Side
from demo_model.facts import draw_facts
from demo_model.template import render
from demo_model.tool_tasks import draw_tool_tasks


def count(text: str) -> int:
    return len(text) // 3


def generated(seed: int, *, budget: int = 400) -> conversations.Conversation:
    return conversations.generate(random.Random(seed), Side.TRAIN, budget=budget, count=count)


def test_the_same_seed_makes_the_same_conversation():
    for seed in range(50):
        first, second = generated(seed), generated(seed)
        assert render(first.messages, tools=first.tools) == render(second.messages, tools=second.tools)


def test_different_seeds_make_different_conversations():
    assert len({render(made.messages, tools=made.tools) for made in map(generated, range(50))}) == 50


def test_conversations_alternate_and_end_with_the_assistant():
    for seed in range(200):
        roles = [message["role"] for message in generated(seed).messages if message["role"] != "system"]
        assert set(roles[0::2]) <= {"user", "tool"}
        assert set(roles[1::2]) == {"assistant"}
        assert len(roles) % 2 == 0


@pytest.mark.parametrize("budget", [128, 256, 512, 1024, 2048])
def test_conversations_keep_to_their_budget_on_average(budget):
    lengths = [count(render((made := generated(seed, budget=budget)).messages, tools=made.tools)) for seed in range(60)]
    assert 0.75 * budget < sum(lengths) / len(lengths) < 1.4 * budget


def test_made_up_words_of_the_two_sides_are_disjoint():
    rng = random.Random(1)
    trained = {entities.made_up_word(rng, Side.TRAIN) for _ in range(5000)}
    held_out = {entities.made_up_word(rng, Side.HELD_OUT) for _ in range(5000)}
    assert not trained & held_out
    assert len(held_out) > 1000


def test_numbers_of_the_two_sides_are_disjoint():
    rng = random.Random(1)
    trained = {entities.number(rng, Side.TRAIN, n_digits=4) for _ in range(3000)}
    assert not trained & {entities.number(rng, Side.HELD_OUT, n_digits=4) for _ in range(3000)}


def test_facts_of_one_conversation_have_different_subjects():
    for seed in range(100):
        facts = draw_facts(random.Random(seed), Side.TRAIN, 8, about_user=True)
        assert len({fact.subject for fact in facts}) == 8


def test_a_fact_states_the_value_it_asks_for():
    for fact in draw_facts(random.Random(1), Side.TRAIN, 40, about_user=True):
        assert fact.value in fact.statement
        assert fact.value in fact.answer
        assert fact.questions


def test_a_tool_task_calls_a_tool_on_offer_with_its_parameters():
    for seed in range(100):
        tools, tasks = draw_tool_tasks(random.Random(seed), Side.TRAIN, n_tools=3)
        offered = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools}
        for task in tasks:
            assert set(task.arguments) <= set(offered[task.name])


def test_test_samples_are_a_function_of_the_seed_and_differ_between_seeds():
    for bucket in samples.BUCKETS:
        first, again, other = (
            list(samples.draw_samples(bucket, seed=seed, n_samples=5, count=count)) for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other


@pytest.mark.parametrize("distance", samples.RECALL_DISTANCES)
def test_the_distance_of_a_recall_sample_is_about_what_its_name_says(distance):
    drawn = list(samples.draw_samples(f"recall_{distance}", seed=1, n_samples=20, count=count))
    lengths = [count(sample.prompt) for sample in drawn]
    assert distance * 0.8 < sum(lengths) / len(lengths) < distance * 1.3 + 150


def test_a_right_reply_counts_and_a_wrong_one_does_not():
    for bucket in samples.BUCKETS:
        for sample in samples.draw_samples(bucket, seed=3, n_samples=10, count=count):
            assert sample.is_right(sample.expected)
            assert not sample.is_right(sample.expected[:-1] + "~")


def test_a_tool_call_is_judged_as_json_not_as_text():
    sample = next(samples.draw_samples("tool_call", seed=1, n_samples=1, count=count))
    call = samples.parse_tool_call(sample.expected)
    assert sample.is_right("<tool_call>" + json.dumps(call, indent=1) + "</tool_call>")
    assert not sample.is_right("<tool_call>\n{}\n</tool_call>")
    assert not sample.is_right("no call")
