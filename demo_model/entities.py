"""Words the generated conversations are made of, and the rule for what is held out of training.

Every real word here is used in training. What is held out are made-up names and numbers: a CRC of
the text puts one in eight of them on the evaluation side, so both sides are disjoint without any
list to keep. The rule depends on the text alone, never on a seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from enum import StrEnum


def words(text: str) -> list[str]:
    return text.split()


PEOPLE = words(
    "Anna Alice Bob Ben Carla Clara David Diana Emma Erik Felix Frida George Greta Hannah Henry Ivan Iris Jack Jane John "
    "Julia Karl Kate Laura Leo Lisa Lucy Maria Mark Martin Mary Max Mia Nina Noah Nora Oliver Olga Oscar Paul Paula Peter "
    "Rosa Robert Ruth Sam Sarah Sofia Steve Susan Thomas Tina Tom Vera Victor Walter William Yuki Zoe"
)
CITIES = words(
    "Amsterdam Athens Barcelona Beijing Berlin Boston Brussels Cairo Chicago Copenhagen Delhi Dublin Geneva Hamburg "
    "Helsinki Istanbul Kyoto Lima Lisbon London Lyon Madrid Milan Moscow Munich Naples Nairobi Osaka Oslo Paris Porto "
    "Prague Rome Seattle Seoul Sydney Tokyo Toronto Vienna Warsaw Zurich"
)
COLOURS = words(
    "red blue green yellow orange purple pink brown black white grey gold silver teal violet crimson turquoise"
)
ANIMALS = words("cat dog horse rabbit parrot turtle fox bear wolf owl mouse duck goat sheep cow lion tiger frog")
FRUITS = words("apple banana cherry grape lemon mango orange peach pear plum melon kiwi")
JOBS = words("teacher doctor baker painter farmer pilot nurse cook writer gardener driver singer dentist sailor")
THINGS = words("box door safe locker bag desk drawer cabinet room gate car bike boat house")
ROOMS = words("kitchen garden garage office cellar attic library bathroom bedroom hallway")
OBJECTS = words("key map lamp ring letter umbrella wallet camera hammer ladder book phone")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_ACCENTS = str.maketrans("eaou", "éàöü")
_ONSETS = words("b br c d dr f fl g gr h j k kl l m n p pr qu r s st t tr v w z")
_VOWELS = words("a e i o u ai ea ou")
_CODAS = ("", "", "", "l", "n", "r", "s", "t", "x", "m", "rd", "nt")


class Side(StrEnum):
    """Which made-up words may be used: those seen in training or those kept for evaluation."""

    TRAIN = "train"
    HELD_OUT = "held-out"


def is_held_out(text: str) -> bool:
    return zlib.crc32(text.encode()) % 8 == 0


def _draw(make: Callable[[], str], side: Side) -> str:
    while True:
        text = make()
        if is_held_out(text) == (side is Side.HELD_OUT):
            return text


def made_up_word(rng: random.Random, side: Side) -> str:
    """A pronounceable lower-case word of two or three syllables."""

    def make() -> str:
        n_syllables = 2 if rng.random() < 0.7 else 3
        body = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(n_syllables))
        return body + rng.choice(_CODAS)

    return _draw(make, side)


def made_up_name(rng: random.Random, side: Side) -> str:
    name = made_up_word(rng, side).capitalize()
    if rng.random() < 0.03:
        # Accented letters are two byte tokens each; names have them.
        name = name.translate(_ACCENTS)
    return name


def number(rng: random.Random, side: Side, *, n_digits: int) -> str:
    """A number without leading zero; the held-out rule needs at least three digits to leave enough
    on both sides.
    """
    low = 10 ** (n_digits - 1)
    if n_digits < 3:
        return str(rng.randrange(low, 10 * low))
    return _draw(lambda: str(rng.randrange(low, 10 * low)), side)


def code_word(rng: random.Random, side: Side) -> str:
    """Something to copy letter by letter: QX-482, k7tz9."""
    letters, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"

    def make() -> str:
        if rng.random() < 0.5:
            head = "".join(rng.choices(letters, k=rng.randrange(1, 4))).upper()
            return head + rng.choice(["-", ""]) + "".join(rng.choices(digits, k=rng.randrange(2, 5)))
        text = "".join(rng.choices(letters + digits, k=rng.randrange(4, 8)))
        return text.upper() if rng.random() < 0.3 else text

    return _draw(make, side)


def name_or_real(rng: random.Random, side: Side, real: list[str]) -> str:
    """Evaluation asks only about made-up names; training mixes them with real ones."""
    if side is Side.TRAIN and rng.random() < 0.45:
        return rng.choice(real)
    return made_up_name(rng, side)
