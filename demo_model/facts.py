"""Facts a conversation states once and asks for later.

Every answer begins with the words that precede the value in the statement ("The code of the blue
box is ..."): small models learn to continue a matching passage long before they learn to reverse
one. `subject` is unique per question, so a conversation with pairwise different subjects has one
right answer to each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo_model import entities
from demo_model.entities import Side
from demo_model.phrases import NOT_TOLD_ANSWER


@dataclass(frozen=True, slots=True)
class Fact:
    subject: str
    statement: str
    questions: tuple[str, ...]
    answer: str
    value: str


def _user_name(rng: random.Random, side: Side) -> Fact:
    value = entities.name_or_real(rng, side, entities.PEOPLE)
    if side is Side.TRAIN and rng.random() < 0.05:
        value = value.lower()
    forms = ["My name is {}."] * 4 + [
        "Hello! My name is {}.",
        "Hi, my name is {}.",
        "I am {}.",
        "I'm {}.",
        "my name is {}",
    ]
    statement = rng.choice(forms).format(value)
    questions = ("What is my name?", "What's my name?", "Do you remember my name?", "Tell me my name.", "Who am I?")
    return Fact("user name", statement, questions, f"Your name is {value}.", value)


def _user_colour(rng: random.Random, side: Side) -> Fact:
    value = rng.choice(entities.COLOURS)
    word = rng.choice(["colour", "colour", "color"])
    questions = (f"What is my favourite {word}?", f"Which {word} do I like?", f"What's my favourite {word}?")
    return Fact(
        "user colour", f"My favourite {word} is {value}.", questions, f"Your favourite {word} is {value}.", value
    )


def _user_place(rng: random.Random, side: Side) -> Fact:
    value = entities.name_or_real(rng, side, entities.CITIES)
    questions = ("Where do I live?", "Which city do I live in?", "In which city do I live?")
    return Fact("user place", f"I live in {value}.", questions, f"You live in {value}.", value)


def _user_number(rng: random.Random, side: Side) -> Fact:
    value = entities.number(rng, side, n_digits=rng.choice([2, 3, 4]) if side is Side.TRAIN else rng.choice([3, 4]))
    kind = rng.choice(["lucky", "favourite"])
    questions = (f"What is my {kind} number?", f"What's my {kind} number?", f"Tell me my {kind} number.")
    return Fact(f"user {kind}", f"My {kind} number is {value}.", questions, f"Your {kind} number is {value}.", value)


def _user_pet(rng: random.Random, side: Side) -> Fact:
    value = entities.name_or_real(rng, side, entities.PEOPLE)
    animal = rng.choice(entities.ANIMALS)
    questions = (f"What is the name of my {animal}?", f"What is my {animal} called?")
    return Fact(
        f"pet {animal}", f"My {animal} is called {value}.", questions, f"Your {animal} is called {value}.", value
    )


def _place(rng: random.Random, side: Side) -> Fact:
    person = entities.name_or_real(rng, side, entities.PEOPLE)
    value = entities.name_or_real(rng, side, entities.CITIES)
    questions = (f"Where does {person} live?", f"Which city does {person} live in?")
    return Fact(f"place {person}", f"{person} lives in {value}.", questions, f"{person} lives in {value}.", value)


def _colour(rng: random.Random, side: Side) -> Fact:
    person = entities.name_or_real(rng, side, entities.PEOPLE)
    value = rng.choice(entities.COLOURS)
    questions = (f"Which colour does {person} like?", f"What colour does {person} like?")
    statement = f"{person} likes the colour {value}."
    return Fact(f"colour {person}", statement, questions, statement, value)


def _age(rng: random.Random, side: Side) -> Fact:
    person = entities.name_or_real(rng, side, entities.PEOPLE)
    value = str(rng.randrange(10, 100))
    answer = f"{person} is {value} years old."
    return Fact(f"age {person}", answer, (f"How old is {person}?", f"What is the age of {person}?"), answer, value)


def _code(rng: random.Random, side: Side) -> Fact:
    thing = f"{rng.choice(entities.COLOURS)} {rng.choice(entities.THINGS)}"
    value = entities.number(rng, side, n_digits=rng.choice([3, 4, 4]))
    answer = f"The code of the {thing} is {value}."
    questions = (
        f"What is the code of the {thing}?",
        f"Tell me the code of the {thing}.",
        f"What's the code of the {thing}?",
        f"Do you remember the code of the {thing}?",
    )
    return Fact(f"code {thing}", answer, questions, answer, value)


def _secret(rng: random.Random, side: Side) -> Fact:
    kinds = [
        "secret word",
        "secret code",
        "password",
        "name of the project",
        "name of the ship",
        "magic word",
        "code word",
    ]
    kind = rng.choice(kinds)
    draw = rng.random()
    if draw < 0.6:
        value = entities.made_up_name(rng, side)
    elif draw < 0.75:
        value = entities.made_up_word(rng, side)
    else:
        value = entities.code_word(rng, side)
    answer = f"The {kind} is {value}."
    return Fact(f"secret {kind}", answer, (f"What is the {kind}?", f"What's the {kind}?"), answer, value)


def _attribute(rng: random.Random, side: Side) -> Fact:
    part = rng.choice(_PARTS)
    whole = rng.choice(_WHOLES) if rng.random() < 0.6 else entities.made_up_name(rng, side)
    thing = f"{part} of {whole}"
    value = entities.name_or_real(rng, side, entities.PEOPLE)
    answer = f"The {thing} is {value}."
    questions = (f"What is the {thing}?", f"Who is the {thing}?", f"Tell me the {thing}.")
    return Fact(f"attribute {thing}", answer, questions, answer, value)


def _whereabouts(rng: random.Random, side: Side) -> Fact:
    thing = f"{rng.choice(entities.COLOURS)} {rng.choice(entities.OBJECTS)}"
    value = rng.choice(entities.ROOMS)
    answer = f"The {thing} is in the {value}."
    return Fact(f"where {thing}", answer, (f"Where is the {thing}?", f"Where can I find the {thing}?"), answer, value)


def _meeting(rng: random.Random, side: Side) -> Fact:
    person = entities.name_or_real(rng, side, entities.PEOPLE)
    value = rng.choice(entities.DAYS)
    answer = f"The meeting with {person} is on {value}."
    questions = (f"When is the meeting with {person}?", f"On which day is the meeting with {person}?")
    return Fact(f"meeting {person}", answer, questions, answer, value)


_PARTS = entities.words(
    "captain owner king queen director author mayor capital president name leader winner founder nickname"
)
_WHOLES = [
    f"the {noun}"
    for noun in entities.words("ship town company team castle club book school village project island game")
]

ABOUT_USER: tuple[Callable[[random.Random, Side], Fact], ...] = (
    _user_name, _user_colour, _user_place, _user_number, _user_pet,
)  # fmt: skip
ABOUT_WORLD: tuple[Callable[[random.Random, Side], Fact], ...] = (
    _place, _colour, _age, _code, _code, _secret, _secret, _attribute, _whereabouts, _meeting,
)  # fmt: skip


def draw_untold(rng: random.Random, told: list[Fact]) -> Fact | None:
    """A fact about the user that was not told, with the answer that says so; None when the draw was
    told.
    """
    fact = rng.choice(ABOUT_USER)(rng, Side.TRAIN)
    if any(fact.subject == other.subject for other in told):
        return None
    return Fact(fact.subject, "", fact.questions, NOT_TOLD_ANSWER, "")


def draw_facts(rng: random.Random, side: Side, n_facts: int, *, about_user: bool) -> list[Fact]:
    """Facts with pairwise different subjects; `about_user` also admits the first-person kinds."""
    kinds = ABOUT_WORLD + (ABOUT_USER * 2 if about_user else ())
    facts: dict[str, Fact] = {}
    while len(facts) < n_facts:
        fact = rng.choice(kinds)(rng, side)
        facts.setdefault(fact.subject, fact)
    return list(facts.values())
