"""Chat templates: rendered as transformers does, contained, and wrong messages named by their
place.
"""

from datetime import datetime

import pytest

from erllama.chat.template import MAX_PROMPT_CHARS, NO_TEMPLATE, ChatTemplate, normalise_messages
from erllama.errors import InvalidParameter, NotSupported

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{ bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n' ~ (m['content'] | trim) ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

MISTRAL = """\
{%- set ns = namespace(turn=0) -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if (message.role == 'user') != (ns.turn % 2 == 0) -%}
        {{- raise_exception('roles must alternate user and assistant') -}}
    {%- endif -%}
    {%- set ns.turn = ns.turn + 1 -%}
    {%- if message.role == 'user' -%}
        [INST] {{ message.content }} [/INST]
    {%- else -%}
        {{- ' ' + message.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

QWEN_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""

USER = {"role": "user", "content": "Hi"}


def template(source, **kwargs):
    return ChatTemplate(source, bos="<s>", eos="</s>", **kwargs)


def refusal(source, messages=(USER,), error=InvalidParameter, **kwargs):
    with pytest.raises(error) as caught:
        template(source).render(messages, **kwargs)
    return caught.value


def test_chatml_opens_the_assistants_turn_unless_told_not_to():
    chat = template(CHATML)
    assert chat.render([USER]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render([USER], add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_llama3_shape():
    system = {"role": "system", "content": " Be brief. "}
    assert template(LLAMA3).render([system, USER]) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_shape_and_its_refusal_in_its_own_words():
    reply = {"role": "assistant", "content": "Hello"}
    assert template(MISTRAL).render([USER, reply, USER]) == "<s>[INST] Hi [/INST] Hello</s>[INST] Hi [/INST]"
    assert template(MISTRAL).render([USER, USER]) == "<s>[INST] Hi\n\nHi [/INST]"
    error = refusal(MISTRAL, [reply, {"role": "critic", "content": "No"}])
    assert (error.param, error.http_status) == ("messages", 400)
    assert error.message == "the chat template refuses these messages: roles must alternate user and assistant"


def test_qwen_tools_shape_with_arguments_as_json_text():
    tools = [{"type": "function", "function": {"name": "f", "description": "a < b & 'é'", "parameters": {}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": "<é>"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"},
    ]
    assert template(QWEN_TOOLS).render(messages, tools=tools) == (
        "<|im_start|>system\n<tools>\n"
        '{"type": "function", "function": {"name": "f", "description": "a < b & \'é\'", "parameters": {}}}'
        "\n</tools><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": "<é>"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
    )
    assert call["function"]["arguments"] == '{"b": 1, "a": "<é>"}'  # the caller's messages are untouched


def test_normalised_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": None},
        {"role": "tool", "tool_call_id": "x", "content": []},
    ]
    assert normalise_messages(messages) == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "tool_call_id": "x", "content": ""},
    ]


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ("hi", "messages must be a list"),
        ([], "messages is empty"),
        (["hi"], "messages[0] must be an object"),
        ([USER, {"content": "x"}], "messages[1].role must be a string"),
        ([{"role": "user", "content": 3}], "messages[0].content must be a string or a list of parts"),
        (
            [USER, USER, {"role": "user", "content": [{"type": "image_url"}]}],
            "messages[2].content[0].type must be \"text\", got 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text must be a string"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function must be an object"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}],
            "messages[0].tool_calls[0].function.name must be a string",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
            "messages[0].tool_calls[0].function.arguments must be a JSON object",
        ),
    ],
)
def test_a_wrong_message_is_named_by_its_place(messages, place):
    error = refusal(CHATML, messages)
    assert error.param == "messages"
    assert error.message.startswith(place)


@pytest.mark.parametrize("source", [None, "", "  \n"])
def test_a_model_without_a_template_does_not_support_chat(source):
    assert refusal(source, error=NotSupported).message == NO_TEMPLATE


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ x", "{% for m in messages %}", "{{ x | nofilter }}", "{% generation %}x", "{{ " + "(" * 5000],
)
def test_a_template_that_does_not_compile_is_reported_on_use(source):
    chat = template(source)
    assert "does not compile" in refusal(source, error=NotSupported).message
    assert "does not compile" in repr(chat)


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].nothing.at_all }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ nothing() }}", "{{ undefined | tojson }}"],
)
def test_whatever_a_template_raises_names_the_messages(source):
    error = refusal(source)
    assert error.param == "messages"
    assert error.message.startswith("the chat template refuses these messages: ")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ '{0.__class__.__mro__[1]}'.format('') }}",
        "{% set x = messages.insert(0, 1) %}",
        "{{ messages[0].clear() }}",
        "{{ range.__call__.__globals__.x }}",
    ],
)
def test_the_sandbox_holds(source):
    assert "forbidden" in refusal(source, error=NotSupported).message


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 1000000000 }}",
        "{% for i in range(2000000) %}{% endfor %}",
        "{% for i in range(5000) %}{% for j in range(5000) %}{% endfor %}{% endfor %}",
        "{{ 2 ** 100000000 }}",
        "{% for m in messages %}{% set _ = messages.append(m) %}{% endfor %}",
        "{% set ns = namespace(x='x' * 1000000) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
)
def test_a_runaway_template_is_stopped(source):
    assert "more than" in refusal(source, error=NotSupported).message


def test_a_prompt_of_ten_megabytes_is_refused():
    error = refusal("{% for i in range(11) %}{{ 'x' * 1000000 }}{% endfor %}")
    assert (error.message, error.param) == (f"the rendered prompt exceeds {MAX_PROMPT_CHARS} characters", "messages")


def test_the_range_budget_is_per_rendering():
    chat = template("{% for i in range(600000) %}{% endfor %}ok")
    assert [chat.render([USER]), chat.render([USER])] == ["ok", "ok"]


def test_idioms_of_transformers():
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "|{{ {'b': 1, 'a': '<'} | tojson(indent=1, sort_keys=true) }}|{{ strftime_now('%d %b %Y') }}|{{ eos_token }}"
        "|{{ tools is none }}|{{ documents is none }}|{{ thinking }}"
    )
    chat = template(source, now=lambda: datetime(2026, 1, 2))
    assert (
        chat.render([USER, {"role": "assistant", "content": "Hello"}, USER], thinking=True)
        == 'Hi|{\n "a": "<",\n "b": 1\n}|02 Jan 2026|</s>|True|True|True'
    )


def test_template_variables_may_not_replace_those_of_the_server():
    assert refusal(CHATML, bos_token="x").param == "chat_template_kwargs"


def test_the_clock_of_a_template_stands_still_for_a_day():
    shown = template("{{ strftime_now('%H:%M:%S') }}").render([USER])
    assert shown == "00:00:00"
