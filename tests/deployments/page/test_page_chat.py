"""The chat in a real browser, against the real application over fake models."""

import json
import re
import threading

import pytest
from playwright.sync_api import Page, expect

from erllama.chat.tool_formats.json_format import HERMES
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, replies, served
from tests.support.http_site import serving
from tests.support.page_models import Cutting, held, remembering
from tests.support.recorded_model import RecordedModel

BEGUN = "The first half of it"  # five items of the script


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#model")).to_have_value("demo")


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def replied(page: Page, n: int = 1) -> None:
    """Until there are `n` replies on the page, and all have ended well."""
    expect(page.locator(".message.assistant[data-state=done]")).to_have_count(n)


def last_words(request) -> str:
    """What the user said last, in the form of `FakePrompts`."""
    return bytes(request.prompt_tokens).decode().rsplit("user: ", 1)[1].removesuffix("\nassistant: ")


def test_a_chat_and_a_warm_second_turn(page):
    model = FakeModel(remembering(lambda request: f"You said {last_words(request)}."))
    with serving(app_of(served(model))) as url:
        open_page(page, url)
        ask(page, "one")
        replied(page)
        assert page.locator(".message.assistant > .text").last.inner_text() == "You said one."
        assert "0 cached" in page.locator(".message.assistant .stats").inner_text()
        ask(page, "two")
        replied(page, 2)
        first, second = (bytes(request.prompt_tokens) for request in model.requests)
        begun = first + b"You said one."
        assert second.startswith(begun)
        told = page.locator(".message.assistant .stats").last.inner_text()
        assert f"{len(begun)} cached" in told
        assert f"{len(second) - len(begun)} computed" in told
        assert re.search(r"\d+ ms to first token", told)
        expect(page.locator("#announcer")).to_contain_text(f"{len(begun)} of {len(second)} of the prompt cached")
        page.reload()  # this browser keeps it
        replied(page, 2)
        assert page.locator(".sidebar .title").all_inner_texts() == ["one"]


def test_settings_and_files_reach_the_model(page):
    model = FakeModel(replies("yes"))
    with serving(app_of(served(model))) as url:
        open_page(page, url)
        page.get_by_role("button", name="Settings").click()
        page.locator("[data-setting=system]").fill("Be brief.")
        for name, value in {"temperature": "0.5", "top_p": "0.25", "max_tokens": "2", "seed": "7"}.items():
            page.locator(f"[data-setting={name}]").fill(value)
        page.locator("input[type=file]").set_input_files(
            [
                {"name": "a.txt", "mimeType": "text/plain", "buffer": b"has ``` inside"},
                {"name": "b.bin", "mimeType": "application/octet-stream", "buffer": b"\x00\xff"},
            ]
        )
        expect(page.locator(".chip")).to_have_count(1)
        expect(page.locator(".composer .error")).to_contain_text("b.bin")
        ask(page, "What is it?")
        replied(page)
        page.reload()
        replied(page)
        expect(page.locator("[data-setting=system]")).to_have_value("Be brief.")
        expect(page.locator(".note").last).to_contain_text("limit of tokens")
    [request] = model.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, request.max_tokens) == (0.5, 0.25, 7, 2)
    said = bytes(request.prompt_tokens).decode()
    assert said == "system: Be brief.\nuser: File: a.txt\n````\nhas ``` inside\n````\n\nWhat is it?\nassistant: "


def test_an_edit_is_a_branch_and_a_new_reply_is_one_too(page):
    n_asked = iter(range(1, 9))
    model = FakeModel(remembering(lambda request: f"{last_words(request)} {next(n_asked)}"))
    with serving(app_of(served(model))) as url:
        open_page(page, url)
        ask(page, "a")
        replied(page)
        ask(page, "more")
        replied(page, 2)
        page.locator(".message.user").first.get_by_role("button", name="Edit").click()
        page.locator("dialog textarea").fill("b")
        page.locator("dialog").get_by_role("button", name="Send").click()
        replied(page, 1)
        shown = page.locator(".message > .text")
        expect(shown).to_have_text(["b", "b 3"])
        page.locator(".message.assistant").get_by_role("button", name="Regenerate").click()
        expect(shown).to_have_text(["b", "b 4"])
        replied(page, 1)
        branches = page.get_by_role("group", name="Branches")
        expect(branches).to_contain_text(["2/2", "2/2"])
        branches.last.get_by_role("button", name="Previous branch").click()
        expect(shown).to_have_text(["b", "b 3"])
        branches.first.get_by_role("button", name="Previous branch").click()
        expect(shown).to_have_text(["a", "a 1", "more", "more 2"])
        page.reload()
        expect(shown).to_have_text(["a", "a 1", "more", "more 2"])
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="JSON").click()
        kept = json.loads(download.value.path().read_text())
        assert sorted(message["content"] for message in kept["messages"].values()) == [
            "a", "a 1", "b", "b 3", "b 4", "more", "more 2",
        ]  # fmt: skip
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Markdown").click()
        text = download.value.path().read_text()
        assert re.findall(r"^(?:## )?(\S.*)$", text, re.MULTILINE) == [
            "# a", "User", "a", "Assistant (demo)", "a 1", "User", "more", "Assistant (demo)", "more 2",
        ]  # fmt: skip


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_reply_that_is_stopped_stays_and_can_go_on(page, way):
    gate, gone = threading.Event(), threading.Event()
    model = FakeModel(held(replies("One two three four.", per_item=4), 2, gate, gone))
    with serving(app_of(served(model))) as url:
        try:
            open_page(page, url)
            ask(page, "count")
            text = page.locator(".message.assistant > .text")
            expect(text).to_have_text("One two")
            if way == "button":
                page.locator("#stop").click()
            else:
                page.keyboard.press("Escape")
            expect(page.locator(".message.assistant")).to_have_attribute("data-state", "stopped")
            expect(page.locator(".message.assistant .note")).to_contain_text("Stopped.")
            expect(page.locator("#send")).to_be_visible()
            assert gone.wait(30), "the server stops computing, too"
        finally:
            gate.set()
        model.script = replies(" three.")
        page.get_by_role("button", name="Go on").click()
        replied(page)
        expect(text).to_have_text("One two three.")
    assert len(model.cancelled) == 1
    assert bytes(model.requests[1].prompt_tokens).decode().endswith("assistant: One two")


def lose(page: Page, url: str, gate: threading.Event) -> None:
    """A reply of which the page has `BEGUN` when its connection goes."""
    open_page(page, url)
    ask(page, "Tell me.")
    try:
        expect(page.locator(".message.assistant > .text")).to_have_text(BEGUN)
    finally:
        gate.set()
    expect(page.locator(".message.assistant")).to_have_attribute("data-state", "lost")
    expect(page.get_by_role("alert").filter(has_text="The connection was lost")).to_be_visible()


def test_a_lost_connection_is_told_and_the_stream_goes_on_where_it_was(page):
    gate = threading.Event()
    model = RecordedModel(held(replies(f"{BEGUN}. The second half of it."), 5, gate))
    cutting = Cutting(app_of(served(model), resume_grace_s=60.0), b"cond")
    with serving(cutting) as url:
        lose(page, url, gate)
        page.reload()
        expect(page.locator(".message.assistant")).to_have_attribute("data-state", "lost")
        page.get_by_role("button", name="Go on").click()
        replied(page)
        expect(page.locator(".message.assistant > .text")).to_have_text(f"{BEGUN}. The second half of it.")
    [last] = cutting.last_event_ids
    assert re.fullmatch(r"\S+\.\d+", last)
    assert len(model.requests) == 1


def test_a_stream_that_nobody_keeps_goes_on_behind_its_text(page):
    gate = threading.Event()
    model = FakeModel(held(replies(f"{BEGUN}. The second half of it."), 5, gate))
    cutting = Cutting(app_of(served(model), resume_grace_s=60.0), b". Th")
    with serving(cutting) as url:
        lose(page, url, gate)
        model.script = replies(" and the rest.")
        page.get_by_role("button", name="Go on").click()
        replied(page)
        expect(page.locator(".message.assistant > .text")).to_have_text(f"{BEGUN} and the rest.")
    assert len(cutting.last_event_ids) == 1, "the server was asked first"


def test_calls_and_reasoning_are_folded_and_the_user_gives_the_results(page):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    model = FakeModel(replies(f"<think>Let me see.</think>I will look.\n{call}"))
    with serving(app_of(served(model, FakePrompts(tool_format=HERMES)))) as url:
        open_page(page, url)
        page.get_by_role("button", name="Settings").click()
        tools = page.locator("[data-setting=tools]")
        tools.fill("[{")
        expect(page.locator("#tools-note")).to_contain_text("no JSON")
        tools.fill(
            json.dumps(
                [
                    {
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                        },
                    }
                ]
            )
        )
        expect(page.locator("#tools-note")).to_have_text("")
        ask(page, "How is it in Ulm?")
        replied(page)
        folded = page.locator(".message.assistant details:visible")
        expect(folded.locator("summary")).to_have_text(["Reasoning", "Calls weather"])
        assert folded.evaluate_all("all => all.map((one) => one.open)") == [False, False]
        folded.last.locator("summary").click()
        expect(folded.last.locator("code")).to_have_text('{\n  "city": "Ulm"\n}')
        model.script = replies("It rains.")
        page.get_by_role("button", name="Give the results of the calls").click()
        page.locator("dialog textarea").fill("rain")
        page.locator("dialog").get_by_role("button", name="Send").click()
        replied(page, 2)
        expect(page.locator(".message > .text").last).to_have_text("It rains.")
    assert bytes(model.requests[1].prompt_tokens).decode().endswith("tool: rain\nassistant: ")


def test_a_key_is_asked_for_and_kept_in_this_tab(page):
    model = FakeModel(replies("Hello."))
    with serving(app_of(served(model), api_keys=("secret",))) as url:
        page.goto(url)
        box = page.get_by_role("dialog", name="API key")
        box.get_by_label("Key").fill("wrong")
        box.get_by_role("button", name="Use it").click()
        expect(box).to_be_visible()  # it was refused: asked again
        box.get_by_label("Key").fill("secret")
        box.get_by_role("button", name="Use it").click()
        expect(page.locator("#model")).to_have_value("demo")
        ask(page, "hi")
        replied(page)
        assert page.evaluate("[sessionStorage.length, JSON.stringify(localStorage).includes('secret')]") == [1, False]
        page.reload()
        expect(page.locator("#model")).to_have_value("demo")


def test_an_error_is_told_in_its_own_words_and_can_be_tried_again(page):
    model = FakeModel(replies("Good."))
    with serving(app_of(served(model, FakePrompts(n_ctx=64)))) as url:
        open_page(page, url)
        ask(page, "x" * 200)
        expect(page.get_by_role("alert").filter(has_text="maximum context length is 64 tokens")).to_be_visible()
        page.locator(".message.user").get_by_role("button", name="Edit").click()
        page.locator("dialog textarea").fill("short")
        page.locator("dialog").get_by_role("button", name="Send").click()
        replied(page)
        expect(page.locator(".message.assistant > .text")).to_have_text("Good.")


def test_the_keyboard_is_enough(page):
    with serving(app_of(served(FakeModel(replies("Hello.", per_item=1))))) as url:
        open_page(page, url)
        page.evaluate("document.body.tabIndex = -1, document.body.focus()")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("hi")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("there")
        page.keyboard.press("Enter")
        replied(page)
        expect(page.locator(".message.user > .text")).to_have_text("hi\nthere")
        expect(page.locator("#prompt")).to_be_focused()


def test_a_screen_reader_hears_of_a_reply_twice_and_not_per_token(page):
    with serving(app_of(served(FakeModel(replies("word " * 60, per_item=1))))) as url:
        open_page(page, url)
        page.evaluate(
            """() => {
                window.heard = [];
                const note = () => window.heard.push(document.getElementById("announcer").textContent);
                new MutationObserver(note).observe(document.getElementById("announcer"), { childList: true });
            }"""
        )
        assert page.locator("[aria-live]").count() == 1
        ask(page, "hi")
        replied(page)
        assert page.evaluate("window.heard") == [
            "The reply begins.",
            "The reply is complete: 300 tokens, 3 of 20 of the prompt cached.",
        ]
