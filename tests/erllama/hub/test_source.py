"""Sources: what each text means, and what is refused before anything is asked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.errors import InvalidParameter
from erllama.hub.sources.source import (
    FileSource,
    FsspecSource,
    HuggingFaceSource,
    OllamaSource,
    UrlSource,
    name_of,
    parse_source,
)

HF = HuggingFaceSource


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("hf://o/r", HF("o", "r"), "hf.co/o/r:latest"),
        ("hf://O/R-GGUF:Q4_K_M", HF("O", "R-GGUF", quant="Q4_K_M"), "hf.co/o/r-gguf:q4_k_m"),
        ("hf.co/o/r:q8_0", HF("o", "r", quant="q8_0"), "hf.co/o/r:q8_0"),
        ("hf.co/o/r:latest", HF("o", "r"), "hf.co/o/r:latest"),
        ("huggingface.co/o/r", HF("o", "r"), "hf.co/o/r:latest"),
        ("hf://o/r@v1.0:Q8_0", HF("o", "r", "v1.0", "Q8_0"), "hf.co/o/r:q8_0"),
        ("hf://o/r@refs%2Fpr%2F1/a/b.gguf", HF("o", "r", "refs/pr/1", None, "a/b.gguf"), "hf.co/o/r:b"),
        ("hf://o/r/x-00001-of-00003.gguf", HF("o", "r", file="x-00001-of-00003.gguf"), "hf.co/o/r:x"),
        ("https://huggingface.co/o/r", HF("o", "r"), "hf.co/o/r:latest"),
        ("https://huggingface.co/o/r/resolve/main/m.gguf", HF("o", "r", "main", None, "m.gguf"), "hf.co/o/r:m"),
        ("https://huggingface.co/o/r/blob/main/d/m.gguf", HF("o", "r", "main", None, "d/m.gguf"), "hf.co/o/r:m"),
        ("llama3.2:1b", OllamaSource("library", "llama3.2", "1b"), "llama3.2:1b"),
        ("ollama://me/model", OllamaSource("me", "model", "latest"), "me/model:latest"),
        ("ollama://reg.example:5000/me/m:x", OllamaSource("me", "m", "x", "reg.example:5000"), "reg.example:5000/me/m:x"),
        ("https://Example.com/a/My%20Model.gguf?v=2", UrlSource("https://example.com/a/My%20Model.gguf?v=2"), "my-model:latest"),
        ("s3://bucket/dir/M.gguf", FsspecSource("s3://bucket/dir/M.gguf"), "m:latest"),
        ("/models/a.gguf", FileSource(Path("/models/a.gguf")), "a:latest"),
        ("file:///models/a%20b.gguf", FileSource(Path("/models/a b.gguf")), "a-b:latest"),
    ],
)  # fmt: skip
def test_each_form_means_one_source_and_has_a_name(text, source, name):
    assert parse_source(text) == source
    assert str(name_of(source)) == name
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "characters"),
        ("https://user:hunter2@example.com/a.gguf", "user or password"),
        ("s3://AKIA:hunter2@bucket/a.gguf", "user or password"),
        ("https://example.com/a.gguf?X-Amz-Signature=hunter2", "credentials"),
        ("https://example.com/a.gguf?access_token=hunter2", "credentials"),
        ("https://example.com/a.bin", "end with .gguf"),
        ("https:///a.gguf", "no host"),
        ("https://example.com/a.gguf#x", "fragment"),
        ("https://example.com:99999/a.gguf", "cannot be read"),
        ("https://huggingface.co/o", "neither of a repository"),
        ("hf://o", "owner or repository"),
        ("hf://o/r:", "empty"),
        ("hf://o/r@", "empty"),
        ("hf://o/r@../x:Q8_0", "no"),
        ("hf://o/r/../../x.gguf", "plain path"),
        ("hf://o/r/x.bin", "end with .gguf"),
        ("hf://o--x/r", "owner or repository"),
        ("hf://o/r:Q4 0", "no quantisation"),
        ("file://host/a.gguf", "absolute"),
        ("nothing://x/a.gguf", "nothing:// is no source"),
        ("filecache::s3://b/a.gguf", "model"),
        ("simplecache://b/a.gguf", "is no source"),
        ("s3://bucket/a::file:///etc/b.gguf", "chained"),
        ("s3://bucket/a.txt", ".gguf"),
        ("https://example.com/a\n.gguf", "control"),
        ("https://example.com/" + "a" * 3000 + ".gguf", "characters"),
    ],
)
def test_a_bad_source_is_refused_by_name_and_its_secrets_are_not_repeated(text, why):
    with pytest.raises(InvalidParameter, match=why) as raised:
        parse_source(text)
    assert raised.value.param == "model"
    assert "hunter2" not in raised.value.message


WORD = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.]{0,10}[A-Za-z0-9_])?", fullmatch=True).filter(lambda w: ".." not in w)
LOWER = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,15}", fullmatch=True)
REVISIONS = st.none() | st.from_regex(r"[a-z0-9]{1,10}(/[a-z0-9]{1,5})?", fullmatch=True)
PATHS = st.lists(
    st.text("abcXYZ019 _-+%@:", min_size=1, max_size=8), min_size=1, max_size=3
).map(lambda parts: "/".join(parts) + ".gguf")  # fmt: skip
QUANTS = st.from_regex(r"[A-Z0-9][A-Z0-9_]{0,8}", fullmatch=True)
SOURCES = st.one_of(
    st.builds(HF, WORD, WORD, REVISIONS, QUANTS, st.none()),
    st.builds(HF, WORD, WORD, REVISIONS, st.none(), PATHS),
    st.builds(HF, WORD, WORD, REVISIONS),
    st.builds(OllamaSource, LOWER, LOWER, LOWER),
    st.builds(OllamaSource, LOWER, LOWER, LOWER, LOWER),
    st.builds(lambda path: FileSource(Path("/") / path), PATHS),
)


@given(SOURCES)
def test_a_source_survives_its_text(source):
    assert parse_source(str(source)) == source


@given(st.text() | st.from_regex(r"(hf|ollama|https|s3|file)://[ -~]*", fullmatch=True))
def test_any_text_is_a_source_with_a_name_or_refused(text):
    try:
        source = parse_source(text)
        name_of(source)
    except InvalidParameter:
        return
    assert parse_source(str(source)) == source
