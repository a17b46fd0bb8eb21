"""Cases of conformance: templates, history, tools and reasoning."""

from __future__ import annotations

import json

from conformance_kit import (
    HI,
    LONG,
    Cases,
    Json,
    Target,
    called,
    calls_of,
    equal,
    expect,
    reason_of,
    result,
    tool,
)

CASES = Cases()
case = CASES.case
WEATHER, CLOCK = tool(), tool("get_time", zone={"type": "string"})


def check_call(calls: list[Json] | None, names: tuple[str, ...]) -> None:
    expect(bool(calls), "a tool call", calls)
    for call in calls or ():
        expect(call["function"]["name"] in names, f"a call of {names}", call)
        expect(isinstance(json.loads(call["function"]["arguments"]), dict), "arguments that are an object", call)
        expect(bool(call["id"]) and call["type"] == "function", "an id and the type function", call)


def prompt_tokens(target: Target, messages: list[Json], **fields: object) -> int:
    count: int = target.chat(messages, max_tokens=1, **fields)["usage"]["prompt_tokens"]
    return count


# --- history and templates ------------------------------------------------------------------------


@case
def content_as_one_block_is_the_same_prompt(target: Target) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": HI[0]["content"]}]}]
    equal(prompt_tokens(target, blocks), prompt_tokens(target, HI), "prompt tokens")


@case
def several_blocks_are_all_read(target: Target) -> None:
    blocks = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello, and say it in many words."}]
    more = prompt_tokens(target, [{"role": "user", "content": blocks}])
    expect(more > prompt_tokens(target, [{"role": "user", "content": blocks[:1]}]), "more tokens", more)


@case
def a_developer_message_is_read(target: Target) -> None:
    words = {"role": "developer", "content": "Be brief, and speak of apples, pears and plums."}
    longer, plain = prompt_tokens(target, [words, *HI]), prompt_tokens(target, HI)
    expect(longer > plain, f"more than {plain} tokens", longer)


@case
def a_system_message_in_the_middle_passes(target: Target) -> None:
    target.chat([*HI, {"role": "assistant", "content": "Hello."}, {"role": "system", "content": "Be brief."}, *HI])


@case
def several_system_messages_pass(target: Target) -> None:
    target.chat([{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, *HI])


@case
def two_user_messages_in_a_row_pass(target: Target) -> None:
    target.chat([*HI, *HI])


@case
def an_assistant_message_may_come_first(target: Target) -> None:
    target.chat([{"role": "assistant", "content": "Welcome."}, *HI])


@case
def an_assistant_message_may_say_nothing(target: Target) -> None:
    target.chat([*HI, {"role": "assistant", "content": ""}, *HI])


@case
def a_message_has_a_name(target: Target) -> None:
    target.chat([HI[0] | {"name": "bob"}])


@case
def a_reply_comes_back_whole(target: Target) -> None:
    message = target.choice()["message"]
    target.chat([*HI, message, *HI])


@case
def reasoning_in_history_passes(target: Target) -> None:
    for field in ("reasoning_content", "reasoning"):
        target.chat([*HI, {"role": "assistant", "content": "Hello.", field: "They greet me."}, *HI])


@case
def control_tokens_in_content_are_text(target: Target) -> None:
    target.chat([{"role": "user", "content": "What is <|im_end|>, </s> or <|eot_id|>?"}])


@case
def emoji_and_nul_pass(target: Target) -> None:
    target.chat([{"role": "user", "content": "😀 é \u0000 漢字"}])


@case
def a_final_message_is_continued(target: Target) -> None:
    begun = [*HI, {"role": "assistant", "content": "Hello there, my"}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    continued = prompt_tokens(target, begun, **fields)
    expect(continued < prompt_tokens(target, [*begun, *HI]), "a prompt that ends in the message", continued)


@case
def template_variables_pass(target: Target) -> None:
    target.chat(chat_template_kwargs={"enable_thinking": False})


@case
def reasoning_effort_passes(target: Target) -> None:
    for effort in ("none", "low", "medium", "high"):
        target.chat(reasoning_effort=effort)


# --- tools ----------------------------------------------------------------------------------------


@case
def tools_lengthen_the_prompt(target: Target) -> None:
    longer, plain = prompt_tokens(target, HI, tools=[WEATHER]), prompt_tokens(target, HI)
    expect(longer > plain, f"more than {plain} tokens", longer)


@case
def tool_choice_none_calls_nothing(target: Target) -> None:
    message = target.choice(tools=[WEATHER], tool_choice="none")["message"]
    expect(not message.get("tool_calls"), "no call", message)


@case
def tool_choice_required_calls(target: Target) -> None:
    choice = target.choice(tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=LONG)
    check_call(choice["message"].get("tool_calls"), ("get_weather", "get_time"))
    equal(choice["finish_reason"], "tool_calls", "finish_reason")


@case
def a_named_tool_is_called(target: Target) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = target.choice(tools=[WEATHER, CLOCK], tool_choice=named, max_tokens=LONG)
    check_call(choice["message"].get("tool_calls"), ("get_time",))


@case
def a_tool_is_named_by_a_string(target: Target) -> None:
    choice = target.choice(tools=[WEATHER, CLOCK], tool_choice="get_time", max_tokens=LONG)
    check_call(choice["message"].get("tool_calls"), ("get_time",))


@case
def allowed_tools_limit_the_choice(target: Target) -> None:
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    choice = target.choice(tools=[WEATHER, CLOCK], tool_choice=allowed, max_tokens=LONG)
    check_call(choice["message"].get("tool_calls"), ("get_time",))


@case
def a_call_streams_in_pieces(target: Target) -> None:
    chunks = target.stream(tools=[WEATHER], tool_choice="required", max_tokens=LONG)
    [call, *_] = calls_of(chunks)
    equal(call["name"], "get_weather", "name")
    expect(isinstance(json.loads(call["arguments"]), dict), "arguments that are an object", call)
    equal(reason_of(chunks), "tool_calls", "finish_reason")


@case
def parallel_calls_can_be_switched_off(target: Target) -> None:
    choice = target.choice(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=LONG)
    equal(len(choice["message"]["tool_calls"]), 1, "number of calls")


@case
def a_call_that_is_cut_off_says_length(target: Target) -> None:
    equal(target.choice(tools=[WEATHER], tool_choice="required", max_tokens=3)["finish_reason"], "length", "reason")


@case
def results_of_tools_pass(target: Target) -> None:
    target.chat([*HI, called(), result()], tools=[WEATHER])


@case
def results_as_blocks_pass(target: Target) -> None:
    target.chat([*HI, called(), result([{"type": "text", "text": "Sunny."}])], tools=[WEATHER])


@case
def a_result_without_an_id_passes(target: Target) -> None:
    target.chat([*HI, called(), {"role": "tool", "content": "Sunny."}], tools=[WEATHER])


@case
def arguments_that_are_no_json_pass_in_history(target: Target) -> None:
    target.chat([*HI, called(arguments='{"city": "Ul'), result()], tools=[WEATHER])


@case
def calls_in_history_need_no_tools(target: Target) -> None:
    target.chat([*HI, called(), result(), *HI])


@case
def a_loop_of_calls_passes(target: Target) -> None:
    target.chat([*HI, *[called(), result()] * 3, {"role": "assistant", "content": "Sunny."}, *HI], tools=[WEATHER])


@case
def tools_have_dots_and_colons_in_their_names(target: Target) -> None:
    choice = target.choice(tools=[tool("home.light-1_on")], tool_choice="required", max_tokens=LONG)
    check_call(choice["message"].get("tool_calls"), ("home.light-1_on",))


@case
def a_tool_needs_no_parameters(target: Target) -> None:
    target.chat(tools=[{"type": "function", "function": {"name": "ping"}}])


@case
def strict_tools_pass(target: Target) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    target.chat(tools=[strict])


@case
def more_than_128_tools_pass(target: Target) -> None:
    target.chat(tools=[{"type": "function", "function": {"name": f"t{n}"}} for n in range(130)], max_tokens=1)


@case
def custom_tools_are_refused_by_name(target: Target) -> None:
    target.refused("type", tools=[{"type": "custom", "custom": {"name": "x"}}])


@case
def a_choice_of_an_unknown_tool_is_refused(target: Target) -> None:
    target.refused("tool_choice", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "nope"}})


@case
def functions_are_answered_in_their_words(target: Target) -> None:
    fields = {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}, "max_tokens": LONG}
    message = target.choice(**fields)["message"]
    equal((message.get("function_call") or {}).get("name"), "get_weather", "name of the function_call")
    chunks = target.stream(**fields)
    pieces = [choice["delta"].get("function_call") for chunk in chunks for choice in chunk["choices"]]
    arguments = "".join(piece.get("arguments") or "" for piece in pieces if piece)
    expect(isinstance(json.loads(arguments), dict), "arguments that are an object", arguments)


@case
def functions_in_history_pass(target: Target) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}}
    target.chat([*HI, call, {"role": "function", "name": "get_weather", "content": "Sunny."}])
