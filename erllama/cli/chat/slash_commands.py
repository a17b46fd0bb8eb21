"""What may be typed in a chat instead of a message: `/help` and its like."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from erllama.cli.chat.conversation import SETTINGS, Conversation
from erllama.errors import InvalidParameter


class Next(StrEnum):
    """What the chat does after a command."""

    ASK = "ask"  # for the next message of the user
    REPLY = "reply"  # to what is there
    SWITCH = "switch"  # to the model that was named
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`told` is for the user; `model` is the one to switch to, "" to tell which there are."""

    then: Next = Next.ASK
    told: str = ""
    model: str = ""


Command = Callable[[Conversation, str], Outcome]


def _help(_: Conversation, __: str) -> Outcome:
    width = max(map(len, HELP))
    lines = [f"{name:<{width}}  {what}" for name, what in HELP.items()]
    return Outcome(told="\n".join([*lines, '"""' + " " * (width - 1) + "begins and ends a message of several lines"]))


def _clear(conversation: Conversation, _: str) -> Outcome:
    conversation.messages.clear()
    conversation.attached.clear()
    return Outcome(told="The conversation is empty.")


def _model(_: Conversation, name: str) -> Outcome:
    return Outcome(Next.SWITCH, model=name)


def _system(conversation: Conversation, text: str) -> Outcome:
    if not text:
        return Outcome(told=conversation.system or "There is no system text.")
    conversation.system = "" if text == "none" else text
    return Outcome(told="The system text holds from the next reply on.")


def _set(conversation: Conversation, text: str) -> Outcome:
    name, _, value = text.partition(" ")
    if value:
        conversation.set(name, value.strip())
    elif name:
        raise InvalidParameter(f"/set needs a name and a value, of {', '.join(SETTINGS)}")
    shown = ", ".join(f"{name} {value}" for name, value in conversation.settings.items())
    return Outcome(told=shown or "All settings are the model's.")


def _save(conversation: Conversation, text: str) -> Outcome:
    path = _path(text, "/save")
    conversation.save(path)
    return Outcome(told=f"Saved as {path}.")


def _load(conversation: Conversation, text: str) -> Outcome:
    found = Conversation.load(_path(text, "/load"))
    conversation.system, conversation.messages = found.system, found.messages
    conversation.settings = found.settings
    return Outcome(told=f"{len(found.messages)} messages.")


def _attach(conversation: Conversation, text: str) -> Outcome:
    path = _path(text, "/attach")
    n_chars = conversation.attach(path)
    return Outcome(told=f"{path.name} ({n_chars} characters) goes with the next message.")


def _undo(conversation: Conversation, _: str) -> Outcome:
    return Outcome(told="Taken back." if conversation.undo() else "There is nothing to take back.")


def _regenerate(conversation: Conversation, _: str) -> Outcome:
    if conversation.take_back_reply():
        return Outcome(Next.REPLY)
    return Outcome(told="Nothing was asked yet.")


def _bye(_: Conversation, __: str) -> Outcome:
    return Outcome(Next.LEAVE)


COMMANDS: Mapping[str, Command] = {
    "/help": _help,
    "/?": _help,
    "/clear": _clear,
    "/model": _model,
    "/system": _system,
    "/set": _set,
    "/save": _save,
    "/load": _load,
    "/attach": _attach,
    "/undo": _undo,
    "/regenerate": _regenerate,
    "/bye": _bye,
    "/exit": _bye,
    "/quit": _bye,
}
HELP: Mapping[str, str] = {
    "/help": "this list",
    "/clear": "begin anew",
    "/model [NAME]": "which models there are, or switch to one",
    "/system [TEXT]": "show or set the system text; 'none' takes it away",
    "/set [NAME VALUE]": f"show or set {', '.join(SETTINGS)}; 'default' takes a value back",
    "/attach FILE": "send a text file with the next message",
    "/regenerate": "another reply to the last message",
    "/undo": "take the last message and its reply back",
    "/save FILE": "as JSON, or as Markdown (.md)",
    "/load FILE": "go on with a saved conversation",
    "/bye": "leave, as Ctrl-D does; Ctrl-C stops a reply",
}


def run_command(conversation: Conversation, line: str) -> Outcome:
    """A line that begins with `/`. What is wrong with it is told."""
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        return Outcome(
            told=f"There is no {name}; did you mean {near[0]}?" if near else f"There is no {name}: see /help."
        )
    try:
        return command(conversation, rest.strip())
    except InvalidParameter as error:
        return Outcome(told=error.message)


def _path(text: str, command: str) -> Path:
    if not text:
        raise InvalidParameter(f"{command} needs a file")
    return Path(text).expanduser()
