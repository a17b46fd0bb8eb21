"""Names: what is one, how it is written, and which one somebody may have meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.hub.name import MAX_LENGTH, ModelName, near_names

PARTS = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,20}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,20}(:[0-9]{1,5})?", fullmatch=True)
NAMES = st.one_of(
    st.builds(ModelName, PARTS, PARTS),
    st.builds(ModelName, PARTS, PARTS, PARTS),
    st.builds(ModelName, PARTS, PARTS, PARTS, HOSTS),
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("qwen2.5", "qwen2.5:latest"),
        ("Qwen2.5:7B-Q4_K_M", "qwen2.5:7b-q4_k_m"),
        ("me/model", "me/model:latest"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q8_0", "hf.co/bartowski/llama-3.2-1b-gguf:q8_0"),
        ("localhost:5000/me/model:x", "localhost:5000/me/model:x"),
    ],
)
def test_a_name_has_one_way_to_be_written(text, written):
    assert str(ModelName.parse(text)) == written


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected"),
        ("a:", "the tag ''"),
        (":b", "the model ''"),
        ("a/b/c/d", "too many"),
        ("/a", "too many"),
        ("../a", "the namespace '..'"),
        ("a/..", "the model '..'"),
        (".hidden", "the model '.hidden'"),
        ("a b", "the model 'a b'"),
        ("a@b", "the model 'a@b'"),
        ("a+b", "the model 'a+b'"),
        ("a:b:c", "the tag 'b:c'"),
        ("-a", "the model '-a'"),
        ("ho st/a/b", "the host 'ho st'"),
        ("a" * (MAX_LENGTH + 1), "characters"),
        ("modèle", "the model"),
    ],
)
def test_what_is_no_name_is_refused_with_its_part(text, why):
    with pytest.raises(InvalidParameter, match=re.escape(why)) as raised:
        ModelName.parse(text)
    assert raised.value.param == "model"


@given(NAMES)
def test_a_name_survives_its_text_and_its_file_name(name):
    assert ModelName.parse(str(name)) == name
    assert ModelName.parse(str(name).upper()) == name
    assert ModelName.from_file_name(name.file_name) == name
    assert "/" not in name.file_name
    assert name.file_name.isascii()


@given(NAMES, NAMES)
def test_two_names_never_share_a_file(one, other):
    assert (one.file_name == other.file_name) == (one == other)


@given(st.text())
def test_any_text_is_a_name_or_refused(text):
    try:
        name = ModelName.parse(text)
    except InvalidParameter:
        return
    assert len(name.file_name) < 240
    assert not name.file_name.startswith(".")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("qwen2.5:7b", ["qwen2.5:0.5b", "qwen2.5:latest"]),
        ("lama3:latest", ["llama3:latest"]),
        ("something-else:latest", []),
    ],
)
def test_near_names_are_other_tags_and_slips(wanted, near):
    known = ["qwen2.5:0.5b", "qwen2.5:latest", "llama3:latest", "zzz:1"]
    assert near_names(wanted, known) == near
