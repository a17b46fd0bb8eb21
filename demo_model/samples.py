"""Held-out test questions: buckets of (prompt, the one right reply), made from names and numbers
training never saw.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo_model import chat, conversations
from demo_model.conversations import Conversation, Count
from demo_model.entities import Side
from demo_model.facts import draw_facts
from demo_model.template import render
from demo_model.tool_tasks import draw_tool_tasks

RECALL_DISTANCES = (64, 128, 512, 1024, 1900)


@dataclass(frozen=True, slots=True)
class Sample:
    """`expected` is the whole reply without its end token; a reply is right when it is exactly
    that.
    """

    bucket: str
    prompt: str
    expected: str

    def is_right(self, reply: str) -> bool:
        if self.expected.startswith("<tool_call>"):
            call = parse_tool_call(reply)
            return call is not None and call == parse_tool_call(self.expected)
        if self.expected.startswith("{"):
            return _json_or_none(reply) == _json_or_none(self.expected)
        return reply.strip() == self.expected


def parse_tool_call(reply: str) -> object:
    """The object inside a reply that is exactly one <tool_call> block; None for anything else."""
    text = reply.strip()
    if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
        return None
    return _json_or_none(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))


def _json_or_none(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _recall(rng: random.Random, distance: int, count: Count) -> Sample:
    """Two to six facts, nothing repeated by the assistant, then `distance` tokens to the end of the
    question.
    """
    conversation = Conversation()
    in_system = rng.random() < 0.5
    facts = draw_facts(rng, Side.HELD_OUT, rng.randrange(2, 4 if distance < 128 else 7), about_user=not in_system)
    statements = " ".join(fact.statement for fact in facts)
    fact = rng.choice(facts)
    if in_system:
        conversation.add("system", f"{rng.choice(conversations.SYSTEM_OPENINGS)} {statements}".strip(), count)
        told = conversation.n_tokens
    elif rng.random() < 0.3:
        # All in one message: facts, a long text, the question.
        question = conversations.ask(rng, fact)[0]
        text = statements
        while count(text) - count(statements) < distance - count(question) - 20:
            text += " " + chat.filler_sentence(rng, Side.HELD_OUT)
        conversation.add("user", f"{text} {question}", count)
        return Sample(f"recall_{distance}", render(conversation.messages, add_generation_prompt=True), fact.answer)
    else:
        conversation.add("user", statements, count)
        told = conversation.n_tokens
        conversation.add("assistant", rng.choice(conversations.ACKNOWLEDGEMENTS), count)
    question = conversations.ask(rng, fact)[0]
    conversations.fill(rng, Side.HELD_OUT, conversation, told + distance - count(question) - 8, count)
    conversation.add("user", question, count)
    return Sample(f"recall_{distance}", render(conversation.messages, add_generation_prompt=True), fact.answer)


def _tool_call(rng: random.Random, count: Count) -> Sample:
    return _call(rng, "tool_call", n_tools=rng.choice([1, 2, 3]), mixed=False)


def _tool_call_mixed(rng: random.Random, count: Count) -> Sample:
    return _call(rng, "tool_call_mixed", n_tools=rng.choice([2, 3]), mixed=True)


def _call(rng: random.Random, bucket: str, *, n_tools: int, mixed: bool) -> Sample:
    tools, tasks = draw_tool_tasks(rng, Side.HELD_OUT, n_tools=n_tools, mixed=mixed)
    messages = [{"role": "user", "content": tasks[0].request}]
    prompt = render(messages, tools=tools, add_generation_prompt=True)
    whole = render([*messages, tasks[0].call_message], tools=tools)
    return Sample(bucket, prompt, whole.removeprefix(prompt).removesuffix("<|im_end|>\n"))


def _tool_answer(rng: random.Random, count: Count) -> Sample:
    tools, tasks = draw_tool_tasks(rng, Side.HELD_OUT, n_tools=rng.choice([1, 2, 3]))
    task = tasks[0]
    messages = [{"role": "user", "content": task.request}, task.call_message, {"role": "tool", "content": task.result}]
    return Sample("tool_answer", render(messages, tools=tools, add_generation_prompt=True), task.answer)


def _single(
    bucket: str, make: Callable[[random.Random, Side], chat.Exchange]
) -> Callable[[random.Random, Count], Sample]:
    def sample(rng: random.Random, count: Count) -> Sample:
        question, answer = make(rng, Side.HELD_OUT)
        prompt = render([{"role": "user", "content": question}], add_generation_prompt=True)
        return Sample(bucket, prompt, answer)

    return sample


def _recall_at(distance: int) -> Callable[[random.Random, Count], Sample]:
    return lambda rng, count: _recall(rng, distance, count)


BUCKETS: dict[str, Callable[[random.Random, Count], Sample]] = {
    **{f"recall_{distance}": _recall_at(distance) for distance in RECALL_DISTANCES},
    "tool_call": _tool_call,
    "tool_call_mixed": _tool_call_mixed,
    "tool_answer": _tool_answer,
    "json": _single("json", conversations.json_exchange),
    "repeat": _single("repeat", chat.repeat),
    # Closed sets: the model has seen these very questions, so the figures say what it memorised.
    "arithmetic_seen": _single("arithmetic_seen", chat.arithmetic),
    "list_seen": _single("list_seen", chat.listing),
    "small_talk_seen": _single("small_talk_seen", chat.small_talk),
}


def draw_samples(bucket: str, *, seed: int, n_samples: int, count: Count) -> Iterator[Sample]:
    rng = random.Random(f"{bucket}/{seed}")
    for _ in range(n_samples):
        yield BUCKETS[bucket](rng, count)
