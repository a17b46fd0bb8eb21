"""Seeded generator of training conversations: facts to remember, tools to call, JSON to write,
small talk.

A conversation is what a client would send (messages as the chat template takes them, and tools), so
that the shipped template renders it. `generate` is a pure function of the random generator handed
in, the side and the budget; budgets are in tokens, measured by the `count` callable of the caller
(this module knows no tokenizer).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from demo_model import chat, entities
from demo_model.entities import Side
from demo_model.facts import Fact, draw_facts, draw_untold
from demo_model.template import render
from demo_model.tool_tasks import Tool, draw_tool_tasks

Message = dict[str, Any]
Count = Callable[[str], int]

# <|im_start|>, role, newline, <|im_end|>, newline
MESSAGE_OVERHEAD_TOKENS = 5

SYSTEM_OPENINGS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly assistant.",
    "You are the erllama demo model.",
    "Answer the questions of the user.",
    "",
)
ACKNOWLEDGEMENTS = ("Okay.", "I will remember that.", "Noted.")


@dataclass(slots=True)
class Conversation:
    messages: list[Message] = field(default_factory=list)
    tools: tuple[Tool, ...] = ()
    n_tokens: int = 0

    def add(self, role: str, content: str, count: Count) -> None:
        self.messages.append({"role": role, "content": content})
        self.n_tokens += count(content) + MESSAGE_OVERHEAD_TOKENS

    def add_exchange(self, exchange: chat.Exchange, count: Count) -> None:
        self.add("user", exchange[0], count)
        self.add("assistant", exchange[1], count)


def exchange_tokens(exchange: chat.Exchange, count: Count) -> int:
    return count(exchange[0]) + count(exchange[1]) + 2 * MESSAGE_OVERHEAD_TOKENS


def generate(rng: random.Random, side: Side, *, budget: int, count: Count, row_length: int = 0) -> Conversation:
    """One conversation of about `budget` tokens (a little over at times; the caller truncates).

    Tools need some 250 tokens: `row_length` says how much the caller can take when that is more
    than the budget.
    """
    draw = rng.random()
    if draw < 0.42:
        return _recall(rng, side, budget, count)
    if draw < 0.76 and max(budget, row_length) >= 256:
        return _tools(rng, side, max(budget, row_length), count)
    if draw < 0.83:
        return _json(rng, side, budget, count)
    if draw < 0.93 and budget <= 256:
        return _sums(rng, side, budget, count)
    return _chat(rng, side, budget, count)


def ask(rng: random.Random, fact: Fact) -> chat.Exchange:
    question = rng.choice(fact.questions)
    if rng.random() < 0.06:
        question = question[0].lower() + question[1:]
    return question, fact.answer


def _mixed(rng: random.Random, side: Side, facts: list[Fact], n_filler: int) -> str:
    """Facts in order with filler sentences strewn between them."""
    sentences = [fact.statement for fact in facts]
    if (
        len(sentences) > 1
        and sentences[0].startswith(("My ", "I "))
        and sentences[1].startswith(("My ", "I "))
        and rng.random() < 0.4
    ):
        second = sentences.pop(1)
        sentences[0] = (
            f"{sentences[0][:-1]} and {second if second.startswith('I ') else second[0].lower() + second[1:]}"
        )
    for _ in range(n_filler):
        sentences.insert(rng.randrange(len(sentences) + 1), chat.filler_sentence(rng, side))
    return " ".join(sentences)


def fill(
    rng: random.Random, side: Side, conversation: Conversation, until: int, count: Count, *, sums: bool = True
) -> None:
    """Add exchanges that have nothing to do with the facts until the conversation is about `until`
    tokens long.
    """
    while (room := until - conversation.n_tokens) > 24:
        if room > 60 and rng.random() < 0.5:
            exchange = chat.reading(rng, side, n_sentences=rng.randrange(1, 2 + min(room, 1600) // 24))
        else:
            exchange = chat.short_exchange(rng, side, sums=sums)
        if exchange_tokens(exchange, count) <= room + 8:
            conversation.add_exchange(exchange, count)
        elif room < 40:
            return


def _tell(rng: random.Random, side: Side, conversation: Conversation, facts: list[Fact], count: Count) -> None:
    """The user states the facts, one to three a message, among other things or with the question at
    once.
    """
    position = 0
    while position < len(facts):
        group = facts[position : position + rng.randrange(1, 4)]
        position += len(group)
        text = _mixed(rng, side, group, rng.randrange(3) if rng.random() < 0.3 else 0)
        style = rng.random()
        if style < 0.3:
            question, answer = ask(rng, rng.choice(group))
            conversation.add_exchange((f"{text} {question}", answer), count)
        elif style < 0.4:
            conversation.add_exchange((text, " ".join(fact.answer for fact in group)), count)
        else:
            prefix = rng.choice(["", "", "", "Please remember: ", "Remember this. ", "Remember: "])
            conversation.add_exchange((prefix + text, rng.choice(ACKNOWLEDGEMENTS)), count)


def document(rng: random.Random, side: Side, facts: list[Fact], room: int) -> str:
    """A long text with the facts strewn in it, about `room` tokens with them."""
    text = _mixed(rng, side, facts, max(0, (room - 18 * len(facts)) // 23))
    return rng.choice([text, text, f"Please read this text. {text}", f"Here is a text: {text}"])


def _recall(rng: random.Random, side: Side, budget: int, count: Count) -> Conversation:
    conversation = Conversation()
    low, high = (1, 3) if budget <= 128 else (2, 5) if budget <= 256 else (3, 8) if budget <= 512 else (6, 14)
    n_facts = rng.randrange(low, high + 1)
    in_system = rng.random() < 0.5
    facts = draw_facts(rng, side, n_facts, about_user=not in_system)
    if in_system:
        n_filler = rng.randrange(1 + budget // 40) if rng.random() < 0.3 else 0
        content = f"{rng.choice(SYSTEM_OPENINGS)} {_mixed(rng, side, facts, n_filler)}".strip()
        conversation.add("system", content, count)
    else:
        if rng.random() < 0.4:
            conversation.add("system", rng.choice(SYSTEM_OPENINGS[:-1]), count)
        if rng.random() < 0.2:
            conversation.add_exchange(chat.small_talk(rng, side), count)
        if rng.random() < 0.25:
            room = rng.randrange(20, max(21, budget - 30 * n_facts))
            question, answer = ask(rng, rng.choice(facts))
            conversation.add_exchange((f"{document(rng, side, facts, room)} {question}", answer), count)
        else:
            _tell(rng, side, conversation, facts, count)
    asks = [ask(rng, fact) for fact in facts]
    if rng.random() < 0.2 and (untold := draw_untold(rng, facts)) is not None:
        asks.append(ask(rng, untold))
    rng.shuffle(asks)
    reserved = sum(exchange_tokens(exchange, count) for exchange in asks)
    fill(rng, side, conversation, budget - reserved, count)
    for exchange in asks:
        conversation.add_exchange(exchange, count)
    while conversation.n_tokens < budget - 30:
        conversation.add_exchange(ask(rng, rng.choice(facts)), count)
    return conversation


def _tools(rng: random.Random, side: Side, budget: int, count: Count) -> Conversation:
    n_tools = 1 if budget <= 256 else rng.choice([1, 2, 2, 3, 3])
    brief = budget <= 256
    tools, tasks = draw_tool_tasks(rng, side, n_tools=n_tools, brief=brief, mixed=rng.random() < 0.15)
    sums = not any(task.is_sum for task in tasks)
    conversation = Conversation(tools=tools)
    conversation.n_tokens = count(render([{"role": "user", "content": ""}], tools=tools)) - MESSAGE_OVERHEAD_TOKENS
    if not brief and rng.random() < 0.4:
        conversation.add("system", rng.choice(SYSTEM_OPENINGS[:-1]), count)
    if budget > 512:
        fill(rng, side, conversation, rng.randrange(budget // 2), count, sums=sums)
    if not brief and rng.random() < 0.2:
        conversation.add_exchange(chat.small_talk(rng, side), count)
    # Room left after the first task is used for the other tools, then for anything else.
    for task in tasks:
        if task is not tasks[0] and conversation.n_tokens > budget - 90:
            break
        conversation.add("user", task.request, count)
        conversation.messages.append(task.call_message)
        conversation.n_tokens += 30 + count(json.dumps(task.arguments))
        conversation.add("tool", task.result, count)
        conversation.n_tokens += 14
        conversation.add("assistant", task.answer, count)
    fill(rng, side, conversation, budget, count, sums=sums)
    return conversation


def json_exchange(rng: random.Random, side: Side) -> chat.Exchange:
    """A sentence about a person, and the same as JSON with the keys asked for, in their order."""
    values: dict[str, Any] = {
        "name": entities.name_or_real(rng, side, entities.PEOPLE),
        "age": rng.randrange(10, 100),
        "city": entities.name_or_real(rng, side, entities.CITIES),
        "colour": rng.choice(entities.COLOURS),
        "job": rng.choice(entities.JOBS),
        "code": int(entities.number(rng, side, n_digits=4)),
    }
    phrases = {
        "age": f"is {values['age']} years old",
        "city": f"lives in {values['city']}",
        "colour": f"likes the colour {values['colour']}",
        "job": f"works as a {values['job']}",
        "code": f"has the code {values['code']}",
    }
    told = rng.sample(list(phrases), rng.randrange(1, 4))
    asked = ["name", *told] if rng.random() < 0.7 else rng.sample(["name", *told], rng.randrange(1, len(told) + 2))
    sentence = f"{values['name']} {_joined([phrases[key] for key in told])}."
    if told == ["city"] and rng.random() < 0.5:
        sentence = f"My name is {values['name']} and I live in {values['city']}."
    request = rng.choice(["Answer as JSON with keys", "Answer as JSON with the keys", "Reply as JSON with keys"])
    instruction = f"{request} {_joined(asked)}"
    forms = ["{0} {1}.", "{0} {1}.", "{1}. {0}", "{1}: {0}"]
    question = rng.choice(forms).format(sentence, instruction)
    return question, json.dumps({key: values[key] for key in asked}, ensure_ascii=False)


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _json(rng: random.Random, side: Side, budget: int, count: Count) -> Conversation:
    conversation = Conversation()
    if rng.random() < 0.4:
        conversation.add("system", rng.choice(SYSTEM_OPENINGS[:-1]), count)
    conversation.add_exchange(json_exchange(rng, side), count)
    while conversation.n_tokens < budget - 60:
        make = json_exchange if rng.random() < 0.7 else chat.short_exchange
        conversation.add_exchange(make(rng, side), count)
    return conversation


def _sums(rng: random.Random, side: Side, budget: int, count: Count) -> Conversation:
    """Nothing but arithmetic: a table this size takes thousands of repetitions to learn by
    heart.
    """
    conversation = Conversation()
    while conversation.n_tokens < budget - 24:
        conversation.add_exchange(chat.arithmetic(rng, side), count)
    return conversation


def _chat(rng: random.Random, side: Side, budget: int, count: Count) -> Conversation:
    conversation = Conversation()
    if rng.random() < 0.4:
        conversation.add("system", rng.choice(SYSTEM_OPENINGS[:-1]), count)
    # Newcomers open with a greeting, and most chats are that short; later turns take whatever
    # comes.
    conversation.add_exchange((chat.small_talk if rng.random() < 0.6 else chat.short_exchange)(rng, side), count)
    fill(rng, side, conversation, budget, count)
    return conversation
