"""LiteLLM unmodified, over HTTP: as a provider of OpenAI's kind and as Anthropic's, whole and streamed,
with tools. Aider, OpenHands and SWE-agent speak through it.
"""

import asyncio
import gc
import json
import warnings
from types import SimpleNamespace

import pytest

from tests.support.http_fakes import FakeModel, FakePrompts, app_of, replies, served
from tests.support.http_site import serving

# what it warns of is its own affair
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "/a"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Reads.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
HI = [
    {"role": "system", "content": [{"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral"}}]},
    {"role": "user", "content": "hi"},
]


def idle_loops():
    found = [one for one in gc.get_objects() if isinstance(one, asyncio.AbstractEventLoop)]
    return {loop for loop in found if not loop.is_running() and not loop.is_closed()}


@pytest.fixture(scope="module")
def litellm():
    others = idle_loops()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
        import litellm

        patch.setattr(litellm, "telemetry", False)
        patch.setattr(litellm, "num_retries", 0)
        yield litellm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves sockets and loops open, which other tests would be blamed for
        for loop in idle_loops() - others:
            loop.close()
        gc.collect()


@pytest.fixture(params=["openai", "anthropic"])
def served_model(request):
    """A model behind HTTP, what it saw, and how LiteLLM is told of it."""
    model, prompts = FakeModel(), FakePrompts(n_ctx=None)
    with serving(app_of(served(model, prompts))) as url:
        base = f"{url}/v1" if request.param == "openai" else url
        told = {
            "model": f"{request.param}/demo",
            "api_base": base,
            "api_key": "none",
            "messages": HI,
            "max_tokens": 999,
        }
        yield SimpleNamespace(model=model, prompts=prompts, told=told)


def test_a_whole_reply_with_reasoning_and_a_call(litellm, served_model):
    served_model.model.script = replies(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}")
    reply = litellm.completion(**served_model.told, tools=[TOOL], tool_choice="auto")
    message = reply.choices[0].message
    assert (message.content, message.reasoning_content) == ("I look.", "Hm.")
    [call] = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("read", {"path": "/a"})
    assert reply.choices[0].finish_reason == "tool_calls"
    n_prompt = len(served_model.model.requests[0].prompt_tokens)
    assert (reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens) == (n_prompt, 3)
    messages, tools, _ = served_model.prompts.rendered[0]
    assert [message["content"] for message in messages] == ["Rules.", "hi"]
    assert tools[0]["function"]["name"] == "read"


def test_a_stream_with_reasoning_and_a_call_says_the_same(litellm, served_model):
    served_model.model.script = replies(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}", per_item=5)
    stream = litellm.completion(**served_model.told, tools=[TOOL], stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    reply = litellm.stream_chunk_builder(chunks, messages=HI)
    message = reply.choices[0].message
    assert (message.content.strip(), message.reasoning_content) == ("I look.", "Hm.")
    [call] = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("read", {"path": "/a"})
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reasons == ["tool_calls"]
    assert reply.usage.prompt_tokens == len(served_model.model.requests[0].prompt_tokens)


def test_a_reply_goes_back_with_the_result_of_its_call(litellm, served_model):
    served_model.model.script = replies(CALL)
    reply = litellm.completion(**served_model.told, tools=[TOOL])
    call = reply.choices[0].message
    served_model.model.script = replies("Found.")
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "text"}
    messages = [*HI, call.model_dump(exclude_none=True), result]
    second = litellm.completion(**served_model.told | {"messages": messages}, tools=[TOOL])
    assert second.choices[0].message.content == "Found."
    told = served_model.prompts.rendered[1][0]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool"]
    assert told[2]["tool_calls"][0]["function"]["name"] == "read"
    assert told[3]["content"] == "text"


def test_a_prompt_that_does_not_fit_is_told_as_that(litellm, served_model):
    served_model.prompts.n_ctx = 8
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**served_model.told)
