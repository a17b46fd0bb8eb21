"""The chat templates of one model: one for conversations that offer tools, one for all others.

    tokenizer.chat_template           the default
    tokenizer.chat_template.<name>    variants: "tool_use", "rag", ... (gguf-py writes them so for
                                      models that have several, such as Command R)

Which of them renders depends on nothing but whether a request offers tools, so a conversation that
always does has one template, and each of its prompts begins with the one before. Each is probed and
adapted on its own. The tool format is the one of the template that renders tools: it reads all
replies, since it is the model that writes them and not the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from erllama.backend.base import Vocab
from erllama.chat.guard import ContentGuard
from erllama.chat.template import ChatTemplate, today
from erllama.chat.token_cache import TokenCache
from erllama.chat.tool_formats.base import ToolFormat
from erllama.chat.tool_formats.choose import choose_format, format_named
from erllama.errors import ModelLoadError

TOOL_USE = "tool_use"


@dataclass(frozen=True, slots=True)
class TemplateVariants:
    """`default` renders conversations without tools, `tool_use` those that offer some; they are one
    object where the model has one template. Both write in `tool_format` what they cannot express.
    Immutable; any thread.
    """

    default: ChatTemplate
    tool_use: ChatTemplate
    tool_format: ToolFormat

    @classmethod
    def of(
        cls,
        vocab: Vocab,
        *,
        override: str | None = None,
        tool_format: str = "auto",
        parse_special_in_content: bool = False,
        clock: Literal["date", "time"] = "date",
    ) -> Self:
        """The templates of the model that `vocab` belongs to; the options are `EngineConfig`'s, and
        `override` is its `chat_template`, which stands for all of them.

        Raises `ModelLoadError` for an override that cannot be read or does not compile,
        `InvalidParameter` for a format that does not exist.
        """
        cache = TokenCache(vocab.cut_texts())
        guard = ContentGuard.of(() if parse_special_in_content else vocab.control_texts(), cache)
        now = datetime.now if clock == "time" else today

        def made(source: str | None) -> ChatTemplate:
            return ChatTemplate(source, bos=vocab.bos_text, eos=vocab.eos_text, now=now, guard=guard)

        if override is not None:
            default = tool_use = made(override_source(override))
        else:
            source, variant = _sources(vocab.chat_template, vocab.named_templates)
            default = made(source)
            tool_use = default if variant == source else made(variant)
            if tool_use.problem is not None:
                tool_use = default
        chosen = choose_format(tool_use) if tool_format == "auto" else format_named(tool_format)
        written = default.with_tool_format(chosen)
        return cls(written, written if tool_use is default else tool_use.with_tool_format(chosen), chosen)

    def rendering(self, tools: Sequence[Mapping[str, Any]] | None) -> ChatTemplate:
        """The template of a conversation that offers `tools`; None and none at all are the same."""
        return self.tool_use if tools else self.default

    @property
    def exist(self) -> bool:
        """Whether the model has a template, be it one that does not compile."""
        return bool(self.default.source)


def _sources(unnamed: str | None, named: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The sources of the default and of the one for tools. A file with named ones only has a
    default all the same: what it calls so, else the one for tools (llama.cpp's choice), else the
    first by name.
    """
    default = unnamed or named.get("default") or named.get(TOOL_USE)
    if not default and named:
        default = named[min(named)]
    return default, named.get(TOOL_USE) or default


def override_source(value: str) -> str:
    """The Jinja source that `chat_template` of a configuration means: `value` itself if it has any
    Jinja in it, else the text of the file at this path.

    Raises `ModelLoadError`, which names the key, when the file cannot be read or the source does
    not compile.
    """
    source, where = value, "the template"
    if "{{" not in value and "{%" not in value:
        where = value
        try:
            source = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ModelLoadError(f"chat_template: cannot read {value}: {reason}") from error
    problem = ChatTemplate(source, bos="", eos="").problem
    if problem is not None:
        raise ModelLoadError(f"chat_template: {where} cannot be used: {problem}")
    return source
