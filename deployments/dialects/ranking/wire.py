"""Bodies of requests that rank, validated. Every fault is an `InvalidParameter` (HTTP 400) whose
`param` is the path of the field.

Fields that nobody here knows are passed over, as the servers do whose clients these are: each has
some of its own. Types are strict (`"1"` is no number); null means absent. Those that ask for scores
between 0 and 1 (TEI's `raw_scores`, vLLM's `activation`) are among them: a score is what the head
gives, as llama-server answers it.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from deployments.http.body import parse_json
from erllama.errors import InvalidParameter

MAX_DOCUMENTS = 2048

_NO_TEXT = "must be a string or an object with a string as text"


def _document(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, str):
        raise ValueError(_NO_TEXT)
    return value


Document = Annotated[str, BeforeValidator(_document)]


def _listed(value: Any) -> Any:
    """One text, or several."""
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of strings")
    return value


class Wire(BaseModel):
    """Base of a body, and where its pairs are cut.

    `truncate_prompt_tokens` is what a pair may have, -1 all that the model takes; `truncate` says
    the same as -1. `max_tokens_per_doc` is what a document may have; 0 sets no limit.
    """

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    model: str | None = None
    truncate: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=0)] | None = None

    def check(self) -> None:
        """Raises `InvalidParameter` for fields that contradict each other."""


class RerankBody(Wire):
    """`texts` are TEI's name of `documents`, and ask for its form of the answer."""

    query: str
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    texts: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None  # 0 is vLLM's "all"
    return_documents: bool | None = None
    return_text: bool | None = None

    def check(self) -> None:
        if (self.documents is None) == (self.texts is None):
            raise InvalidParameter(
                "send documents, or texts for TEI's form of the answer: one of them", param="documents"
            )

    @property
    def is_tei(self) -> bool:
        return self.texts is not None

    @property
    def ranked(self) -> list[str]:
        return self.documents or self.texts or []


_Texts = Annotated[list[Document], BeforeValidator(_listed), Field(min_length=1, max_length=MAX_DOCUMENTS)]


class ScoreBody(Wire):
    """One text against one or many, or as many against as many."""

    text_1: Annotated[_Texts, Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))]
    text_2: Annotated[_Texts, Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))]

    def check(self) -> None:
        n_1, n_2 = len(self.text_1), len(self.text_2)
        if n_1 not in (1, n_2):
            raise InvalidParameter(
                f"text_1 has {n_1} texts and text_2 has {n_2}: text_1 must be one text, or as many", param="text_1"
            )


B = TypeVar("B", bound=Wire)


def parse_body(kind: type[B], raw: bytes) -> B:
    """The validated body. Raises `InvalidParameter`."""
    body = parse_json(kind, raw)
    body.check()
    return body
