"""Bodies: whatever is sent, the answer is a valid body or an error that HTTP can show."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.dialects.openai.wire import IGNORED, NEUTRAL, ChatBody, CompletionBody, EmbeddingBody, parse_body
from erllama.errors import InvalidParameter, NotSupported, RequestError

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CHAT_FIELDS = [*ChatBody.model_fields, "user", "mirostat", "nonsense"]


@given(st.dictionaries(st.sampled_from(CHAT_FIELDS), ANY, max_size=6), st.booleans())
def test_no_value_of_any_field_escapes_as_another_exception(fields, valid_messages):
    if valid_messages:
        fields["messages"] = [{"role": "user", "content": "x"}]
    try:
        body = parse_body(ChatBody, json.dumps(fields).encode())
    except RequestError as error:
        status = error.http_status
    else:
        status = 400 if body.messages else 0
    assert status == 400


@given(st.binary(max_size=40))
def test_no_bytes_escape_as_another_exception(raw):
    for kind in (ChatBody, CompletionBody, EmbeddingBody):
        with pytest.raises(RequestError):
            parse_body(kind, raw)


def test_the_lists_of_names_are_disjoint_and_shadow_no_field():
    fields = {*ChatBody.model_fields, *CompletionBody.model_fields}
    assert not IGNORED & NEUTRAL.keys()
    assert not fields & IGNORED
    assert not fields & NEUTRAL.keys()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_knob_that_we_lack_passes_only_where_it_is_off(name):
    def parse(value):
        return parse_body(EmbeddingBody, json.dumps({"input": "x", name: value}).encode())

    for value in (None, *NEUTRAL[name]):
        parse(value)
    with pytest.raises(NotSupported) as caught:
        parse("on")
    assert caught.value.param == name


def test_one_fault_of_several_is_told():
    with pytest.raises(InvalidParameter) as caught:
        parse_body(ChatBody, b'{"temperature":"x","top_p":"y"}')
    assert caught.value.param in ("messages", "temperature")
