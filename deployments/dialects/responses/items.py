"""Items of a response's output while they are made: each gives the events that tell of it.

An event is its type and the JSON members of its data, without braces; the writer adds type and
sequence number. What a delta repeats is encoded once per item.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from deployments.dialects.responses.custom_input import CustomInput
from deployments.dialects.responses.sealed import seal
from deployments.dialects.responses.stored.response import item_id
from deployments.dialects.responses.tools import ClientTool
from deployments.http.body import encode

Event = tuple[str, str]


def _members(**fields: Any) -> str:
    return encode(fields)[1:-1]


class OutputItem(ABC):
    """One item. `open`, then `push` for each piece, then `close`; `body` is the item as it stands."""

    prefix: ClassVar[str]

    def __init__(self, index: int, response_id: str) -> None:
        self.id = item_id(self.prefix, response_id, index)
        self.status = "in_progress"
        self._pieces: list[str] = []
        self._index = index
        self._place = _members(item_id=self.id, output_index=index)

    @property
    def _text(self) -> str:
        """What was pushed so far."""
        return "".join(self._pieces)

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The item."""

    @abstractmethod
    def _begin(self) -> Iterator[Event]:
        """The events behind that of the item itself."""

    @abstractmethod
    def push(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        """The next piece of it; `logprobs` are those of a text's tokens."""

    @abstractmethod
    def _end(self) -> Iterator[Event]:
        """The events that close what `_begin` has opened."""

    def open(self) -> Iterator[Event]:
        yield self._whole("response.output_item.added")
        yield from self._begin()

    def close(self, status: str) -> Iterator[Event]:
        """`status` is `completed`, or `incomplete` for an item that was cut off."""
        yield from self._end()
        self.status = status
        yield self._whole("response.output_item.done")

    def _whole(self, kind: str) -> Event:
        return kind, f'"output_index":{self._index},"item":{encode(self.body())}'


class TextItem(OutputItem):
    prefix = "msg"

    def __init__(self, index: int, response_id: str) -> None:
        super().__init__(index, response_id)
        self._place += ',"content_index":0'
        self._logprobs: list[dict[str, Any]] = []
        self._begun = False

    def body(self) -> dict[str, Any]:
        content = [self._part()] if self._begun else []
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "annotations": [], "logprobs": self._logprobs, "text": self._text}

    def _begin(self) -> Iterator[Event]:
        self._begun = True
        yield "response.content_part.added", f'{self._place},"part":{encode(self._part())}'

    def push(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        yield self.delta(text, logprobs)

    def delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Event:
        """The one event that `push` gives."""
        self._pieces.append(text)
        if not logprobs:
            return "response.output_text.delta", f'{self._place},"delta":{encode(text)},"logprobs":[]'
        self._logprobs += logprobs
        return "response.output_text.delta", f'{self._place},"delta":{encode(text)},"logprobs":{encode(logprobs)}'

    def _end(self) -> Iterator[Event]:
        members = _members(text=self._text, logprobs=self._logprobs)
        yield "response.output_text.done", f"{self._place},{members}"
        yield "response.content_part.done", f'{self._place},"part":{encode(self._part())}'


class ReasoningItem(OutputItem):
    """What the model thought: as text, or as the summary where one is asked for. `sealed`: it
    carries `encrypted_content` too.
    """

    prefix = "rs"

    def __init__(self, index: int, response_id: str, *, summary: bool, sealed: bool) -> None:
        super().__init__(index, response_id)
        self._summary = summary
        self._sealed = sealed
        self._place += ',"summary_index":0' if summary else ',"content_index":0'

    def body(self) -> dict[str, Any]:
        parts = [self._part()] if self._text else []
        shown = {"summary": parts} if self._summary else {"summary": [], "content": parts}
        sealed = {"encrypted_content": seal(self._text)} if self._sealed and self.status != "in_progress" else {}
        return {"id": self.id, "type": "reasoning", "status": self.status, **shown, **sealed}

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text" if self._summary else "reasoning_text", "text": self._text}

    def _begin(self) -> Iterator[Event]:
        kind = "reasoning_summary_part" if self._summary else "content_part"
        yield f"response.{kind}.added", f'{self._place},"part":{encode(self._part())}'

    def push(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        self._pieces.append(text)
        yield f"response.{self._text_kind}.delta", f'{self._place},"delta":{encode(text)}'

    def _end(self) -> Iterator[Event]:
        kind = "reasoning_summary_part" if self._summary else "content_part"
        yield f"response.{self._text_kind}.done", f'{self._place},"text":{encode(self._text)}'
        yield f"response.{kind}.done", f'{self._place},"part":{encode(self._part())}'

    @property
    def _text_kind(self) -> str:
        return "reasoning_summary_text" if self._summary else "reasoning_text"


class FunctionCallItem(OutputItem):
    """A call whose arguments are given character for character as the model wrote them."""

    prefix = "fc"

    def __init__(self, index: int, response_id: str, tool: ClientTool) -> None:
        super().__init__(index, response_id)
        self._tool = tool
        self._call_id = item_id("call", response_id, index)

    def body(self) -> dict[str, Any]:
        call = {"call_id": self._call_id, **self._tool.names, "arguments": self._text}
        return {"id": self.id, "type": "function_call", "status": self.status, **call}

    def _begin(self) -> Iterator[Event]:
        return iter(())

    def push(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        self._pieces.append(text)
        yield "response.function_call_arguments.delta", f'{self._place},"delta":{encode(text)}'

    def _end(self) -> Iterator[Event]:
        members = _members(name=self._tool.name, arguments=self._text)
        yield "response.function_call_arguments.done", f"{self._place},{members}"


class CustomCallItem(OutputItem):
    """A call of a custom tool: the text `input` out of the arguments."""

    prefix = "ctc"

    def __init__(self, index: int, response_id: str, tool: ClientTool) -> None:
        super().__init__(index, response_id)
        self._tool = tool
        self._call_id = item_id("call", response_id, index)
        self._reader = CustomInput()

    def body(self) -> dict[str, Any]:
        call = {"call_id": self._call_id, **self._tool.names, "input": self._text}
        return {"id": self.id, "type": "custom_tool_call", "status": self.status, **call}

    def _begin(self) -> Iterator[Event]:
        return iter(())

    def push(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Event]:
        yield from self._delta(self._reader.push(text))

    def _delta(self, text: str) -> Iterator[Event]:
        if text:
            self._pieces.append(text)
            yield "response.custom_tool_call_input.delta", f'{self._place},"delta":{encode(text)}'

    def _end(self) -> Iterator[Event]:
        yield from self._delta(self._reader.finish())
        yield "response.custom_tool_call_input.done", f'{self._place},"input":{encode(self._text)}'


def call_item(index: int, response_id: str, tool: ClientTool) -> OutputItem:
    kind = CustomCallItem if tool.custom else FunctionCallItem
    return kind(index, response_id, tool)
