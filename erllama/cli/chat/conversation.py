"""A conversation at the terminal: its messages and how replies are asked for. Pure, but for files that the
user names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erllama.errors import InvalidParameter

SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "seed": int,
    "max_tokens": int,
}
MAX_ATTACHED_BYTES = 4 << 20


@dataclass(slots=True)
class Conversation:
    """`attached` are texts that go with the next message."""

    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    attached: list[str] = field(default_factory=list)

    def asked(self) -> list[dict[str, str]]:
        """What is sent."""
        return [{"role": "system", "content": self.system}] * bool(self.system) + self.messages

    def say(self, text: str) -> None:
        content = "\n\n".join([*self.attached, text])
        self.attached.clear()
        self.messages.append({"role": "user", "content": content})

    def answer(self, text: str) -> None:
        """A reply, whole or stopped. An empty one is none: templates refuse it."""
        if text:
            self.messages.append({"role": "assistant", "content": text})

    def undo(self) -> bool:
        """Take the last message of the user back, and what came after it; False when there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                del self.messages[index:]
                return True
        return False

    def take_back_reply(self) -> bool:
        """So that it can be asked for again; False when nothing was asked."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages)

    def set(self, name: str, text: str) -> None:
        """Raises `InvalidParameter`. `default` takes a setting back."""
        kind = SETTINGS.get(name)
        if kind is None:
            raise InvalidParameter(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
        if text == "default":
            self.settings.pop(name, None)
            return
        try:
            self.settings[name] = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InvalidParameter(f"{name} must be {what}, got {text!r}") from None

    def attach(self, path: Path) -> int:
        """A text file goes with the next message; its length in characters. Raises `InvalidParameter`."""
        data = _read(path)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise InvalidParameter(f"{path} is not text (UTF-8)") from None
        fence = "```" if "```" not in text else "~~~~"
        self.attached.append(f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}")
        return len(text)

    def save(self, path: Path) -> None:
        """As JSON, or as Markdown where the name ends so. Raises `InvalidParameter`."""
        try:
            path.write_text(self._markdown() if path.suffix == ".md" else self._json())
        except OSError as error:
            raise InvalidParameter(f"cannot write {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """What `save` wrote as JSON. Raises `InvalidParameter`."""
        try:
            document = json.loads(_read(path))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in document["messages"]]
            settings = {name: SETTINGS[name](value) for name, value in document.get("settings", {}).items()}
            return cls(str(document.get("system", "")), messages, settings)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InvalidParameter(f"{path} is no conversation that /save wrote as JSON") from None

    def _json(self) -> str:
        document = {"system": self.system, "settings": self.settings, "messages": self.messages}
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"

    def _markdown(self) -> str:
        return "\n\n".join(f"## {message['role']}\n\n{message['content']}" for message in self.asked()) + "\n"


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_ATTACHED_BYTES:
            raise InvalidParameter(f"{path} has more than {MAX_ATTACHED_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"cannot read {path}: {error.strerror}") from None
