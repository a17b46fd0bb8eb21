"""`erllama run` and `erllama chat`: one answer, and a conversation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from erllama.cli.chat.conversation import Conversation
from erllama.cli.chat.markdown_stream import MarkdownStream
from erllama.cli.chat.prompt_input import is_terminal, line_reader, messages, terminal_reader
from erllama.cli.chat.replies import LocalReplies, Piece, Replies, Reply, ServerReplies, Usage, model_names, whole
from erllama.cli.chat.slash_commands import COMMANDS, Next, run_command
from erllama.cli.failures import clear_errors
from erllama.cli.output import AsJson, note, print_json
from erllama.cli.server import Key, open_server
from erllama.cli.server_url import Host
from erllama.errors import ErllamaError, InvalidParameter
from erllama.gguf.fingerprint import user_cache_dir

chat_app = typer.Typer()

Model = Annotated[str | None, typer.Argument(help="A model's name; in this process also the path of a GGUF.")]
Local = Annotated[bool, typer.Option("--local", help="Load the model in this process, whatever server runs.")]
HubDir = Annotated[Path | None, typer.Option("--hub", help="The hub's directory, for a model in this process.")]
System = Annotated[str, typer.Option(help="The system text.")]
Temperature = Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of a reply at most.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same reply.")]
Think = Annotated[bool, typer.Option(help="Show what a reasoning model thinks.")]


@chat_app.command(epilog='Example: git diff | erllama run qwen:0.5b "Write a commit message"')
def run(
    model: Model = None,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; text on stdin goes behind it.")] = None,
    local: Local = False,
    host: Host = None,
    api_key: Key = None,
    hub: HubDir = None,
    system: System = "",
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    raw: Annotated[bool, typer.Option(help="Go on from the text, without a chat template.")] = False,
    think: Think = False,
    as_json: AsJson = False,
) -> None:
    """One answer, as it is written. Without a server the model is loaded in this process."""
    with clear_errors():
        text = _question(prompt)
        settings = _settings(temperature=temperature, max_tokens=max_tokens, seed=seed)
        conversation = Conversation(system, settings=settings)
        conversation.say(text)
        with closing(_replies(model, local, host, api_key, hub)) as replies:
            reply = replies.complete(text, settings) if raw else replies.reply(conversation.asked(), settings)
            if as_json:
                answer, reasoning, usage = whole(reply)
                print_json({"model": replies.model, "text": answer, "reasoning": reasoning, "usage": asdict(usage)})
                return
            for item in reply:
                if isinstance(item, Piece) and (think or not item.reasoning):
                    sys.stdout.write(item.text)
                    sys.stdout.flush()
            sys.stdout.write("\n")


@chat_app.command(epilog="Example: erllama chat qwen:0.5b --system 'You are brief.'")
def chat(
    model: Model = None,
    local: Local = False,
    host: Host = None,
    api_key: Key = None,
    hub: HubDir = None,
    system: System = "",
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    think: Think = True,
    as_json: AsJson = False,
) -> None:
    """A conversation. Without a server the model is loaded in this process; /help shows the commands.

    Ctrl-C stops a reply, Ctrl-D leaves. With --json each line of the input is a message, and each line
    of the output a reply.
    """
    with clear_errors():
        settings = _settings(temperature=temperature, max_tokens=max_tokens, seed=seed)

        def open_replies(name: str | None) -> Replies:
            return _replies(name, local, host, api_key, hub)

        show = _show_json if as_json else _Screen(think=think).show
        conversation = Conversation(system, settings=settings)
        chatting = Chat(conversation, open_replies(model), open_replies, show, lambda: _model_names(host, api_key))
        try:
            if is_terminal() and not as_json:
                note(f"{chatting.model}: /help shows the commands, Ctrl-D leaves")
                ask = terminal_reader(user_cache_dir() / "chat_history", sorted(COMMANDS))
            else:
                ask = line_reader(sys.stdin)
            for said in messages(ask):
                if not chatting.take(said):
                    break
        finally:
            chatting.close()


Show = Callable[[Replies, Conversation], str]
"""Shows a reply to a conversation while it comes; returns its text, whole or stopped by Ctrl-C."""


class Chat:
    """A conversation with what answers it. Close it. `open_replies` gives those of another model."""

    def __init__(
        self,
        conversation: Conversation,
        replies: Replies,
        open_replies: Callable[[str], Replies],
        show: Show,
        names: Callable[[], list[str]],
    ) -> None:
        self._conversation = conversation
        self._replies = replies
        self._open_replies = open_replies
        self._show = show
        self._names = names

    @property
    def model(self) -> str:
        return self._replies.model

    def close(self) -> None:
        """Idempotent."""
        self._replies.close()

    def take(self, line: str) -> bool:
        """Do what a line says; False to leave. Errors of a reply are told, and the message is taken back."""
        if not line.startswith("/"):
            self._conversation.say(line)
            self._reply()
            return True
        outcome = run_command(self._conversation, line)
        if outcome.told:
            note(outcome.told)
        if outcome.then is Next.REPLY:
            self._reply()
        elif outcome.then is Next.SWITCH:
            self._switch(outcome.model)
        return outcome.then is not Next.LEAVE

    def _reply(self) -> None:
        try:
            self._conversation.answer(self._show(self._replies, self._conversation))
        except ErllamaError as error:
            self._conversation.undo()
            typer.secho(f"error: {error.message}", fg="red", err=True)

    def _switch(self, name: str) -> None:
        if not name:
            note(f"This is {self.model}. There are {', '.join(self._names()) or 'no others'}.")
            return
        try:
            other = self._open_replies(name)
        except ErllamaError as error:
            typer.secho(f"error: {error.message}", fg="red", err=True)
            return
        self._replies.close()
        self._replies = other
        note(f"Now {name} answers.")


class _Screen:
    """Replies for people: as Markdown on a terminal, as text elsewhere; below each what it cost."""

    def __init__(self, *, think: bool) -> None:
        self._console = Console()
        self._think = think

    def show(self, replies: Replies, conversation: Conversation) -> str:
        said: list[str] = []
        usage: Usage | None = None
        reply = replies.reply(conversation.asked(), conversation.settings)
        try:
            with closing(reply):
                usage = self._drawn(reply, said) if self._console.is_terminal else self._plain(reply, said)
        except KeyboardInterrupt:
            note("stopped")
        if usage is not None:
            note(usage.line())
        return "".join(said)

    def _drawn(self, reply: Reply, said: list[str]) -> Usage | None:
        """What is thought comes first, and stays as it is."""
        with ExitStack() as stack:
            screen: MarkdownStream | None = None
            for item in reply:
                if isinstance(item, Usage):
                    return item
                if item.reasoning:
                    if self._think:
                        self._console.print(item.text, style="dim italic", end="", markup=False, highlight=False)
                    continue
                if screen is None:
                    screen = stack.enter_context(MarkdownStream(self._console))
                said.append(item.text)
                screen.feed(item.text)
        return None

    def _plain(self, reply: Reply, said: list[str]) -> Usage | None:
        for item in reply:
            if isinstance(item, Usage):
                sys.stdout.write("\n")
                return item
            if not item.reasoning:
                said.append(item.text)
                sys.stdout.write(item.text)
                sys.stdout.flush()
        return None


def _show_json(replies: Replies, conversation: Conversation) -> str:
    text, reasoning, usage = whole(replies.reply(conversation.asked(), conversation.settings))
    print_json({"model": replies.model, "text": text, "reasoning": reasoning, "usage": asdict(usage)})
    return text


def _replies(model: str | None, local: bool, host: str | None, key: str | None, hub: Path | None) -> Replies:
    server = None if local else open_server(host, key)
    if server is not None:
        try:
            return ServerReplies(server, model)
        except BaseException:
            server.close()
            raise
    if not local:
        note("no server runs on this machine: the model is loaded in this process")
    return LocalReplies(model or "demo", hub)


def _model_names(host: str | None, key: str | None) -> list[str]:
    server = open_server(host, key)
    if server is None:
        return []
    with server:
        return model_names(server)


def _question(prompt: str | None) -> str:
    """What was given, and behind it what comes on stdin, unless that is a terminal."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not text:
        raise InvalidParameter("there is nothing to ask: give a PROMPT, or text on stdin")
    return text


def _settings(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
