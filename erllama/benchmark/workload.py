"""What is asked: conversations whose first prompt nobody has seen, and which then go on. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from erllama.errors import InvalidParameter

Message = dict[str, str]
# common ones, about a token each in most vocabularies
_WORDS = (
    "the of and to in is that for it as with on be at by this had not are but from or have an they which one you were "
    "all her she there would their we him been has when who will no more if out so up said what its about than into "
    "them can only other time new some could these two may first then do any like my now over such our man me even"
)
_NEXT_WORDS = 32
_SLACK_TOKENS = 256  # of roles, and of words that are several tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompt_tokens` of a first prompt, about; `turns` of each of `concurrency` conversations, with
    replies of at most `reply_tokens`.
    """

    prompt_tokens: int = 2000
    concurrency: int = 1
    turns: int = 3
    reply_tokens: int = 64

    def __post_init__(self) -> None:
        limits = {
            "prompt_tokens": (16, 1_000_000),
            "concurrency": (1, 512),
            "turns": (1, 100),
            "reply_tokens": (2, 16_384),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                option = "--" + name.replace("_", "-")
                raise InvalidParameter(
                    f"{option} must be between {low} and {high}, got {getattr(self, name)}", param=name
                )

    @property
    def context(self) -> int:
        """Tokens that a conversation has at its end, with some to spare."""
        further = (self.turns - 1) * (self.reply_tokens + 2 * _NEXT_WORDS)
        return int(self.prompt_tokens * 1.1) + self.reply_tokens + further + _SLACK_TOKENS

    def check_context(self, context: int | None) -> None:
        """Raises `InvalidParameter` when a conversation may outgrow a model's context."""
        if context is not None and self.context > context:
            what = f"{self.turns} turns from {self.prompt_tokens} tokens on may need {self.context} tokens"
            raise InvalidParameter(
                f"--prompt-tokens: {what}, and the model's context has {context}", param="prompt_tokens"
            )


def text(n_words: int, seed: str) -> str:
    """Words that are others for another seed, from the first on."""
    draw, words = random.Random(seed), _WORDS.split()
    return " ".join(draw.choice(words) for _ in range(n_words))


def first_messages(n_words: int, run: str, conversation: int) -> list[Message]:
    """Prompts of a run share no prefix with each other, nor with those of another run."""
    return [{"role": "user", "content": f"{text(n_words, f'{run} {conversation}')}. Go on with this text."}]


def next_messages(messages: list[Message], answer: str, run: str, number: int) -> list[Message]:
    """The conversation with an answer and the user's next words."""
    more = f"{text(_NEXT_WORDS, f'{run} turn {number}')}. Go on."
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": more}]


def words_for(prompt_tokens: int, sample_words: int, sample_tokens: int, empty_tokens: int) -> int:
    """How many words make a prompt of so many tokens, by what a sample and a prompt without words took."""
    per_word = max(0.1, (sample_tokens - empty_tokens) / sample_words)
    return max(1, round((prompt_tokens - empty_tokens) / per_word))
