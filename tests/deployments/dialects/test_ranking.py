"""Reranking in its clients' forms, and vLLM's scores. The fake's score is the share of the letter e."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.dialects.ranking.pairs import MAX_TOKENS
from deployments.dialects.ranking.wire import MAX_DOCUMENTS
from tests.support.http_fakes import FakeModel, app_of, exchange, http_client, served

pytestmark = pytest.mark.anyio

SEP = 0xFF
RERANK = ["/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"]


def query(**more):
    return {"query": "q", "documents": ["abc", "eee", "e", "eab", ""], **more}


async def post(path, body, model=None, app=None):
    async with http_client(app or app_of(served(model or FakeModel()))) as client:
        return await client.post(path, content=json.dumps(body))


@pytest.fixture(scope="module")
def app():
    return app_of(served(FakeModel()))


@pytest.mark.parametrize("path", RERANK)
async def test_documents_come_best_first(path):
    model = FakeModel()
    reply = await post(path, query(model="demo", documents=["abc", "eee", {"text": "e", "id": 7}, "eee"]), model)
    body = reply.json()
    assert body.pop("id").startswith("rerank-")
    assert body == {
        "object": "list",
        "model": "demo",
        "usage": {"prompt_tokens": 18, "total_tokens": 18},
        "results": [
            {"index": 1, "relevance_score": 0.6},
            {"index": 3, "relevance_score": 0.6},
            {"index": 2, "relevance_score": pytest.approx(1 / 3)},
            {"index": 0, "relevance_score": 0.0},
        ],
    }
    assert model.ranked == [[[*b"q", SEP, *text] for text in (b"abc", b"eee", b"e", b"eee")]]


@pytest.mark.parametrize(("top_n", "n"), [(None, 5), (0, 5), (1, 1), (5, 5), (99, 5)])
async def test_top_n_bounds_the_results(top_n, n):
    reply = await post("/v1/rerank", query(top_n=top_n, return_documents=True))
    results = reply.json()["results"]
    assert len(results) == n
    assert results[0]["document"] == {"text": "eee"}


async def test_texts_ask_for_the_bare_list_of_tei():
    body = {"query": "q", "texts": ["abc", "eee"], "raw_scores": False, "truncate": False}
    assert (await post("/rerank", body)).json() == [{"index": 1, "score": 0.6}, {"index": 0, "score": 0.0}]
    told = (await post("/rerank", body | {"return_text": True})).json()
    assert [entry["text"] for entry in told] == ["eee", "abc"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": 1, "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": ["a"], "texts": ["a"]}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a", 1]}, "documents[1]"),
        ({"query": "q", "documents": ["a", {"image": "x"}]}, "documents[1]"),
        (query(top_n=-1), "top_n"),
        (query(top_n="3"), "top_n"),
        (query(max_tokens_per_doc=-1), "max_tokens_per_doc"),
        (query(truncate_prompt_tokens=-2), "truncate_prompt_tokens"),
        (query(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
        (query(truncate_prompt_tokens=65), "truncate_prompt_tokens"),
        (query(model="none"), "model"),
        ({"query": "q\ud800", "documents": ["a"]}, "query"),
        ([1], None),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(body, param):
    reply = await post("/v1/rerank", body)
    assert reply.status_code == (404 if param == "model" else 400)
    assert reply.json()["error"]["param"] == param


async def test_a_document_that_does_not_fit_is_named_with_the_limit():
    documents = ["a"] * 30 + ["b" * 63]
    reply = await post("/v1/rerank", {"query": "q", "documents": documents})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "documents[30]", "context_length_exceeded")
    assert "65 tokens" in error["message"]
    assert "at most 64" in error["message"]
    assert (await post("/v1/rerank", {"query": "q", "texts": ["b" * 63]})).json()["error"]["param"] == "texts[0]"


@pytest.mark.parametrize(
    ("how", "n"),
    [({"truncate_prompt_tokens": -1}, 64), ({"truncate": True}, 64), ({"truncate_prompt_tokens": 10}, 10),
     ({"max_tokens_per_doc": 5}, 7), ({"max_tokens_per_doc": 0, "truncate": True}, 64)],
)  # fmt: skip
async def test_a_long_document_is_cut_where_the_request_says_so(how, n):
    model = FakeModel()
    assert (await post("/v1/rerank", {"query": "q", "documents": ["b" * 1000], **how}, model)).status_code == 200
    assert model.ranked == [[[*b"q", SEP, *b"b" * (n - 2)]]]


async def test_a_query_that_leaves_no_room_is_refused_also_where_documents_are_cut():
    reply = await post("/v1/rerank", {"query": "q" * 64, "documents": ["a"], "truncate": True})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "documents[0]")


async def test_all_pairs_together_are_bounded():
    model = FakeModel(rank_tokens=8192)
    n = MAX_TOKENS // 8000 + 1
    reply = await post("/v1/rerank", {"query": "q" * 8000, "documents": ["a"] * n}, model)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "documents")
    assert str(MAX_TOKENS) in reply.json()["error"]["message"]
    assert model.ranked == []


async def test_the_most_documents_are_ranked():
    reply = await post("/v1/rerank", {"query": "", "documents": ["e" * (i % 30) for i in range(MAX_DOCUMENTS)]})
    assert len(reply.json()["results"]) == MAX_DOCUMENTS


@pytest.mark.parametrize(("path", "body"), [("/v1/rerank", query()), ("/score", {"text_1": "a", "text_2": "b"})])
async def test_a_model_without_a_rank_head_says_so(path, body):
    reply = await post(path, body, FakeModel(rank_tokens=0))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "not_supported")


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "e", [b"a\xffe"]),
        ("a", ["e", "b"], [b"a\xffe", b"a\xffb"]),
        (["a"], ["e", "b"], [b"a\xffe", b"a\xffb"]),
        (["a", "c"], ["e", "b"], [b"a\xffe", b"c\xffb"]),
    ],
)
async def test_scores_come_in_the_order_of_the_pairs(path, first, second, pairs):
    model = FakeModel()
    body = (await post(path, {"model": "demo", "text_1": first, "text_2": second}, model)).json()
    assert body["id"].startswith("score-")
    assert (body["object"], body["model"]) == ("list", "demo")
    assert body["data"] == [
        {"index": i, "object": "score", "score": pytest.approx(pair.count(b"e") / 3)} for i, pair in enumerate(pairs)
    ]
    assert body["usage"] == {"prompt_tokens": 3 * len(pairs), "total_tokens": 3 * len(pairs)}
    assert model.ranked == [[list(pair) for pair in pairs]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": "a"}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ({"text_1": [], "text_2": "c"}, "text_1"),
        ({"text_1": "a", "text_2": ["c"] * (MAX_DOCUMENTS + 1)}, "text_2"),
        ({"text_1": "a", "text_2": ["c", "d" * 63]}, "text_2[1]"),
        ({"text_1": 5, "text_2": "c"}, "text_1"),
    ],
)
async def test_pairs_that_cannot_be_made_are_refused(body, param):
    reply = await post("/v1/score", body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_a_client_that_goes_away_ends_the_work():
    started, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(FakeModel):
        async def rank(self, inputs):
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with exchange(app_of(served(Slow())), "/v1/rerank", query()) as request:
        await asyncio.wait_for(started.wait(), 5)
        request.disconnect()
        await asyncio.wait_for(cancelled.wait(), 5)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3)
NAMES = ["query", "documents", "texts", "top_n", "truncate", "truncate_prompt_tokens", "text_1", "text_2", "model"]


@given(body=st.dictionaries(st.sampled_from(NAMES), VALUES), path=st.sampled_from([*RERANK, "/score"]))
def test_no_body_is_an_error_of_the_server(app, body, path):
    assert asyncio.run(post(path, body, app=app)).status_code < 500
