"""One conversation with two tools, as the client libraries lead it: each keeps the replies in its
own messages and sends them back.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from openai import OpenAI

SYSTEM = "You plan journeys. Look everything up."


@tool
def get_weather(city: Literal["Oslo", "Rome", "Lima"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city over some days."""
    return f"In {city}, {days} days of light rain, then sun; 17 degrees at noon and a wind from the west."


@tool
def find_train(start: Literal["Oslo", "Bonn"], end: Literal["Rome", "Wien"], direct: bool) -> str:
    """The next train between two cities."""
    return f'{{"from": "{start}", "to": "{end}", "direct": {str(direct).lower()}, "leaves": "10:42", "price": 89.5}}'


TOOLS = {one.name: one for one in (get_weather, find_train)}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a client saw of one reply. `calls` are names and arguments."""

    calls: list[tuple[str, dict[str, Any]]]
    text: str
    finish_reason: str
    n_prompt: int
    n_cached: int
    n_reply: int


class Agent(ABC):
    """`ask` adds the model's reply to the conversation, `answer` the results of its calls."""

    @abstractmethod
    def ask(self, **params: Any) -> Turn: ...

    @abstractmethod
    def answer(self) -> list[str]: ...


class OpenAIAgent(Agent):
    def __init__(self, url: str, model: str, task: str, *, streamed: bool) -> None:
        self._client = OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60)
        self._model = model
        self._streamed = streamed
        self._messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]

    def ask(self, **params: Any) -> Turn:
        tools = [convert_to_openai_tool(one, strict=True) for one in TOOLS.values()]
        request = {"model": self._model, "messages": self._messages, "tools": tools, **params}
        if self._streamed:
            with self._client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
                reply = stream.get_final_completion()
        else:
            reply = self._client.chat.completions.create(**request)
        choice, usage = reply.choices[0], reply.usage
        self._messages.append(choice.message)
        self._calls = choice.message.tool_calls or []
        return Turn(
            [(call.function.name, json.loads(call.function.arguments)) for call in self._calls],
            choice.message.content or "",
            choice.finish_reason,
            usage.prompt_tokens,
            usage.prompt_tokens_details.cached_tokens,
            usage.completion_tokens,
        )

    def answer(self) -> list[str]:
        results = [TOOLS[call.function.name].invoke(json.loads(call.function.arguments)) for call in self._calls]
        self._messages += [
            {"role": "tool", "tool_call_id": call.id, "content": result}
            for call, result in zip(self._calls, results, strict=True)
        ]
        return results


class LangChainAgent(Agent):
    def __init__(self, url: str, model: str, task: str, *, streamed: bool) -> None:
        self._model = ChatOpenAI(
            base_url=url, api_key="unused", model=model, max_retries=0, timeout=60, stream_usage=True
        )
        self._streamed = streamed
        self._messages: list[BaseMessage] = [SystemMessage(SYSTEM), HumanMessage(task)]

    def ask(self, **params: Any) -> Turn:
        model = self._model.bind_tools(list(TOOLS.values()), **params)
        message = reduce(add, model.stream(self._messages)) if self._streamed else model.invoke(self._messages)
        self._messages.append(message)
        usage = message.usage_metadata
        return Turn(
            [(call["name"], call["args"]) for call in message.tool_calls],
            message.text,
            message.response_metadata["finish_reason"],
            usage["input_tokens"],
            usage["input_token_details"]["cache_read"],
            usage["output_tokens"],
        )

    def answer(self) -> list[str]:
        results = [TOOLS[call["name"]].invoke(call) for call in self._messages[-1].tool_calls]
        self._messages += results
        return [result.content for result in results]
