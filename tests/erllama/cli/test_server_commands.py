"""Commands that talk to a server: what they ask, what they print, how they end."""

import socket

import pytest
from typer.main import get_command

from erllama.cli.app import app
from erllama.errors import QueueFull
from erllama.hub.events import PullEvent
from tests.support.http_fakes import replies


def test_run_prints_the_reply_alone_and_asks_what_was_typed_and_piped(command, site):
    assert (
        command("run", "demo", "What is this?", "--temperature", "0", "--max-tokens", "5", said="a diff") == "Hello\n"
    )
    [request] = site.model.requests
    assert bytes(request.prompt_tokens) == b"user: What is this?\n\na diff\nassistant: "
    assert (request.sampling.temperature, request.max_tokens) == (0, 5)


def test_run_as_json_says_what_it_cost(command):
    [told] = command("run", "demo", "Hi", "--json", said="")
    assert (told["model"], told["text"]) == ("demo", "Hello, world!")
    usage = told["usage"]
    assert (usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"]) == (20, 3, 13)
    assert usage["finish_reason"] == "stop"


def test_run_raw_goes_on_from_the_text(command, site):
    command("run", "demo", "Once upon", "--raw", said="")
    assert bytes(site.model.requests[0].prompt_tokens) == b"Once upon"


def test_the_only_model_need_not_be_named_and_several_are_listed(command):
    assert "which model? The server has demo, tiny:v1" in command("run", status=1, said="Hi")


def test_run_without_anything_to_ask_says_so(command):
    assert "nothing to ask" in command("run", "demo", status=1, said="")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("run", "nemo", "Hi"), "'nemo'"),
        (("run", "demo", "Hi", "--temperature", "-1"), "temperature"),
        (("stop", "nemo"), "nemo"),
        (("rm", "nemo"), "nemo"),
        (("show", "nemo"), "nemo"),
        (("create", "x", "--from", "nemo"), "nemo"),
        (("create", "x"), "--from"),
        (("cache", "ls"), "managed"),
    ],
)
def test_a_refusal_is_the_servers_own_words_in_one_line(command, words, error):
    said = command(*words, status=1, said="")
    assert error in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1


def test_a_full_queue_says_when_to_come_again(command, site):
    site.model.script = replies("", error=QueueFull("the queue is full", retry_after_s=7))
    assert "the queue is full (try again in 7 s)" in command("run", "demo", "Hi", status=1, said="")


def test_a_reply_that_breaks_off_shows_what_came_and_fails(command, site):
    site.model.script = replies("Hello", error=QueueFull("gone"))
    assert "gone" in command("run", "demo", "Hi", status=1, said="")


@pytest.mark.parametrize(
    "words", [("run", "demo", "Hi"), ("ps",), ("why", "r1"), ("list",), ("cache", "ls"), ("chat", "demo")]
)
def test_no_server_is_an_exit_code_of_its_own(command, words):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        assert "no server answers at" in command(*words, status=3, said="hi\n", host=host)


def test_an_address_that_is_none_is_refused_by_name(command):
    assert "--host" in command("why", "--json", status=1, host="ftp://x")


def test_models_are_listed_with_their_state(command):
    lines = command("list").splitlines()
    assert [line.split()[0] for line in lines] == ["name", "demo", "tiny:v1"]
    assert lines[2].split()[-1] == "loaded"
    [cards] = command("list", "--json")
    assert {card["name"]: card.get("state") for card in cards} == {"demo": "loaded", "tiny:v1": "loaded"}


def test_ps_tells_size_context_place_and_end(command):
    [line] = [line for line in command("ps").splitlines() if "tiny" in line]
    assert line.split()[:4] == ["tiny:v1", "3.0", "MB", "2048"]
    assert "n1" in line
    assert "2026-11-28 01:07:03" in line


def test_a_model_is_pulled_created_copied_stopped_and_removed_at_the_server(command, site):
    site.library.pulled = [
        PullEvent("pulling manifest"),
        PullEvent("pulling", total=9, completed=9),
        PullEvent("success"),
    ]
    assert [event["status"] for event in command("pull", "hf://o/r:q4", "--as", "big", "--json")] == [
        "pulling manifest", "pulling", "success",
    ]  # fmt: skip
    command("create", "pirate", "--from", "tiny:v1", "--system", "Arr.", "--parameter", "temperature=0.5")
    assert site.library.manifests["pirate"].system == "Arr."
    assert site.library.manifests["pirate"].parameters == {"temperature": 0.5}
    command("cp", "pirate", "other")
    command("stop", "tiny:v1")
    site.library.in_use.add("other")
    assert "in use" in command("rm", "other", status=1)
    assert command("rm", "other", "--force", "--json") == [{"name": "other", "deleted": True, "freed_bytes": None}]
    assert [entry[0] for entry in site.library.log] == ["pull", "create", "copy", "unload", "delete"]


def test_a_modelfile_makes_a_model(command, site, tmp_path):
    (tmp_path / "Modelfile").write_text(
        'FROM tiny:v1\nSYSTEM """You are\nbrief."""\nPARAMETER stop "a"\nPARAMETER stop b\n'
    )
    command("create", "brief", "-f", str(tmp_path / "Modelfile"))
    assert site.library.manifests["brief"].system == "You are\nbrief."
    assert site.library.manifests["brief"].parameters == {"stop": ["a", "b"]}


def test_embeddings_come_as_numbers(command):
    assert command("embed", "demo", "abc") == "3 0.5 0.5 0.5\n"
    [told] = command("embed", "demo", "abc", "d", "--json")
    assert told["embeddings"] == [[3.0, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]]


def commands(group, name="erllama"):
    for word, one in getattr(group, "commands", {}).items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{name} {word}")
        else:
            yield f"{name} {word}", one


def test_every_command_has_help_with_an_example():
    missing = [name for name, one in commands(get_command(app)) if "Example: " not in (one.epilog or "")]
    assert missing == []


def test_every_command_prints_json_but_the_one_that_becomes_a_server():
    missing = {
        name
        for name, one in commands(get_command(app))
        if not any("--json" in parameter.opts for parameter in one.params)
    }
    assert missing == {"erllama serve"}
