"""Rank heads in llama.cpp: scores do not depend on the batch, and what is no rank head is refused."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGUFValueType

from erllama.errors import ContextOverflow, InvalidParameter, ModelLoadError, NotSupported
from erllama.gguf.check import inspect_gguf
from erllama.gguf.header import read_header
from erllama.model import Model
from erllama.prompts.pair import RankQuery
from erllama.testing.random_gguf import write_random_encoder, write_random_model
from erllama.testing.random_shape import SHAPES
from erllama.testing.random_vocab import WORDS
from tests.support.gguf_files import serialise, with_value

pytestmark = pytest.mark.model

LABELS = "bert.classifier.output_labels"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    write_random_encoder(folder / "bert.gguf", 5, n_labels=1)
    write_random_encoder(folder / "labels.gguf", 5, n_labels=2)
    write_random_model(folder / "qwen3.gguf", SHAPES["tiny-qwen3-rank"], file_type="F32")
    return folder


def documents(n: int) -> list[str]:
    rng = random.Random(7)
    return ["", *(" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(n - 1))]


@pytest.mark.parametrize(("name", "limit"), [("bert", 512), ("labels", 512), ("qwen3", 1024)])
def test_scores_do_not_depend_on_what_is_ranked_beside(folder, name, limit):
    with Model(path=str(folder / f"{name}.gguf"), n_ctx=1024, n_threads=1) as model:
        assert (model.model_info().rank_tokens, model.model_info().embeds) == (limit, False)
        texts = documents(24)  # several decodes: at most 16 sequences, or so many tokens
        together = model.rerank("where is the river", texts)
        alone = [model.rerank("where is the river", [text])[0] for text in texts]
        assert together == pytest.approx(alone, abs=2e-2)  # other batch shapes take other kernels
        assert max(alone) - min(alone) > 0.1, "the documents do not matter"
        assert model.rerank("a tree", texts) != pytest.approx(together, abs=2e-2), "the query does not matter"
        if name == "qwen3":
            assert all(0 < score < 1 for score in together)
        assert model.rerank("q", []) == []
        with pytest.raises(NotSupported, match="ranks pairs"):
            model.embed([5])
        with pytest.raises(ContextOverflow, match=rf"documents\[20\].* at most {limit}"):
            model.rerank("q", ["a"] * 20 + ["tree " * limit])
        with pytest.raises(InvalidParameter, match="outside"):
            model.rank([[10**6]])
        assert model.evict().freed_bytes >= 0
        assert model.rerank("where is the river", texts[:1]) == pytest.approx(together[:1], abs=2e-2)
        assert all(map(math.isfinite, together))


# what llama-server answers for these files, each pair in a batch of its own
RECORDED = {
    "bert": [0.4074826538562, 0.7016032934188, 0.6369597315788, 0.3890792727470],
    "qwen3": [0.4521240293979, 0.3828541040420, 0.2621554732322, 0.5769416093826],
}


@pytest.mark.parametrize("name", RECORDED)
def test_scores_are_those_of_llama_server(folder, name):
    texts = ["the river is near the mountain", "", "car", "a tree grows"]
    with Model(path=str(folder / f"{name}.gguf"), n_ctx=1024, n_threads=1) as model:
        alone = [model.rerank("where is the river", [text])[0] for text in texts]
        assert alone == pytest.approx(RECORDED[name], abs=2e-3)
        assert model.rerank("where is the river", texts) == pytest.approx(RECORDED[name], abs=2e-2)


def test_a_pair_of_the_real_vocabulary_has_its_frame(folder):
    with Model(path=str(folder / "bert.gguf")) as model:
        pair = RankQuery(model._backend.vocab, "the river").with_document("a tree")
        assert model._backend.vocab.detokenize(pair, special=True).split() == [
            "[CLS]",
            "the",
            "river[SEP]",
            "a",
            "tree",
        ]
    with Model(path=str(folder / "qwen3.gguf"), n_ctx=512) as model:
        pair = RankQuery(model._backend.vocab, "the river").with_document("a tree " * 99, max_tokens=60)
        assert len(pair) <= 60
        text = model._backend.vocab.detokenize(pair, special=True)
        assert text.startswith("<|im_start|>user\n<Query>: the river\n<Document>: a tree a tree")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_models_without_a_rank_head_refuse(folder, tmp_path):
    write_random_encoder(tmp_path / "mean.gguf", 5)
    headless = tmp_path / "headless.gguf"
    headless.write_bytes(with_value(tmp_path / "mean.gguf", "bert.pooling_type", 4))
    for path in (tmp_path / "mean.gguf", headless):
        with Model(path=str(path)) as model:
            assert model.model_info().rank_tokens == 0
            for call in (lambda model=model: model.rerank("q", ["d"]), lambda model=model: model.rank([[5]])):
                with pytest.raises(NotSupported, match="no rank head"):
                    call()


def test_a_head_that_has_not_one_score_for_each_label_is_refused(folder):
    """llama.cpp would read beyond it."""
    path, bad = folder / "bert.gguf", folder / "bad.gguf"
    for labels, kind in (([b"a", b"b"], None), (np.array([1], np.int32), GGUFValueType.INT32)):
        header = read_header(path)
        value = header.metadata[LABELS]
        value = replace(value, data=labels) if kind is None else replace(value, data=labels, item_type=kind)
        bad.write_bytes(serialise(header, header.metadata | {LABELS: value}))
        with pytest.raises(ModelLoadError, match="labels"):
            inspect_gguf(bad)
