"""A conversation as every dialect asks for it, and what it takes to run it.

A dialect maps its body to a `ChatAsk`. `ready_chat` renders it and finds the constraint of the
reply: how a call is written, and what separates several, is the model's `ToolFormat`. A forced call
is enforced. When the model may choose ("auto") its reply is free up to where a call opens, which
then has to be one of a tool; with a constraint of the dialect's own it is either calls or that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from deployments.generation.next_turn import ChatRecord, FollowUp, Message
from deployments.generation.pins import PrefixMark, marked_pin
from deployments.generation.reply import check_fits, with_ends
from deployments.http.ports import ChatPrompt, PromptPort, Record
from deployments.noise.canonical import canonical_messages
from deployments.noise.filter import NoiseFilter
from deployments.noise.normalise import Normalised
from erllama.chat.reasoning_counter import ReasoningCounter
from erllama.chat.template import Ending
from erllama.chat.tool_formats.base import ReplySplitter, ToolSpec
from erllama.chat.tool_formats.lark_writer import forced_calls, free_reply, reasoned_reply, text_reply
from erllama.chat.tool_formats.splitter import reply_splitter
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint
from erllama.grammar.json_schema.schema import check_strict
from erllama.request import GenerationRequest, Pin, SamplingParams

MAX_MESSAGES = 10_000  # of any dialect: agents end after some hundred turns
MAX_TOOLS = 512


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A function that the model may call. `shown` is what the template shows of it, in the order of
    its keys: equal tools must be equal tokens. `strict_at` is where in the body its schema stands, if
    the schema has to be enforced or refused.
    """

    name: str
    parameters: Mapping[str, Any]
    shown: Mapping[str, Any]
    strict_at: str | None = None

    @classmethod
    def of(
        cls, name: str, description: str | None, parameters: Mapping[str, Any] | None, strict_at: str | None = None
    ) -> Self:
        """One whose keys come in the order that they have in every dialect, whatever the client's."""
        function: dict[str, Any] = {"name": name}
        if description is not None:
            function["description"] = description
        if parameters is not None:
            function["parameters"] = parameters
        return cls(name, parameters or {"type": "object"}, {"type": "function", "function": function}, strict_at)

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.parameters)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may, must or must not call; `names` are those that it may call, None for
    all; `single`: one call at most.
    """

    mode: Literal["auto", "required", "none"] = "auto"
    names: tuple[str, ...] | None = None
    single: bool = False


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """`messages` as templates read them. `reply` constrains the text of the reply; `variables` go to
    the template. `param` is the field that is blamed for a prompt which does not fit. `mark` says which
    beginning the client would have kept.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: tuple[OfferedTool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    reply: Constraint | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    ending: Ending = "opened"
    param: str = "messages"
    mark: PrefixMark | None = None

    @property
    def callable(self) -> list[ToolSpec]:
        """The tools that the model may call."""
        if self.choice.mode == "none":
            return []
        names = self.choice.names
        return [tool.spec for tool in self.tools if names is None or tool.name in names]

    @property
    def leaves_the_form_open(self) -> bool:
        """Whether it says nothing of what the reply must be: text, or a call of the model's own
        accord.
        """
        return self.reply is None and self.choice.mode != "required" and self.choice.names is None


@dataclass(frozen=True, slots=True)
class ReadyChat:
    """A chat that is ready to run. `splitter` makes what cuts the text of one reply; `piece_of` gives
    the bytes of a token of it. `pin`: what the client would have kept of the prompt.
    """

    chat: ChatPrompt
    constraint: Constraint | None
    record: Record
    splitter: Callable[[], ReplySplitter | None]
    piece_of: Callable[[int], bytes]
    prompts: PromptPort
    pin: Pin | None = None

    @property
    def can_reason(self) -> bool:
        """Whether the model has a form for what it thinks."""
        return self.prompts.tool_format.reasoning is not None

    def counter(self) -> ReasoningCounter:
        """What counts the reasoning of one reply."""
        return ReasoningCounter(self.splitter(), self.piece_of)

    def request(
        self,
        engine_id: str,
        sampling: SamplingParams,
        *,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        logprobs: int | None = None,
        ignore_eos: bool = False,
        affinity: str | None = None,
        priority: int | None = None,
        thinking_budget: int | None = None,
        report_progress: bool = False,
        predicted: str = "",
    ) -> GenerationRequest:
        """What the engine is asked for. `thinking_budget` bounds the reasoning, in tokens; the reply
        may be `predicted`. Raises
        `InvalidParameter`, and `NotSupported` for a budget of a model that does not think.
        """
        prompts, reasoning = self.prompts, None
        if thinking_budget is not None:
            reasoning = prompts.reasoning_budget(thinking_budget, in_reasoning=self.chat.in_reasoning)
        request = GenerationRequest(
            request_id=engine_id,
            prompt=self.chat.prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            grammar=self.constraint,
            logprobs=logprobs,
            ignore_eos=ignore_eos,
            affinity=affinity,
            priority=priority,
            record_transcript=True,
            tool_format=prompts.tool_format.name,
            shown=tuple((token, text) for text, token in prompts.marker_ids.items()),
            in_reasoning=self.chat.in_reasoning,
            reasoning=reasoning,
            pin=self.pin,
            report_progress=report_progress,
            prediction=_predicted_ids(predicted, prompts),
        )
        return with_ends(request, prompts.defaults)


_TOKEN_CHARS = 32  # hardly a token has more
_UNKNOWN_CTX = 32_768  # where the context of a model is not known before it is loaded


def _predicted_ids(text: str, prompts: PromptPort) -> tuple[int, ...]:
    """No more of it than a context holds: each token that differs is looked for in all of it."""
    n_most = prompts.n_ctx or _UNKNOWN_CTX
    text = text[: n_most * _TOKEN_CHARS]
    return tuple(prompts.tokenize(text, False, False)[:n_most]) if text else ()


def _check_counts(ask: ChatAsk) -> None:
    for param, given, most in ((ask.param, ask.messages, MAX_MESSAGES), ("tools", ask.tools, MAX_TOOLS)):
        if len(given) > most:
            raise InvalidParameter(f"{param} has {len(given)} entries, at most {most} are accepted", param=param)


def chat_prompt(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> ChatPrompt:
    """The conversation as tokens, whether they fit or not, without what `noise` takes out. May take
    long: see `PromptPort`. Raises `InvalidParameter` and `NotSupported`.
    """
    return _rendered(ask, prompts, noise)[0]


def _rendered(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> tuple[ChatPrompt, Normalised]:
    """The prompt, and the messages and tools that it shows."""
    _check_counts(ask)
    for tool in ask.tools:
        if tool.strict_at is not None:
            check_strict(tool.parameters, tool.strict_at)
    normal = _normal(ask, prompts, noise)
    return prompts.render_chat(normal.messages, normal.tools or None, ask.variables, ask.ending), normal


def chat_text(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> str:
    """The conversation of `chat_prompt` as its template writes it."""
    normal = _normal(ask, prompts, noise)
    return prompts.render_text(normal.messages, normal.tools or None, ask.variables, ask.ending)


def _normal(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> Normalised:
    return noise.apply(
        canonical_messages(ask.messages),
        [dict(tool.shown) for tool in ask.tools],
        lambda: prompts.shows_late_system(tools=bool(ask.tools)),
    )


def ready_chat(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> ReadyChat:
    """May take long: see `PromptPort`. Raises `InvalidParameter`, `NotSupported` and
    `ContextOverflow`.
    """
    chat, normal = _rendered(ask, prompts, noise)
    check_fits(chat.prompt, prompts.n_ctx, ask.param)
    constraint, tools = _checked_constraint(ask, prompts, in_reasoning=chat.in_reasoning), ask.callable

    def splitter() -> ReplySplitter | None:
        return reply_splitter(prompts.tool_format, tools, in_reasoning=chat.in_reasoning)

    mark = ask.mark
    if mark is not None and mark.n_messages >= len(ask.messages):
        mark = replace(mark, n_messages=len(normal.messages))  # all of them, however many they are without noise
    pin = marked_pin(mark, chat.prompt, prompts, normal.messages, normal.tools or None, ask.variables)
    record = ChatRecord(prompts.recorder(chat), _follow_up(ask, chat, prompts, noise, splitter))
    return ReadyChat(chat, constraint, record, splitter, prompts.reply_piece, prompts, pin)


def _follow_up(
    ask: ChatAsk,
    chat: ChatPrompt,
    prompts: PromptPort,
    noise: NoiseFilter,
    splitter: Callable[[], ReplySplitter | None],
) -> FollowUp | None:
    """None where the reply goes on inside of a message, or nobody asks what follows."""
    if ask.ending != "opened" or not prompts.expects_turns:
        return None

    def render(more: Sequence[Message]) -> Sequence[int]:
        longer = replace(ask, messages=[*ask.messages, *more])
        normal = _normal(longer, prompts, noise.unseen())
        return prompts.render_chat(normal.messages, normal.tools or None, ask.variables).prompt.tokens

    return FollowUp(chat.prompt, ask.messages, splitter, render, prompts.reply_piece)


def count_prompt(ask: ChatAsk, prompts: PromptPort, noise: NoiseFilter) -> int:
    """The tokens of the prompt, also where they do not fit. May take long, as `ready_chat`; raises
    `InvalidParameter` and `NotSupported`.
    """
    return len(chat_prompt(ask, prompts, noise).prompt)


def _checked_constraint(ask: ChatAsk, prompts: PromptPort, *, in_reasoning: bool) -> Constraint | None:
    default = prompts.defaults.grammar
    if default is not None and ask.leaves_the_form_open:
        return default
    try:
        constraint = chat_constraint(ask, prompts, in_reasoning=in_reasoning)
        if constraint is not None:
            prompts.check_constraint(constraint)
    except InvalidParameter:
        if not ask.leaves_the_form_open:
            raise
        return None  # nobody asked for it: tools in the wild hold what cannot be enforced
    return constraint


def chat_constraint(ask: ChatAsk, prompts: PromptPort, *, in_reasoning: bool = False) -> Constraint | None:
    """What the whole reply must follow. Raises `InvalidParameter`."""
    tool_format, markers, tools = prompts.tool_format, prompts.marker_ids, ask.callable
    parallel = not ask.choice.single
    if ask.choice.mode == "required":
        return forced_calls(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning)
    if not tools and ask.reply is None:
        return text_reply(tool_format, markers, in_reasoning=in_reasoning) if ask.tools else None
    if not tools:
        return reasoned_reply(tool_format, markers, ask.reply) if ask.reply and in_reasoning else ask.reply
    if ask.reply is not None:
        return forced_calls(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning, reply=ask.reply)
    if not prompts.constrains_calls and ask.choice.names is None:
        return None
    return free_reply(tool_format, tools, markers, parallel=parallel, in_reasoning=in_reasoning)


def thinking_variables(thinks: bool | None, effort: str | None = None) -> dict[str, Any]:
    """What templates are told of how a model shall think; families call the switch of their reasoning
    `enable_thinking` or `thinking`. None leaves it to the model.
    """
    switches = {} if thinks is None else {"enable_thinking": thinks, "thinking": thinks}
    return switches | ({} if effort is None else {"reasoning_effort": effort})
