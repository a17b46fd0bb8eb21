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
    MARK = re.compile(r"<[|｜][^<>]{1,40}[|｜]>|</?[a-z_]{2,20}>|\[/?[A-Z_]{3,20}\]|<[a-z_]+[|｜]>|<[|｜][a-z_]+>")

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
THINKING = [
    "ByteDance-Seed-OSS", "GLM-4.6", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "Qwen3.5-4B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1", "Kimi-K2-Thinking", "MiniMax-M2", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "openai-gpt-oss-120b",
    "unsloth-Apriel-1.5", "tencent-Hy3", "Bielik-11B-v3.0-Instruct",
]  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_next_turn_of_a_chat_begins_as_expected(name, vocab):
    talk = Talk(TemplatePrompts(name, vocab))
    turn, answered = talk.answered(ANSWER)
    if turn is not None:
        check(turn, answered, talk.next_prompts())
        turn, answered = Talk.answered(following(talk), ANSWER)
    if turn is not None:
        check(turn, answered, talk.next_prompts())


def following(talk):
    talk.messages.append({"role": "user", "content": "And then?"})
    return talk
