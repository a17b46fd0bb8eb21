"""Runs a workload against `/v1/chat/completions`. One event loop; a reply's events are read as they
come and understood only when it has ended, because the client may share the server's cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from erllama.benchmark.turn import Turn, event_data, read_turn
from erllama.benchmark.workload import Message, Workload, first_messages, next_messages, words_for
from erllama.errors import ErllamaError

_SAMPLE_WORDS = 200
_MAX_REASON = 300


class BenchClient:
    """Does not own `http`, whose base URL is the server's root."""

    def __init__(self, http: httpx.AsyncClient, model: str, workload: Workload, run: str) -> None:
        """`run` names this run: prompts of another name are others."""
        self._http = http
        self._model = model
        self._workload = workload
        self._run = run

    async def calibrate(self) -> int:
        """How many words make a prompt of the wanted length; this also loads a model that sleeps. Raises
        `ErllamaError` when the server refuses, or does not count tokens.
        """
        empty = await self._ask(1, first_messages(0, self._run, -1), n_reply=2)
        sample = await self._ask(1, first_messages(_SAMPLE_WORDS, self._run, -2), n_reply=2)
        for turn in (empty, sample):
            if turn.error and turn.n_prompt is None:
                raise ErllamaError(turn.error)
        if empty.n_prompt is None or sample.n_prompt is None:
            raise ErllamaError("the server does not count tokens in a stream (stream_options.include_usage)")
        return words_for(self._workload.prompt_tokens, _SAMPLE_WORDS, sample.n_prompt, empty.n_prompt)

    async def measure(self, n_words: int, on_turn: Callable[[Turn], None] = lambda turn: None) -> list[Turn]:
        """All turns of all conversations, which run at once. A conversation ends with its first error."""
        conversations = range(self._workload.concurrency)
        found = await asyncio.gather(*(self._converse(number, n_words, on_turn) for number in conversations))
        return [turn for turns in found for turn in turns]

    async def _converse(self, conversation: int, n_words: int, on_turn: Callable[[Turn], None]) -> list[Turn]:
        messages, turns = first_messages(n_words, self._run, conversation), list[Turn]()
        for number in range(1, self._workload.turns + 1):
            turn = await self._ask(number, messages, self._workload.reply_tokens)
            turns.append(turn)
            on_turn(turn)
            if turn.error:
                break
            messages = next_messages(messages, turn.text, f"{self._run} {conversation}", number)
        return turns

    async def _ask(self, number: int, messages: list[Message], n_reply: int) -> Turn:
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": n_reply,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent_s = time.perf_counter()
        try:
            try:
                events = [event async for event in self._events(body)]
            except httpx.RemoteProtocolError:  # the server closed a kept connection in the moment of asking
                sent_s = time.perf_counter()
                events = [event async for event in self._events(body)]
        except (httpx.HTTPError, ErllamaError) as error:
            return Turn(number, sent_s, (), "", error=str(error) or type(error).__name__)
        return read_turn(number, sent_s, events)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[tuple[float, str]]:
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code >= 400:
                told = (await reply.aread()).decode(errors="replace")
                raise ErllamaError(f"the server answered {reply.status_code}: {told[:_MAX_REASON]}")
            async for line in reply.aiter_lines():
                if data := event_data(line):
                    yield time.perf_counter(), data
