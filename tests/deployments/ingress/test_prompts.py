"""The prompt source: loaded once, late, from threads; and on the demo model, the rule about BOS."""

import asyncio
import threading
from typing import ClassVar

import pytest

from cache_store.format.keys import root_key
from deployments.ingress import prompts as prompts_module
from deployments.ingress.prompts import PromptSource
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig
from erllama.errors import InvalidParameter, ModelLoadError, NotSupported
from erllama.grammar.constraint import Constraint, ConstraintKind
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served


class FakeVocab:
    """Token n is byte n; 1 is BOS, written "<s>"."""

    n_vocab = 256
    bos_text, eos_text, adds_bos, pointer = "<s>", "</s>", True, 0
    chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ extra }}"
    named_templates: ClassVar[dict[str, str]] = {}
    loads = 0

    def control_texts(self):
        return ()

    cut_texts = control_texts

    @classmethod
    def load(cls, path):
        cls.loads += 1
        return cls()

    def tokenize(self, text, *, add_special, parse_special):
        text = text.replace("<s>", "\x01") if parse_special else text
        return [1] * add_special + list(text.encode())

    def detokenize(self, ids, *, special=False):
        return bytes(ids).decode()

    def piece(self, token):
        return bytes([token])

    def token_text(self, token):
        return b"<s>" if token == 1 else bytes([token])

    def close(self):
        pass


@pytest.fixture
def vocab(monkeypatch):
    monkeypatch.setattr(prompts_module, "LlamaVocab", FakeVocab)
    monkeypatch.setattr(FakeVocab, "loads", 0)
    return FakeVocab


HI = [{"role": "user", "content": "hi"}]


def prompt_source(path="x", system=None, **more):
    config = EngineConfig(path=path, **more)
    return PromptSource(config, root=root_key("test"), book=TranscriptBook(), system=system)


def test_the_file_is_opened_once_however_many_threads_ask(vocab):
    source = prompt_source("x.gguf")
    assert repr(source) == "<PromptSource x.gguf not loaded>"
    threads = [threading.Thread(target=source.tokenize, args=("a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vocab.loads == 1
    assert repr(source) == "<PromptSource x.gguf loaded>"
    source.close()
    assert not source.loaded


def test_a_prompt_gets_exactly_one_bos(vocab, monkeypatch):
    assert prompt_source().render_chat(HI, None, {}).prompt.tokens == (1, *b"hi")
    assert prompt_source().tokenize("hi") == [1, *b"hi"]
    assert prompt_source().tokenize("hi", add_special=False) == [*b"hi"]
    monkeypatch.setattr(vocab, "chat_template", "{{ messages[0].content }}")
    assert prompt_source().render_chat(HI, None, {}).prompt.tokens == (1, *b"hi")


@pytest.mark.parametrize(
    ("system", "before", "prompt"),
    [
        ("SYS ", [], b"SYS hi"),
        ("SYS ", [{"role": "system", "content": "own "}], b"own hi"),
        ("SYS ", [{"role": "developer", "content": "own "}], b"own hi"),
        ("", [], b"hi"),
        (None, [], b"hi"),
    ],
)
def test_a_models_system_text_stands_before_a_chat_that_has_none(vocab, system, before, prompt):
    source = prompt_source(system=system)
    assert source.render_chat([*before, *HI], None, {}).prompt.tokens == (1, *prompt)
    assert source.render_text([*before, *HI], None, {}) == prompt.decode()
    assert source.of_tenant("salt").render_chat([*before, *HI], None, {}).prompt.tokens == (1, *prompt)


def test_a_template_that_does_not_compile_refuses_chats_and_nothing_else(vocab, monkeypatch):
    monkeypatch.setattr(vocab, "chat_template", "{% nonsense %}")
    source = prompt_source()
    with pytest.raises(NotSupported):
        source.render_chat(HI, None, {})
    assert source.tokenize("hi") == [1, *b"hi"]


def test_template_kwargs_reach_the_template_but_not_its_own_variables(vocab):
    source = prompt_source()
    assert source.render_chat(HI, None, {"extra": "!"}).prompt.tokens == (1, *b"hi!")
    for name in ("messages", "tools", "self", "add_generation_prompt", "bos_token"):
        with pytest.raises(InvalidParameter) as caught:
            source.render_chat(HI, None, {name: "x"})
        assert caught.value.param == "chat_template_kwargs"


def test_a_request_with_tools_is_rendered_by_the_variant_for_tools(vocab, monkeypatch):
    monkeypatch.setattr(vocab, "named_templates", {"tool_use": "T{{ messages[0].content }}"})
    source = prompt_source()
    assert source.render_chat(HI, None, {}).prompt.tokens == (1, *b"hi")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert bytes(source.render_chat(HI, tools, {}).prompt.tokens[1:]).startswith(b"T")
    mine = prompt_source(chat_template="M{{ messages[0].content }}")
    assert mine.render_chat(HI, None, {}).prompt.tokens == (1, *b"Mhi")


def test_a_configured_template_that_is_none_is_an_error_of_the_model(vocab):
    with pytest.raises(ModelLoadError, match=r"^chat_template: cannot read /nowhere/x"):
        prompt_source(chat_template="/nowhere/x").tokenize("a")


def test_a_prompt_may_end_inside_of_the_last_message(vocab, monkeypatch):
    template = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    monkeypatch.setattr(vocab, "chat_template", template)
    source = prompt_source()
    begun = [*HI, {"role": "assistant", "content": "<think>\nxEnd0x "}]
    for ending, prompt in (
        ("opened", b"[hi][<think>\nxEnd0x]["),
        ("closed", b"[hi][<think>\nxEnd0x]"),
        ("continued", b"[hi][<think>\nxEnd0x "),
    ):
        chat = source.render_chat(begun, None, {}, ending)
        assert bytes(chat.prompt.tokens[1:]) == prompt
        assert chat.in_reasoning == (ending == "continued")


@pytest.mark.parametrize(
    "messages", [HI, [*HI, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]]
)
def test_only_words_of_the_assistant_can_be_continued(vocab, messages):
    with pytest.raises(InvalidParameter) as caught:
        prompt_source().render_chat(messages, None, {}, "continued")
    assert caught.value.param == "continue_final_message"


def test_a_template_that_hides_its_last_message_cannot_continue_it(vocab, monkeypatch):
    template = (
        "{% for m in messages %}{% if not loop.last or m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(vocab, "chat_template", template)
    with pytest.raises(NotSupported) as caught:
        prompt_source().render_chat([*HI, {"role": "assistant", "content": "Well, "}], None, {}, "continued")
    assert caught.value.param == "continue_final_message"


def test_ids_outside_of_the_vocabulary_are_named(vocab):
    source = prompt_source()
    source.check_tokens([0, 255])
    source.check_tokens([])
    with pytest.raises(InvalidParameter, match="token id 256") as caught:
        source.check_tokens([1, 256], "input")
    assert caught.value.param == "input"
    with pytest.raises(InvalidParameter):
        source.check_tokens([-1])


def test_a_context_of_zero_is_unknown():
    assert prompt_source("x", n_ctx=0).n_ctx is None
    assert prompt_source("x", n_ctx=512).n_ctx == 512


def test_a_missing_file_says_so_each_time():
    source = prompt_source("/nowhere/x.gguf")
    for _ in range(2):
        with pytest.raises(ModelLoadError, match=r"x\.gguf"):
            source.tokenize("a")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("loaded", "n_chars", "off_loop"), [(True, 10, False), (True, 20_000, True), (False, 10, True)]
)
async def test_loading_and_long_prompts_stay_off_the_event_loop(loaded, n_chars, off_loop):
    seen = []

    class Watching(FakePrompts):
        def render_chat(self, *args):
            seen.append(threading.current_thread() is not threading.main_thread())
            return super().render_chat(*args)

    prompts = Watching(n_ctx=None)
    prompts.loaded = loaded
    async with http_client(app_of(served(FakeModel(), prompts))) as client:
        await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x" * n_chars}]})
    assert seen == [off_loop]
    await asyncio.sleep(0)


@pytest.mark.model
def test_the_demo_model_renders_checks_grammars_and_detokenizes():
    source = prompt_source("demo", n_ctx=4096)
    tokens = source.render_chat([{"role": "user", "content": "Hello"}], None, {}).prompt.tokens
    assert source.detokenize(source.tokenize("Hello, wörld!", add_special=False)) == "Hello, wörld!"
    assert source.detokenize(tokens).count("Hello") == 1
    source.check_constraint(
        Constraint.of_schema({"type": "object", "properties": {"a": {"type": "integer"}}}, "response_format")
    )
    source.check_constraint(Constraint(ConstraintKind.GBNF, "root ::= <any token> <[99999999]>"))
    with pytest.raises(InvalidParameter) as caught:
        source.check_constraint(Constraint.of_schema({"type": "nothing"}, "response_format"))
    assert caught.value.param == "response_format"
    source.close()


def test_a_constraint_that_names_tokens_is_checked_by_its_schemas(vocab):
    source = prompt_source()
    good = Constraint.of_schema({"type": "object"}, "tools")
    lark = "start: <[151657]> call"
    source.check_constraint(Constraint(ConstraintKind.LARK, lark, "tools", (("call", good),)))
    bad = Constraint.of_schema({"type": "nothing"}, "tools")
    with pytest.raises(InvalidParameter):
        source.check_constraint(Constraint(ConstraintKind.LARK, lark, "tools", (("call", bad),)))


def test_the_text_of_a_conversation_has_no_bos_that_tokenising_adds(vocab, monkeypatch):
    prompts = prompt_source()
    text = prompts.render_text(HI, None, {"extra": "!"})
    assert text == "hi!"
    assert prompts.tokenize(text) == list(prompts.render_chat(HI, None, {"extra": "!"}).prompt.tokens)
    monkeypatch.setattr(vocab, "adds_bos", False)
    assert prompts.render_text(HI, None, {}) == "<s>hi"
    with pytest.raises(InvalidParameter, match="messages"):
        prompts.render_text(HI, None, {"messages": 1})


def test_what_the_file_says_of_prompts(vocab):
    facts = prompt_source().facts()
    assert (facts.bos_text, facts.eos_text, facts.chat_template) == ("<s>", "</s>", FakeVocab.chat_template)
    assert (facts.path, facts.n_parallel) == ("x", 4)


def test_special_text_is_plain_where_it_is_asked_to_be(vocab):
    prompts = prompt_source()
    assert prompts.tokenize("<s>", False) == [1]
    assert prompts.tokenize("<s>", False, False) == list(b"<s>")
    assert (prompts.token_text(1), prompts.token_text(97)) == (b"<s>", b"a")


@pytest.mark.model
def test_the_demo_models_template_gives_the_text_of_its_prompt():
    prompts = prompt_source("demo")
    text = prompts.render_text(HI, None, {})
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = list(prompts.render_chat(HI, None, {}).prompt.tokens)
    assert prompts.tokenize(text) == ids
    assert b"".join(map(prompts.token_text, ids)).decode() == text
    assert prompts.facts().path.endswith("/demo.gguf")
    prompts.close()
