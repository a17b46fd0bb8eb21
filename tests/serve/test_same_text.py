"""Same prompt, same seed: the demo model gives the same text alone, batched, streamed, in process
and over HTTP, greedy and sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from erllama import Model

pytestmark = [pytest.mark.ray, pytest.mark.model]

QUESTIONS = [
    "Hello!",
    "Tell me a short story.",
    "What is 2 + 5?",
    "List three colours.",
    "Who are you?",
    "What can you do?",
]
SAMPLING = {"greedy": {"temperature": 0.0, "seed": 1}, "sampled": {"temperature": 0.9, "seed": 7}}
N_TOKENS = 64


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(path="demo", n_ctx=2048, n_parallel=4, n_threads=1) as model:
        yield model


def in_process(model: Model, question: str, sampling: dict[str, float]) -> str:
    ids = model.apply_chat_template([{"role": "user", "content": question}])
    return model.complete(ids, response_tokens=N_TOKENS, **sampling).text


def over_http(client: OpenAI, question: str, sampling: dict[str, float]) -> str:
    messages = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(model="demo", messages=messages, max_tokens=N_TOKENS, **sampling)
    return reply.choices[0].message.content


def streamed(client: OpenAI, question: str, sampling: dict[str, float]) -> str:
    messages = [{"role": "user", "content": question}]
    chunks = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=N_TOKENS, stream=True, **sampling
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("question", QUESTIONS)
def test_in_process_http_and_stream_agree(model, client, question, kind):
    expected = in_process(model, question, SAMPLING[kind])
    assert expected
    assert over_http(client, question, SAMPLING[kind]) == expected
    assert streamed(client, question, SAMPLING[kind]) == expected


@pytest.mark.parametrize("kind", SAMPLING)
def test_alone_and_batched_with_three_others_agree(model, client, kind):
    alone = [in_process(model, question, SAMPLING[kind]) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        batched = list(pool.map(lambda question: in_process(model, question, SAMPLING[kind]), QUESTIONS))
        batched_http = list(pool.map(lambda question: streamed(client, question, SAMPLING[kind]), QUESTIONS))
    assert batched == alone
    assert batched_http == alone
