"""What a manifest's parameters, which have Ollama's names, mean here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.dialects.ollama.options import NEUTRAL, NO_LIMIT, Options
from deployments.hub.defaults import ManifestDefaults, defaults_of
from erllama.request import SamplingParams

NOTHING = ManifestDefaults(SamplingParams(), (), None, None, ())


@pytest.mark.parametrize(
    ("parameters", "sampling", "rest"),
    [
        ({}, {}, {}),
        ({"temperature": 0.25, "top_k": 5, "min_p": 0.1}, {"temperature": 0.25, "top_k": 5, "min_p": 0.1}, {}),
        ({"repeat_penalty": 1.5, "repeat_last_n": 9}, {"repetition_penalty": 1.5, "repeat_last_n": 9}, {}),
        ({"seed": -1}, {}, {}),
        ({"seed": 7, "num_predict": 9, "num_ctx": 8192}, {"seed": 7}, {"max_tokens": 9, "n_ctx": 8192}),
        ({"num_predict": -1}, {}, {"max_tokens": NO_LIMIT}),
        ({"stop": "<end>"}, {}, {"stop": ("<end>",)}),
        ({"stop": ["a", "b"]}, {}, {"stop": ("a", "b")}),
        # each for itself: what is impossible takes nothing else with it
        ({"temperature": 0.25, "mirostat": 2, "num_gpu": 3}, {"temperature": 0.25}, {"ignored": ("mirostat", "num_gpu")}),
        ({"temperature": "hot", "top_p": 0.5}, {"top_p": 0.5}, {"ignored": ("temperature",)}),
        ({"temperature": -4, "stop": "x"}, {}, {"stop": ("x",), "ignored": ("temperature",)}),
        ({"stop": [f"<{i}>" for i in range(1000)]}, {}, {"ignored": ("stop",)}),
        ({"stop": [1], "seed": 3}, {"seed": 3}, {"ignored": ("stop",)}),
        ({"num_ctx": "8192"}, {}, {"ignored": ("num_ctx",)}),
        ({"num_ctx": 0}, {}, {"ignored": ("num_ctx",)}),
        ({"num_ctx": True}, {}, {"ignored": ("num_ctx",)}),
    ],
)  # fmt: skip
def test_parameters_are_defaults(parameters, sampling, rest):
    assert defaults_of(parameters) == replace(NOTHING, sampling=SamplingParams(**sampling), **rest)


def test_what_the_server_has_for_all_models_stands_below_them():
    own = SamplingParams(temperature=0.5, top_k=3)
    assert defaults_of({"top_k": 9}, own).sampling == replace(own, top_k=9)
    assert defaults_of({}, own).sampling == own


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.text(), max_size=2)
)
names = st.sampled_from([*Options.model_fields, *NEUTRAL, "num_ctx", "num_gpu", "x"])


@given(st.dictionaries(names, values))
def test_no_parameter_is_an_error_and_each_is_either_used_or_named(parameters):
    found = defaults_of(parameters)
    assert set(found.ignored) <= set(parameters)
    assert found == replace(
        defaults_of({name: value for name, value in parameters.items() if name not in found.ignored}),
        ignored=found.ignored,
    )
