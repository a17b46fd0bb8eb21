"""Agent loops of the `openai` client and of LangChain over ten turns of calls, with the templates
and vocabularies of four families: every call arrives, and of every turn nothing but what is new is
computed.

The models' weights are random. The grammar of `tool_choice` makes them call; which tool, with
which of few values, and how often hangs on the seed. A grammar and logit bias make the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from erllama.llama.vocab import LlamaVocab
from tests.support.agent_models import FAMILIES, Family, app_args
from tests.support.agents import TOOLS, Agent, LangChainAgent, OpenAIAgent, Turn
from tests.support.serve_process import ServeProcess, running

pytestmark = [pytest.mark.ray, pytest.mark.model]

N_SINGLE, N_PARALLEL = 5, 5
REPLY_GLUE, RESULT_GLUE = 16, 12  # tokens between a reply and the next, and around each result, at most
ANSWER = "All is looked up."
AGENTS: dict[str, Callable[..., Agent]] = {"openai": OpenAIAgent, "langchain": LangChainAgent}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServeProcess]:
    with running(folder, app_args(folder), *FAMILIES) as process:
        yield process


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vocab(server: ServeProcess, folder: Path, family: str) -> Iterator[LlamaVocab]:
    vocab = LlamaVocab.load(str(folder / f"{family}.gguf"))
    yield vocab
    vocab.close()


@pytest.mark.parametrize("client", AGENTS)
def test_ten_turns_of_calls_and_an_answer_streamed_and_not(server, vocab, family, client):
    turns: list[Turn] = []
    for streamed in (False, True):
        task = f"Plan a journey for {client}, {'streamed' if streamed else 'whole'}."  # a conversation of its own
        agent = AGENTS[client](f"{server.url}/v1", family, task, streamed=streamed)
        turns += led_to_its_end(agent, vocab, FAMILIES[family])
    assert (max(len(turn.calls) for turn in turns) > 1) is FAMILIES[family].parallel


def led_to_its_end(agent: Agent, vocab: LlamaVocab, family: Family) -> list[Turn]:
    turns: list[Turn] = []
    results: list[str] = []
    never = {str(token): -100 for text in family.unsaid for token in vocab.tokenize(text, add_special=False)}
    rarer_ends = dict.fromkeys(map(str, vocab.eog_tokens), -1.5)
    for n in range(N_SINGLE + N_PARALLEL):
        single = n < N_SINGLE
        bias = never if single else never | rarer_ends
        turn = agent.ask(
            tool_choice="required", parallel_tool_calls=not single, seed=n, temperature=2.0, logit_bias=bias
        )
        check_calls(turn, several=family.parallel and not single)
        check_cached(turns[-1:], turn, results, vocab)
        turns.append(turn)
        results = agent.answer()
        assert len(results) == len(turn.calls)

    says = dict.fromkeys(map(str, vocab.tokenize(ANSWER, add_special=False)), 100)
    grammar = {"grammar": f'root ::= "{ANSWER}"'}
    turn = agent.ask(temperature=0, logit_bias=says, extra_body=grammar)
    assert (turn.calls, turn.text, turn.finish_reason) == ([], ANSWER, "stop")
    check_cached(turns[-1:], turn, results, vocab)
    return turns


def check_calls(turn: Turn, *, several: bool) -> None:
    assert turn.finish_reason == "tool_calls"
    assert turn.text == ""
    assert turn.calls
    assert several or len(turn.calls) == 1
    for name, arguments in turn.calls:
        TOOLS[name].args_schema.model_validate(arguments, strict=True)
        assert set(arguments) == set(TOOLS[name].args)


def check_cached(before: list[Turn], turn: Turn, results: list[str], vocab: LlamaVocab) -> None:
    """All that was computed for the turn before is cached, its reply included, and what remains is
    as much as the results and the marks around them.
    """
    for last in before:
        assert turn.n_cached > last.n_cached
        assert turn.n_cached >= last.n_prompt + last.n_reply - 1
        n_results = sum(len(vocab.tokenize(result, add_special=False)) for result in results)
        assert turn.n_prompt - turn.n_cached <= n_results + REPLY_GLUE + RESULT_GLUE * len(results)
