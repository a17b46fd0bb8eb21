"""What is expected to come behind a reply, over the templates of real models: it begins the prompt
that then comes, whatever that says, and where nothing is known nothing is expected.
"""

from __future__ import annotations

import re

import pytest

from cache_store.format.keys import root_key
from deployments.generation.chat import ChatAsk, OfferedTool, ready_chat
from deployments.generation.next_turn import ChatRecord
from deployments.http.ports import ChatPrompt, ReplyDefaults
from deployments.noise.filter import Noise
from erllama.chat.template import ChatTemplate
from erllama.chat.tool_formats.base import ToolCall
from erllama.chat.tool_formats.choose import choose_format, opens_reasoning
from erllama.chat.transcript import prompt_key, transcript_of
from erllama.chat.transcript_prompt import transcript_prompt
from erllama.events import CacheHitKind, Completion, FinishReason, RequestStats
from erllama.request import Prompt
from tests.support.llama_cpp_files import real_template, real_templates, real_vocab

ROOT = root_key("test")
QUESTION = {"role": "user", "content": "What is it like in Oslo? Tell me at length."}
ANSWER = "It is cold there, and the days are short."
THOUGHT = "The user asks for the weather. I know it."
TOOL = OfferedTool.of(
    "get_weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
NEXT = ["And in Rome?", "\n\n- a list\n- of things", "5 more days", "<b>Hm</b>", "你好"]


@pytest.fixture(scope="module")
def vocab():
    vocab = real_vocab("gpt-2")
    yield MarkedVocab(vocab)
    vocab.close()


class MarkedVocab:
    """A vocabulary that has what templates write as marks as control tokens, as that of each model has
    its own; the one below it has none.
    """

    adds_bos, bos_text, eos_text = False, "<bos>", "<eos>"
    MARK = re.compile(
        r"<[|\uff5c][^<>]{1,40}[|\uff5c]>|</?[a-z_]{2,20}>|\[/?[A-Z_]{3,20}\]|<[a-z_]+[|\uff5c]>|<[|\uff5c][a-z_]+>"
    )

    def __init__(self, plain):
        self.plain, self.marks = plain, []
        self.n_vocab = plain.n_vocab + 1000

    def tokenize(self, text, *, add_special=True, parse_special=True):
        ids, at = [], 0
        for found in self.MARK.finditer(text):
            ids += self._plain(text[at : found.start()])
            if found[0] not in self.marks:
                self.marks.append(found[0])
            ids.append(self.plain.n_vocab + self.marks.index(found[0]))
            at = found.end()
        return ids + self._plain(text[at:])

    def _plain(self, text):
        return self.plain.tokenize(text, add_special=False, parse_special=False) if text else []

    def piece(self, token):
        return self.plain.piece(token) if token < self.plain.n_vocab else b""

    def detokenize(self, tokens, *, special=False):
        texts = [
            self.plain.piece(one)
            if one < self.plain.n_vocab
            else self.marks[one - self.plain.n_vocab].encode() * special
            for one in tokens
        ]
        return b"".join(texts).decode(errors="replace")


class TemplatePrompts:
    """The `PromptPort` of a model that has one of the templates, as far as a chat needs it."""

    defaults = ReplyDefaults()
    n_ctx = None
    pins_from = None
    constrains_calls = False
    may_wait = False
    expects_turns = True
    marker_ids: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, name, vocab, *, keeps_reasoning=False):
        self.vocab, self.keeps_reasoning, self.known = vocab, keeps_reasoning, {}
        template = ChatTemplate(real_template(name), bos="<bos>", eos="<eos>")
        self.tool_format = choose_format(template)
        self.template = template.with_tool_format(self.tool_format)

    def render_chat(self, messages, tools, template_kwargs, ending="opened"):
        ids = transcript_prompt(
            self.template,
            self.vocab,
            messages,
            tools=tools,
            template_kwargs=template_kwargs,
            ending=ending,
            root=ROOT,
            find=self.known.get,
            tool_format=self.tool_format,
            keeps_reasoning=self.keeps_reasoning,
        )
        return ChatPrompt(
            Prompt.of(ids), opens_reasoning(self.tool_format, self.vocab.detokenize(ids[-8:], special=True))
        )

    def shows_late_system(self, *, tools):
        return True

    def reply_piece(self, token):
        return self.vocab.piece(token)

    def recorder(self, chat):
        def record(reply):
            block = transcript_of(
                ROOT,
                prompt_key(ROOT, chat.prompt.tokens),
                reply.tokens,
                reply.text,
                self.vocab.piece,
                self.tool_format,
                in_reasoning=chat.in_reasoning,
                keeps_reasoning=self.keeps_reasoning,
            )
            if block is not None:
                self.known[block.id] = block.tokens.tolist()

        return record


class Talk:
    """A conversation of a client with a model."""

    def __init__(self, prompts, *, tools=(), tells=False):
        self.prompts, self.tools, self.tells = prompts, tools, tells
        self.messages = [{"role": "system", "content": "Be brief."}, QUESTION]
        self.noise = Noise()

    def ready(self, more=()):
        ask = ChatAsk([*self.messages, *more], self.tools)
        return ready_chat(ask, self.prompts, self.noise.filter("openai", "test"))

    def answered(self, text="", thought="", calls=(), reason=FinishReason.STOP):
        """The turn that is expected behind a reply, and the ids of prompt and reply. The reply is
        sampled as no tokenizer would write it.
        """
        ready = self.ready()
        said = text + (self.prompts.tool_format.write_calls(list(calls)) if calls else "")
        if thought:
            opening, closing = self.prompts.tool_format.reasoning
            said = f"{'' if ready.chat.in_reasoning else opening}{thought}{closing}{said}"
        ids = tuple(token for letter in said for token in self.prompts.vocab.tokenize(letter, add_special=False))
        prompt = ready.chat.prompt.tokens
        stats = RequestStats(len(prompt), len(ids), 0, 0.0, 1.0, 1.0, CacheHitKind.COLD, reason)
        reply = Completion(said, ids, "key", stats)
        assert isinstance(ready.record, ChatRecord)
        ready.record(reply)
        turn = ready.record.follow_up.turn("it", reply)
        message = {"role": "assistant", "content": text or None}
        if thought and self.tells:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"random_{n}",
                    "type": "function",
                    "function": {"name": one.name, "arguments": one.arguments_json},
                }
                for n, one in enumerate(calls)
            ]
        self.messages.append(message)
        return turn, (*prompt, *ids)

    def next_prompts(self, n_calls=0):
        for text in NEXT:
            more = [{"role": "user", "content": text}]
            if n_calls:
                more = [{"role": "tool", "tool_call_id": f"random_{n}", "content": text} for n in range(n_calls)]
            yield self.ready(more).chat.prompt.tokens


def check(turn, answered, prompts):
    """The turn begins each of the prompts, and says what it keeps of the KV that there is."""
    for tokens in prompts:
        assert tokens[: len(turn.tokens)] == turn.tokens
    assert turn.tokens[: turn.n_kept] == answered[: turn.n_kept]
    assert len(turn.tokens) > turn.n_kept
    assert turn.n_kept == len(answered) - 1 or turn.tokens[turn.n_kept] != answered[turn.n_kept]


TEMPLATES = sorted(real_templates())
CALLS = [ToolCall("get_weather", '{"city": "Oslo"}')]
# these open the reasoning in each prompt, so that a reply without an end of it says nothing
ALWAYS_THINK = {
    *(
        "Apriel-1.6-15b-Thinker-fixed",
        "Cohere2MoE",
        "GLM-4.7-Flash",
        "Kimi-K3",
        "MiniMax-M2",
        "NVIDIA-Nemotron-Nano-v2",
    ),
    *(
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "Qwen3.5-4B",
        "Spark2.5",
        "StepFun3.5-Flash",
        "inclusionai-ling-3.0-flash",
    ),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "llama-cpp-deepseek-r1", "poolside-Laguna-S-2.1"),
}
# a first reply of these comes back with its reasoning or without, as the client likes
SHOW_REASONING = {
    *(
        "Bielik-11B-v3.0-Instruct",
        "ByteDance-Seed-OSS",
        "Cohere2MoE",
        "Kimi-K3",
        "MiniMax-M3",
        "Spark2.5",
        "muse-glimmer",
    ),
    *("inclusionai-ling-3.0-flash", "openai-gpt-oss-120b", "poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1"),
    "poolside-Laguna-XS.2",
}

CALLING = [
    *(
        "GLM-4.6",
        "Kimi-K2-Instruct",
        "Qwen-Qwen3-0.6B",
        "Qwen3-Coder",
        "deepseek-ai-DeepSeek-V3.1",
        "google-gemma-2-2b-it",
    ),
    *("meta-llama-Llama-3.1-8B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407", "openai-gpt-oss-120b", "Reka-Edge"),
]
THINKING = [
    *("ByteDance-Seed-OSS", "GLM-4.6", "MiniMax-M2", "Qwen-QwQ-32B", "Qwen-Qwen3-0.6B", "Qwen3.5-4B", "Kimi-K3"),
    *("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-V3.1", "openai-gpt-oss-120b", "tencent-Hy3"),
    *("poolside-Laguna-XS.2", "NVIDIA-Nemotron-Nano-v2", "unsloth-Apriel-1.5"),
]


@pytest.mark.parametrize("name", TEMPLATES[::2])
def test_the_turn_behind_a_reply_is_known_up_to_its_text(name, vocab):
    talk = Talk(TemplatePrompts(name, vocab))
    for _ in range(2):
        turn, answered = talk.answered(ANSWER)
        assert (turn is None) == (name in ALWAYS_THINK)
        if turn is not None:
            check(turn, answered, talk.next_prompts())
        talk.messages.append({"role": "user", "content": "And then?"})


@pytest.mark.parametrize("name", CALLING)
def test_the_results_of_calls_are_awaited_where_a_reply_calls(name, vocab):
    talk = Talk(TemplatePrompts(name, vocab), tools=(TOOL,))
    turn, answered = talk.answered(calls=CALLS)
    if turn is not None:
        check(turn, answered, talk.next_prompts(n_calls=1))
        assert (
            vocab.detokenize(turn.tokens).count("get_weather")
            > vocab.detokenize(answered[:-40]).count("get_weather") - 2
        )
    assert turn is not None or name == "Apertus-8B-Instruct"


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("name", THINKING)
def test_a_reply_with_reasoning_is_expected_as_its_client_sends_replies(name, tells, vocab):
    prompts = TemplatePrompts(name, vocab)
    talk = Talk(prompts, tells=tells)
    first, answered = talk.answered(ANSWER, THOUGHT)
    if first is not None:
        check(first, answered, talk.next_prompts())
    talk.messages.append({"role": "user", "content": "And then?"})
    second, answered = talk.answered(ANSWER, THOUGHT)
    if second is not None:
        check(second, answered, talk.next_prompts())
    if not tells and name in SHOW_REASONING - {"muse-glimmer", "openai-gpt-oss-120b"}:
        assert first is None
        assert second is not None
    if not tells and name not in SHOW_REASONING:
        assert first is not None, "its template drops the reasoning, whoever sends it"


def test_the_visible_reply_is_part_of_the_turn_where_the_template_drops_the_reasoning(vocab):
    talk = Talk(TemplatePrompts("deepseek-ai-DeepSeek-V3.1", vocab))
    turn, answered = talk.answered(ANSWER, THOUGHT)
    new = vocab.detokenize(turn.tokens[turn.n_kept :])
    assert ANSWER in new
    assert THOUGHT not in vocab.detokenize(turn.tokens)
    assert THOUGHT in vocab.detokenize(answered)


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CANCELLED])
def test_nothing_is_expected_behind_a_reply_that_was_cut_off(reason, vocab):
    turn, _ = Talk(TemplatePrompts("Qwen-Qwen2.5-7B-Instruct", vocab)).answered(ANSWER, reason=reason)
    assert turn is None


@pytest.mark.parametrize("ask", [{"ending": "continued"}, {"ending": "closed"}])
def test_nothing_is_expected_where_a_message_is_continued(ask, vocab):
    prompts = TemplatePrompts("Qwen-Qwen2.5-7B-Instruct", vocab)
    messages = [QUESTION, {"role": "assistant", "content": "It"}]
    ready = ready_chat(ChatAsk(messages, **ask), prompts, Noise().no_filter())
    assert ready.record.follow_up is None


def test_a_model_that_expects_nothing_is_told_nothing(vocab):
    prompts = TemplatePrompts("Qwen-Qwen2.5-7B-Instruct", vocab)
    prompts.expects_turns = False
    assert Talk(prompts).ready().record.follow_up is None


def test_a_conversation_that_is_rendered_anew_with_every_text_has_nothing_known_behind_its_reply(vocab):
    """A template that repeats the user's last words at its beginning."""
    prompts = TemplatePrompts("Qwen-Qwen2.5-7B-Instruct", vocab)
    source = "{{ messages[-1].content }}" + real_template("Qwen-Qwen2.5-7B-Instruct")
    prompts.template = ChatTemplate(source, bos="", eos="").with_tool_format(prompts.tool_format)
    turn, _ = Talk(prompts).answered(ANSWER)
    assert turn is None


def test_noise_is_not_counted_for_what_no_client_has_sent(vocab):
    talk = Talk(TemplatePrompts("Qwen-Qwen2.5-7B-Instruct", vocab))
    noisy = "x-anthropic-billing-header: cc_version=2.1.0.abc; cch=00000;"
    talk.messages[0] = {"role": "system", "content": noisy + "\nBe brief."}
    talk.noise = Noise()
    talk.noise.filter = lambda dialect, agent: Noise.filter(talk.noise, "anthropic", "claude-cli/2.1.0")
    talk.answered(ANSWER)
    counts = talk.noise.counters.snapshot()
    assert counts
    assert set(counts.values()) == {1}
