"""A conversation at the terminal: what is sent, what commands do to it, what stops what."""

import json

import pytest
from typer.testing import CliRunner

from erllama.cli.app import app
from erllama.cli.chat.command import Chat
from erllama.cli.chat.conversation import Conversation
from erllama.cli.chat.prompt_input import messages, terminal_reader
from erllama.cli.chat.replies import Piece, Usage, whole
from erllama.cli.chat.slash_commands import COMMANDS, HELP, Next, run_command
from erllama.errors import EngineStopped

USAGE = Usage(9, 4, 2, 0.1, 20.0, "stop")


class FakeReplies:
    """Says what is in `script`, in turn: texts in pieces, an error, or Ctrl-C in the middle."""

    model = "fake"

    def __init__(self, *script):
        self.script = list(script)
        self.asked = []
        self.closed = 0

    def reply(self, messages, settings):
        self.asked.append(([dict(message) for message in messages], dict(settings)))
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        yield Piece("thinking", reasoning=True)
        yield Piece(said)
        yield USAGE

    def close(self):
        self.closed += 1


def shown(replies, conversation):
    return whole(replies.reply(conversation.asked(), conversation.settings))[0]


def chat_of(*script, others=None):
    replies = FakeReplies(*script)

    def open_replies(name):
        return others[name]

    return Chat(Conversation(), replies, open_replies, shown, lambda: ["fake", "other"]), replies


def said(messages):
    return [message["content"] for message in messages]


def test_each_turn_sends_all_before_it():
    chat, replies = chat_of("one", "two")
    assert chat.take("a")
    assert chat.take("b")
    assert said(replies.asked[1][0]) == ["a", "one", "b"]


def test_a_message_whose_reply_fails_is_taken_back(capsys):
    chat, replies = chat_of(EngineStopped("the server is going away"), "two")
    chat.take("a")
    assert "the server is going away" in capsys.readouterr().err
    chat.take("b")
    assert said(replies.asked[1][0]) == ["b"]


def test_commands_change_what_is_sent(tmp_path):
    (tmp_path / "notes.txt").write_text("some notes\n")
    chat, replies = chat_of("one", "two", "three", "four")
    for line in ("/system Be brief.", "/set temperature 0.5", f"/attach {tmp_path / 'notes.txt'}", "a", "/regenerate"):
        assert chat.take(line)
    asked, settings = replies.asked[1]
    assert said(asked) == ["Be brief.", "notes.txt:\n```\nsome notes\n```\n\na"]
    assert settings == {"temperature": 0.5}
    assert replies.asked[0][0] == asked
    for line in ("/set temperature default", "/system none", "/undo", "c"):
        chat.take(line)
    assert replies.asked[2] == ([{"role": "user", "content": "c"}], {})
    chat.take("/clear")
    chat.take("d")
    assert said(replies.asked[3][0]) == ["d"]
    assert not chat.take("/bye")


def test_another_model_goes_on_with_the_conversation(capsys):
    other = FakeReplies("two")
    chat, replies = chat_of("one", others={"other": other})
    chat.take("a")
    chat.take("/model")
    assert "fake, other" in capsys.readouterr().err
    chat.take("/model other")
    assert replies.closed == 1
    chat.take("b")
    assert said(other.asked[0][0]) == ["a", "one", "b"]


def test_a_conversation_is_saved_and_gone_on_with(tmp_path):
    first = Conversation("sys", settings={"seed": 4})
    first.say("a")
    first.answer("b")
    for name in ("it.json", "it.md"):
        assert run_command(first, f"/save {tmp_path / name}").told.startswith("Saved")
    assert (tmp_path / "it.md").read_text() == "## system\n\nsys\n\n## user\n\na\n\n## assistant\n\nb\n"
    second = Conversation()
    run_command(second, f"/load {tmp_path / 'it.json'}")
    assert (second.asked(), second.settings) == (first.asked(), first.settings)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/sytem x", "did you mean /system?"),
        ("/frobnicate", "see /help"),
        ("/set temperature warm", "temperature must be a number"),
        ("/set seed 1.5", "seed must be a whole number"),
        ("/set colour red", "no setting 'colour'"),
        ("/set temperature", "needs a name and a value"),
        ("/attach", "needs a file"),
        ("/attach /nowhere/x", "cannot read"),
        ("/load /nowhere/x", "cannot read"),
        ("/save /nowhere/x", "cannot write"),
        ("/undo", "nothing to take back"),
        ("/regenerate", "Nothing was asked"),
    ],
)
def test_what_is_wrong_with_a_command_is_told(line, told):
    outcome = run_command(Conversation(), line)
    assert told in outcome.told
    assert outcome.then is Next.ASK


@pytest.mark.parametrize("text", ["", "[]", '{"messages": 3}', '{"messages": [{"role": "user"}]}', "[" * 100_000])
def test_a_file_that_is_no_conversation_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert "is no conversation" in run_command(Conversation(), f"/load {tmp_path / 'x.json'}").told


def test_binary_and_huge_files_are_not_attached(tmp_path):
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    assert "is not text" in run_command(Conversation(), f"/attach {tmp_path / 'b'}").told
    (tmp_path / "h").write_bytes(b"a" * ((4 << 20) + 1))
    assert "more than 4 MiB" in run_command(Conversation(), f"/attach {tmp_path / 'h'}").told


def test_help_names_every_command():
    named = {line.split()[0] for line in HELP}
    assert named == set(COMMANDS) - {"/?", "/exit", "/quit"}


def test_lines_fences_interrupts_and_the_end_of_the_input():
    script = iter(
        ["one", '"""two', "", 'three"""', KeyboardInterrupt(), '"""', KeyboardInterrupt(), "  ", '"""a"""', EOFError()]
    )

    def ask(prompt):
        line = next(script)
        if isinstance(line, BaseException):
            raise line
        return line

    assert list(messages(ask)) == ["one", "two\n\nthree", "a"]


def test_a_terminal_edits_and_remembers(tmp_path):
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        ask = terminal_reader(tmp_path / "state" / "history", sorted(COMMANDS))
        keys.send_text("hellx\x7fo\n")
        assert ask(">>> ") == "hello"
    assert "+hello" in (tmp_path / "state" / "history").read_text()


def test_lines_of_a_pipe_are_messages_and_replies_lines_of_json(command, site):
    told = command("chat", "demo", "--json", said="one\ntwo\n/bye\nthree\n")
    assert [line["text"] for line in told] == ["Hello, world!"] * 2
    assert bytes(site.model.requests[1].prompt_tokens).startswith(b"user: one\nassistant: Hello, world!\nuser: two\n")


def test_without_a_server_the_model_answers_in_this_process():
    arguments = ["chat", "demo", "--local", "--temperature", "0", "--max-tokens", "8", "--json"]
    result = CliRunner().invoke(app, arguments, input="Hello! My name is Alice.\nAnd yours?\n")
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["text"]
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
