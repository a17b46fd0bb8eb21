"""What the pictures of `caching.md` show: prompts of the demo model, in this process, with a store in a
folder of its own. Counts of tokens, which are the same on every machine; no times.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.events import RequestStats

TURNS = 8
SYSTEM = " ".join(f"Rule {i}: answer question number {i} in short and simple words." for i in range(1, 31))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was sent, and what of it was not computed. `tier` is "" where nothing was found."""

    label: str
    prompt_tokens: int
    cached_tokens: int
    tier: str

    @classmethod
    def of(cls, label: str, stats: RequestStats) -> Prompt:
        where = stats.cache_tier or ""
        tier = where if where in ("", "live") else "store"  # also what the store has accepted and not yet written
        return cls(label, stats.prompt_tokens, stats.cached_tokens, tier)


def measure() -> dict[str, list[Prompt]]:
    """The prompts of each picture. Takes some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return {"conversation": list(conversation(folder)), "places": list(places(folder))}


def model(folder: str) -> Model:
    """Saves also what is short, so that small prompts show it; no busy machine changes what is found."""
    store = StoreConfig(tiers=(TierConfig(folder),), salt="pictures")
    policy = CachePolicy(min_tokens=64, restore_always=True, read_timeout_s=60, evict_save_timeout_s=60)
    return Model(path="demo", n_threads=1, n_parallel=1, store=store, policy=policy)


def conversation(folder: str) -> Iterator[Prompt]:
    """A chat whose client sends all of it with every turn, as clients do."""
    messages = [{"role": "system", "content": SYSTEM}]
    with model(folder) as chat:
        for turn in range(1, TURNS + 1):
            messages.append({"role": "user", "content": f"My favourite number is {turn}. Tell me a short story."})
            done = chat.complete(chat.apply_chat_template(messages), response_tokens=48, temperature=0)
            messages.append({"role": "assistant", "content": done.text})
            yield Prompt.of(f"turn {turn}", done.stats)


def places(folder: str) -> Iterator[Prompt]:
    """One prompt in all the places where its KV may lie, then a branch of it, and another system text."""
    ask = [{"role": "system", "content": f"Be brief. {SYSTEM}"}, {"role": "user", "content": "Hello! Who are you?"}]
    branch = [ask[0], {"role": "user", "content": "What is two plus three?"}]
    other = [{"role": "system", "content": f"Be kind. {SYSTEM}"}, ask[1]]
    with model(folder) as first:
        yield one(first, "first time", ask)
        yield one(first, "again", ask)
        first.evict()
        yield one(first, "its memory given back", ask)
    with model(folder) as second:
        yield one(second, "after a restart", ask)
        yield one(second, "another question", branch)
        yield one(second, "another first word", other)


def one(chat: Model, label: str, messages: list[dict[str, str]]) -> Prompt:
    done = chat.complete(chat.apply_chat_template(messages), response_tokens=8, temperature=0)
    return Prompt.of(label, done.stats)


def to_json(measured: dict[str, list[Prompt]]) -> str:
    """As it lies beside the pictures."""
    return json.dumps({name: [asdict(each) for each in rows] for name, rows in measured.items()}, indent=1) + "\n"


def read_json(text: str) -> dict[str, list[Prompt]]:
    """What `to_json` wrote."""
    return {name: [Prompt(**each) for each in rows] for name, rows in json.loads(text).items()}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(to_json(measure()))
