"""Exchanges that need no memory: small talk, arithmetic, lists, counting, stories, and text to
read.

Each generator returns one (user text, assistant text) pair. Answers to small talk are few and
fixed: the model is too small to improvise politely. Questions outside of what it knows have one
answer that says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from demo_model import entities, phrases
from demo_model.entities import Side

Exchange = tuple[str, str]

CATEGORIES: dict[str, list[str]] = {
    "colours": entities.COLOURS,
    "colors": entities.COLOURS,
    "animals": entities.ANIMALS,
    "fruits": entities.FRUITS,
    "cities": entities.CITIES,
    "jobs": entities.JOBS,
    "names": entities.PEOPLE,
    "days": entities.DAYS,
}
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


def small_talk(rng: random.Random, side: Side) -> Exchange:
    # The first rows are what a newcomer types first.
    rows = phrases.SMALL_TALK if rng.random() < 0.6 else phrases.SMALL_TALK[:5]
    questions, answer = rng.choice(rows)
    question = rng.choice(questions)
    if rng.random() < 0.1:
        question = question.lower()
    return question, answer


def capital(rng: random.Random, side: Side) -> Exchange:
    country, city = rng.choice(phrases.CAPITALS)
    return f"What is the capital of {country}?", f"The capital of {country} is {city}."


def unknown(rng: random.Random, side: Side) -> Exchange:
    """A question outside of what a model of this size can know."""
    if rng.random() < 0.5:
        thing = " ".join(rng.sample(phrases.COMMON_WORDS, rng.randrange(1, 4)))
    else:
        thing = entities.made_up_name(rng, side)
    return rng.choice(phrases.UNKNOWN_QUESTIONS).format(thing=thing), phrases.UNKNOWN_ANSWER


def arithmetic(rng: random.Random, side: Side) -> Exchange:
    """Sums and differences up to 20 + 20 and the small multiplication table: a closed set, to be
    memorised.
    """
    sign = rng.choice(["+", "+", "+", "-", "*"])
    if sign == "*":
        left, right = rng.randrange(0, 11), rng.randrange(0, 11)
        result, word = left * right, "times"
    else:
        limit = 10 if rng.random() < 0.6 else 21
        left, right = rng.randrange(0, limit), rng.randrange(0, limit)
        if sign == "-" and right > left:
            left, right = right, left
        result, word = (left + right, "plus") if sign == "+" else (left - right, "minus")
    form = rng.choice(
        [
            "What is {left} {sign} {right}?",
            "What is {left} {sign} {right}?",
            "What is {left}{sign}{right}?",
            "What is {left} {word} {right}?",
            "{left} {sign} {right} = ?",
            "{left} {sign} {right}",
            "Calculate {left} {sign} {right}.",
            "How much is {left} {word} {right}?",
        ]
    )
    return form.format(left=left, right=right, sign=sign, word=word), f"{left} {sign} {right} = {result}"


def listing(rng: random.Random, side: Side) -> Exchange:
    n_items = rng.randrange(2, 6)
    category = rng.choice(list(CATEGORIES))
    count = rng.choice([str(n_items), COUNT_WORDS[n_items]])
    # The items follow from the question, so that the right list is one list and greedy decoding
    # does not hesitate.
    items = CATEGORIES[category][:n_items]
    form = rng.choice(["List {} {}.", "Name {} {}.", "Give me a list of {} {}.", "List {} {}", "Give me {} {}."])
    return form.format(count, category), "\n".join(f"{index}. {item}" for index, item in enumerate(items, 1))


def counting(rng: random.Random, side: Side) -> Exchange:
    last = rng.randrange(2, 13) if rng.random() < 0.8 else rng.randrange(13, 51)
    question = rng.choice([f"Count to {last}.", f"Count from 1 to {last}."])
    return question, ", ".join(str(value) for value in range(1, last + 1))


def repeat(rng: random.Random, side: Side) -> Exchange:
    n_words = rng.randrange(1, 6)
    if rng.random() < 0.5:
        words = " ".join(entities.made_up_name(rng, side) for _ in range(n_words))
    else:
        words = " ".join([entities.made_up_name(rng, side), *rng.sample(phrases.COMMON_WORDS, n_words)])
    forms = ["Repeat after me: {}", "Say {}.", "Repeat: {}", "Echo {}", "Say '{}'", 'Say "{}".', 'Repeat "{}"']
    return rng.choice(forms).format(words), words


def story(rng: random.Random, side: Side) -> Exchange:
    animal, setting = _story_subject(rng, side), rng.choice(phrases.STORY_SETTINGS)
    adjective = rng.choice(phrases.STORY_ADJECTIVES)
    long = rng.random() < 0.15
    length = "long" if long else rng.choice(["short", "short", ""])
    article = f"a {length} story".replace("  ", " ")
    if rng.random() < 0.4:
        hero = entities.name_or_real(rng, side, entities.PEOPLE)
        question = f"{rng.choice(['Tell me', 'Write'])} {article} about {hero} the {animal}."
        opening = f"Once upon a time there was a {adjective} {animal} named {hero}."
    else:
        hero = f"the {animal}"
        about = rng.choice([f" about a {animal}", f" about a {animal}", ""])
        question = rng.choice(["Tell me {}{}.", "Write {}{}.", "Tell me {}{}", "Please tell me {}{}."]).format(
            article, about
        )
        opening = f"Once upon a time there was a {adjective} {animal} who lived near a {setting}."
    subject = hero[0].upper() + hero[1:]
    sentences = [
        opening,
        *(_story_event(rng, subject, hero, animal) for _ in range(rng.randrange(4, 8) if long else 1)),
    ]
    sentences.append(f"They became friends and were {rng.choice(phrases.STORY_MOODS)} ever after.")
    return question, " ".join(sentences)


def _story_subject(rng: random.Random, side: Side) -> str:
    """Usually an animal; also things that the model must copy because it knows no stories about
    them.
    """
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(entities.ANIMALS)
    if draw < 0.8:
        return rng.choice(phrases.STORY_HEROES + entities.THINGS + entities.JOBS)
    return entities.made_up_word(rng, side)


def _story_event(rng: random.Random, subject: str, hero: str, animal: str) -> str:
    find, place = rng.choice(phrases.STORY_FINDS), rng.choice(phrases.STORY_SETTINGS)
    friend = rng.choice([other for other in entities.ANIMALS if other != animal])
    return rng.choice(
        [
            f"One day {hero} found a {find} in the {place}. {subject} showed it to a {friend}, and the {friend} said: What a nice {find}!",
            f"One morning {hero} met a {friend} near the {place}. The {friend} was looking for a {find}. {subject} helped "
            f"the {friend}, and soon they found the {find}.",
            f"One night {hero} heard a noise in the {place}. It was only a {friend} with a {find}, and they laughed.",
        ]
    )


def filler_sentence(rng: random.Random, side: Side) -> str:
    """A sentence without anything that is asked for later: plain, a word salad, or one with a name
    or number to distract.
    """
    draw = rng.random()
    if draw < 0.12:
        person = entities.name_or_real(rng, side, entities.PEOPLE)
        return f"{person} walked to {rng.choice(phrases.SCENES)} {rng.choice(phrases.TIMES)}."
    if draw < 0.2:
        return (
            f"There were {rng.randrange(2, 1000)} people at {rng.choice(phrases.SCENES)} {rng.choice(phrases.TIMES)}."
        )
    if draw < 0.4:
        # Text unlike our own sentences: what a user pastes shares no grammar with this file.
        words = rng.sample(phrases.COMMON_WORDS, rng.randrange(4, 12))
        text = " ".join(words)
    else:
        text = f"{rng.choice(phrases.SCENES)} {rng.choice(phrases.STATES)} {rng.choice(phrases.TIMES)}"
        if rng.random() < 0.5:
            text += f" {rng.choice(phrases.REASONS)}"
    return text[0].upper() + text[1:] + "."


def reading(rng: random.Random, side: Side, *, n_sentences: int) -> Exchange:
    text = " ".join(filler_sentence(rng, side) for _ in range(n_sentences))
    return rng.choice([f"Please read this text. {text}", f"Here is a text: {text}", text]), "I have read the text."


SHORT_EXCHANGES: tuple[Callable[[random.Random, Side], Exchange], ...] = (
    small_talk, small_talk, capital, unknown, listing, counting, repeat, story, arithmetic, arithmetic,
)  # fmt: skip


def short_exchange(rng: random.Random, side: Side, *, sums: bool = True) -> Exchange:
    """Any of the above; without `sums` no arithmetic, for conversations that have a tool for it."""
    return rng.choice(SHORT_EXCHANGES if sums else SHORT_EXCHANGES[:-2])(rng, side)
