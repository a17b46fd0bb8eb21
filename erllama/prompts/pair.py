"""A query and a document as a model with a rank head reads them, as llama-server writes them.

Cross encoders: BOS query EOS SEP document EOS, of which each vocabulary has its own. A file may
bring a template instead (`tokenizer.chat_template.rerank`, Qwen3-Reranker), text with {query} and
{document} in it. Static; any thread.
"""

from __future__ import annotations

import re

from erllama.backend.base import Vocab

RERANK_TEMPLATE = "rerank"
_GAP = re.compile(r"\{(query|document)\}")
_ATTEMPTS = 4  # cutting a text: what is left of it may tokenise anew into more tokens than were left


class RankQuery:
    """A query, ready to be paired with many documents."""

    def __init__(self, vocab: Vocab, query: str) -> None:
        self._vocab = vocab
        self._query = query
        self._template = vocab.named_templates.get(RERANK_TEMPLATE)
        if self._template is None:
            self._head, self._tail = _frame(vocab, query)

    def with_document(
        self, document: str, *, max_document: int | None = None, max_tokens: int | None = None
    ) -> list[int]:
        """The tokens of the pair; none at all is possible.

        `max_document` keeps so many tokens of the document, from its beginning, `max_tokens` as many
        as let the pair have so many. It has more where the query alone does.
        """
        if self._template is not None:
            return self._rendered(self._template, document, max_document, max_tokens)
        tokens = self._vocab.tokenize(document, add_special=False, parse_special=False)[:max_document]
        if max_tokens is not None:
            tokens = tokens[: max(0, max_tokens - len(self._head) - len(self._tail))]
        return [*self._head, *tokens, *self._tail]

    def _rendered(self, template: str, document: str, max_document: int | None, max_tokens: int | None) -> list[int]:
        if max_document is not None:
            document = self._cut(document, max_document)
        pair = self._fill(template, document)
        if max_tokens is None:
            return pair
        for _ in range(_ATTEMPTS):
            if len(pair) <= max_tokens or not document:
                return pair
            n_tokens = len(self._vocab.tokenize(document, add_special=False, parse_special=False))
            document = self._cut(document, n_tokens - (len(pair) - max_tokens))
            pair = self._fill(template, document)
        return pair if len(pair) <= max_tokens else self._fill(template, "")

    def _fill(self, template: str, document: str) -> list[int]:
        """In one pass: a query that holds "{document}" stays as it is."""
        texts = {"query": self._query, "document": document}
        text = _GAP.sub(lambda gap: texts[gap[1]], template)
        return self._vocab.tokenize(text, add_special=False, parse_special=True)

    def _cut(self, text: str, n_tokens: int) -> str:
        """The beginning of a text, of so many tokens or a few less: no character is halved."""
        tokens = self._vocab.tokenize(text, add_special=False, parse_special=False)
        if len(tokens) <= n_tokens:
            return text
        return self._vocab.detokenize(tokens[: max(0, n_tokens)]).rstrip("\N{REPLACEMENT CHARACTER}")


def _frame(vocab: Vocab, query: str) -> tuple[list[int], list[int]]:
    """What stands before a document, and behind it."""
    specials = vocab.specials
    eos = specials.sep if specials.eos is None else specials.eos
    bos = [specials.bos] if vocab.adds_bos and specials.bos is not None else []
    end = [eos] if specials.adds_eos and eos is not None else []
    sep = [specials.sep] if specials.adds_sep and specials.sep is not None else []
    return [*bos, *vocab.tokenize(query, add_special=False, parse_special=False), *end, *sep], end
