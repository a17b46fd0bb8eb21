"""Models with several chat templates: which one renders a conversation."""

import pytest
from gguf import Keys
from gguf.constants import GGUFValueType

from erllama.chat.template import ChatTemplate
from erllama.chat.variants import TemplateVariants, override_source
from erllama.demo import demo_model_path
from erllama.errors import ModelLoadError, NotSupported
from erllama.gguf.header import GgufValue, read_header
from erllama.llama.vocab import LlamaVocab
from erllama.model import Model
from erllama.testing.stub_backend import CHATML, StubBackend, StubVocab
from tests.support.gguf_files import serialise
from tests.support.llama_cpp_files import real_template

USER = {"role": "user", "content": "xUserx"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "xToolx", "arguments": '{"a": "xIn0x"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c0", "content": "xResultx"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "xToolx",
            "description": "xDescriptionx",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }
]
LOOP = [USER, CALL, RESULT, {"role": "assistant", "content": "xReplyx"}, USER, CALL, RESULT]


def variants(default=None, *, override=None, tool_format="auto", **named) -> TemplateVariants:
    vocab = StubVocab(default)
    vocab.named_templates = named
    return TemplateVariants.of(vocab, override=override, tool_format=tool_format)


def marked(name: str) -> str:
    return f"[{name}]{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"


def test_the_variant_for_tools_renders_what_offers_tools_and_nothing_else():
    both = variants(marked("plain"), tool_use=marked("with tools"), rag=marked("rag"))
    for tools, name in ((TOOLS, "with tools"), ([], "plain"), (None, "plain")):
        assert both.rendering(tools).render([USER], tools=tools).startswith(f"[{name}]")


def test_a_model_with_one_template_has_one_object_for_both():
    one = variants(CHATML)
    assert one.default is one.tool_use


def test_each_variant_is_adapted_by_what_it_can_express():
    both = variants(CHATML, tool_use=real_template("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"))
    assert (both.default.traits.calls, both.tool_use.traits.calls) == (None, "object")
    without, offering = both.rendering(None), both.rendering(TOOLS)
    assert "<tools>" in offering.render([USER, CALL, RESULT], tools=TOOLS)
    # the history of a conversation that no longer offers tools is told in words that the model knows
    assert '<tool_call>\n{"name": "xToolx"' in without.render([USER, CALL, RESULT])


@pytest.mark.parametrize(
    ("name", "tool_format"),
    [
        ("CohereForAI-c4ai-command-r-plus-tool_use", "command-r-plus"),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "cohere"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral-nemo"),
    ],
)
def test_the_format_is_that_of_the_variant_for_tools_and_holds_for_both(name, tool_format):
    both = variants(CHATML, tool_use=real_template(name))
    assert both.tool_format.name == tool_format
    assert both.default.tool_format is both.tool_use.tool_format is both.tool_format
    assert variants(CHATML, tool_use=real_template(name), tool_format="hermes").tool_format.name == "hermes"


def test_each_turn_of_a_conversation_that_offers_tools_begins_with_the_one_before():
    both = variants(marked("plain"), tool_use=real_template("Qwen-Qwen2.5-7B-Instruct"))
    before = ""
    for end in (1, 3, 5, 7):
        template = both.rendering(TOOLS)
        text = template.render(LOOP[:end], tools=TOOLS, add_generation_prompt=False)
        assert text.startswith(before)
        before = text


@pytest.mark.parametrize(
    ("named", "default", "tool_use"),
    [
        ({"tool_use": marked("t"), "rag": marked("r")}, "t", "t"),
        ({"default": marked("d"), "tool_use": marked("t")}, "d", "t"),
        ({"rag": marked("r"), "chat": marked("c")}, "c", "c"),
    ],
)
def test_a_file_with_named_templates_only_has_a_default(named, default, tool_use):
    found = variants(**named)
    assert found.exist
    assert found.default.render([USER]).startswith(f"[{default}]")
    assert found.tool_use.render([USER]).startswith(f"[{tool_use}]")


def test_a_variant_that_does_not_compile_is_not_used():
    both = variants(CHATML, tool_use="{% nonsense %}")
    assert both.rendering(TOOLS).render([USER], tools=TOOLS)


def test_a_model_without_any_template_says_so():
    nothing = variants()
    assert not nothing.exist
    with pytest.raises(NotSupported, match="has no chat template"):
        nothing.rendering(None).render([USER])


def test_an_override_stands_for_all_of_them(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(marked("mine"))
    for override in (str(path), marked("mine")):
        found = variants(CHATML, tool_use=marked("t"), override=override)
        for tools in (None, TOOLS):
            assert found.rendering(tools).render([USER], tools=tools).startswith("[mine]")


@pytest.mark.parametrize(
    ("value", "words"), [("/nowhere/x.jinja", r"cannot read /nowhere/x\.jinja"), ("{% nonsense %}", "does not compile")]
)
def test_an_override_that_is_no_template_names_the_key(value, words):
    with pytest.raises(ModelLoadError, match=f"^chat_template: .*{words}"):
        override_source(value)


def test_a_model_renders_with_what_the_configuration_says():
    with Model(path="demo", chat_template=marked("mine"), make_backend=StubBackend.from_config) as model:
        assert model.detokenize(model.apply_chat_template([USER])).startswith("[mine]")
        assert model.model_info().has_chat_template


def test_variants_are_read_from_a_file(tmp_path):
    """Keys as gguf-py writes them; a file whose metadata has no default, too."""
    header = read_header(demo_model_path())

    def text(source):
        return GgufValue(GGUFValueType.STRING, None, source.encode())

    named = {
        Keys.Tokenizer.CHAT_TEMPLATES: GgufValue(GGUFValueType.ARRAY, GGUFValueType.STRING, [b"rag", b"tool_use"]),
        Keys.Tokenizer.CHAT_TEMPLATE_N.format(name="rag"): text(marked("r")),
        Keys.Tokenizer.CHAT_TEMPLATE_N.format(name="tool_use"): text(marked("ü" * 5000)),
    }
    without = {key: value for key, value in header.metadata.items() if key != Keys.Tokenizer.CHAT_TEMPLATE}
    for metadata, default in ((header.metadata, header.get_string(Keys.Tokenizer.CHAT_TEMPLATE)), (without, None)):
        path = tmp_path / "several.gguf"
        path.write_bytes(serialise(header, metadata | named))
        vocab = LlamaVocab.load(str(path))
        try:
            assert vocab.chat_template == default
            assert vocab.named_templates == {"rag": marked("r"), "tool_use": marked("ü" * 5000)}
            assert isinstance(TemplateVariants.of(vocab).rendering(TOOLS), ChatTemplate)
        finally:
            vocab.close()


def test_a_file_with_one_template_has_no_variants():
    vocab = LlamaVocab.load(str(demo_model_path()))
    assert vocab.named_templates == {}
    vocab.close()
