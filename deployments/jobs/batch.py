"""`complete_batch(model_id, ...)`: replies for the rows of a Ray Data set, by a model of the
running application.

    rows = ray.data.parse_json("prompts.jsonl", num_cpus=0) rows.map_batches(complete_batch("demo",
    response_tokens=64), batch_size=64, num_cpus=0, compute=ray.data.ActorPoolStrategy(size=1))

A row gives its prompt as text, as token ids or as chat messages. A batch is sent as concurrent
requests in the order of their prompts, so that neighbours share what is in the context; a long
prefix that several begin with is computed before them, once. Rows come back in their own order.
What waits for room in a queue, or for a replica, waits here, in the threads of the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar

from deployments.jobs.columns import add_columns, read_column
from erllama.errors import ErllamaError, InvalidParameter, QueueFull
from erllama.events import Completion
from erllama.request import SEED_BITS, build_request

log = logging.getLogger(__name__)

Prompt = str | list[int]
T = TypeVar("T")
_SHARED_CHARS = 1024  # what a shorter prefix costs twice is not worth a round trip of its own
_SHARED_TOKENS = 256
_RETRY_S = 1.0


class BatchModel(Protocol):
    """What a batch asks of a model: `RemoteModel`, or `erllama.Model` in this process."""

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion: ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """What is asked for every row. See `complete_batch`. Raises `InvalidParameter` for a wrong
    value, before any row is read."""

    params: Mapping[str, Any]
    prompt_column: str = "prompt"
    output_column: str = "reply"
    error_column: str = "error"
    on_error: Literal["raise", "null"] = "raise"
    system: str | None = None
    index_column: str | None = None
    seed: int | None = 0
    max_concurrency: int = 32
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        build_request("check", [0], self.row_params(0))
        if self.on_error not in ("raise", "null"):
            raise InvalidParameter(f"on_error must be 'raise' or 'null', got {self.on_error!r}", param="on_error")
        if self.max_concurrency < 1:
            raise InvalidParameter(
                f"max_concurrency must be at least 1, got {self.max_concurrency}", param="max_concurrency"
            )

    def row_params(self, index: int) -> dict[str, Any]:
        """The parameters of the row with this index."""
        return {**self.params, "seed": None if self.seed is None else (self.seed + index) % (1 << SEED_BITS)}


def complete_batch(
    model_id: str,
    prompt_column: str = "prompt",
    output_column: str = "reply",
    *,
    app_name: str = "erllama",
    **options: Any,
) -> type[Any]:
    """A class for `Dataset.map_batches`; any batch format will do.

    Give `map_batches` a `batch_size` (its default is a whole block), `num_cpus=0` (the actor only
    waits; the replicas may own all CPUs) and `compute=ray.data.ActorPoolStrategy(size=n)`.

    Parameters
    ----------
    prompt_column: text to go on from, a list of token ids, or chat messages ({"role": ...,
        "content": ...} each).
    system: with it (it may be empty) a row's text is what the user says after this system prompt,
        rendered by the model's chat template.
    output_column: gets the text of the reply. `prompt_tokens`, `cached_tokens` and
        `completion_tokens` come beside it.
    on_error: "raise" (the default) fails the batch with a row's error; "null" leaves such a reply
        null, its counts 0, and tells why in the column `error_column` ("error").
    seed: row i is drawn with seed + i, so that a batch which runs again gives the same texts.
        Default 0; None draws fresh seeds.
    index_column: whole numbers that are the rows' i. Default None: the row's number in the batch,
        so the first rows of all batches share a seed.
    max_concurrency: requests of one actor in flight, 32 by default; those beyond the sequences of
        the replicas wait in the model's queue.
    patience_s: how long a row tries again while that queue is full or no replica answers; 600 by
        default.
    The rest are parameters of every request, as in `RemoteModel.complete`: response_tokens,
        temperature, stop, grammar, ...
    """
    chosen = {name: options.pop(name) for name in BatchSpec.__dataclass_fields__.keys() & options.keys()}
    spec = BatchSpec(params=options, prompt_column=prompt_column, output_column=output_column, **chosen)

    class CompleteBatch:
        """One actor: its client of the model."""

        def __init__(self) -> None:
            from deployments.jobs.cluster import Cluster

            self._model = Cluster.connect(app_name).model(model_id)

        def __call__(self, batch: Any) -> Any:
            return answer_batch(self._model, batch, spec)

    return CompleteBatch


def answer_batch(model: BatchModel, batch: Any, spec: BatchSpec) -> Any:
    """The batch with the columns of its replies."""
    cells = read_column(batch, spec.prompt_column)
    indexes = range(len(cells)) if spec.index_column is None else read_column(batch, spec.index_column)
    outcomes = Answering(model, spec).run(cells, indexes)
    texts: dict[str, list[str | None]] = {
        spec.output_column: [o.text if isinstance(o, Completion) else None for o in outcomes]
    }
    if spec.on_error == "null":
        texts[spec.error_column] = [None if isinstance(o, Completion) else f"{o.code}: {o.message}" for o in outcomes]
    usage = ("prompt_tokens", "cached_tokens", "completion_tokens")
    counts = {name: [getattr(o.stats, name) if isinstance(o, Completion) else 0 for o in outcomes] for name in usage}
    return add_columns(batch, texts, counts)


class Answering:
    """The replies of one batch. With `on_error: raise` every method raises the first error that it
    meets."""

    def __init__(
        self,
        model: BatchModel,
        spec: BatchSpec,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model = model
        self._spec = spec
        self._clock_ns = clock_ns
        self._sleep = sleep

    def run(self, cells: Sequence[Any], indexes: Sequence[int]) -> list[Completion | ErllamaError]:
        """One reply or error for each cell, in their order."""
        with ThreadPoolExecutor(self._spec.max_concurrency, thread_name_prefix="erllama-batch") as pool:
            prompts = list(pool.map(lambda row: self._attempt(row, self._prompt, cells[row]), range(len(cells))))
            ordered = [(prompt, row) for row, prompt in enumerate(prompts) if not isinstance(prompt, ErllamaError)]
            ordered.sort(key=lambda entry: (isinstance(entry[0], str), entry[0]))
            for _ in pool.map(self._prefill, shared_prefixes(prompt for prompt, _ in ordered)):
                pass
            replies = pool.map(lambda entry: self._attempt(entry[1], self._reply, entry[0], indexes[entry[1]]), ordered)
            answered = dict(zip((row for _, row in ordered), replies, strict=True))
        return [prompt if isinstance(prompt, ErllamaError) else answered[row] for row, prompt in enumerate(prompts)]

    def _prompt(self, cell: Any) -> Prompt:
        """Messages become token ids here, so that what they share can be told. Raises
        `InvalidParameter` for what is no prompt."""
        if isinstance(cell, str) and self._spec.system is not None:
            cell = [{"role": "system", "content": self._spec.system}] * bool(self._spec.system) + [
                {"role": "user", "content": cell}
            ]
        if isinstance(cell, str):
            return cell
        if isinstance(cell, list) and cell and all(isinstance(item, Mapping) for item in cell):
            return self._model.apply_chat_template(cell)
        if isinstance(cell, list) and cell and set(map(type, cell)) == {int}:
            return cell
        name = self._spec.prompt_column
        raise InvalidParameter(f"{name} must be text, token ids or chat messages, got {cell!r:.80}", param=name)

    def _prefill(self, prefix: Prompt) -> None:
        try:
            self._model.complete(prefix, response_tokens=0)
        except ErllamaError as error:  # the rows that begin with it will meet the same, or compute it themselves
            log.info("a shared prefix was not computed ahead: %s", error)

    def _reply(self, prompt: Prompt, index: int) -> Completion:
        return self._model.complete(prompt, **self._spec.row_params(index))

    def _attempt(self, row: int, call: Callable[..., T], *args: Any) -> T | ErllamaError:
        """The call's result, tried again where that may help; with `on_error: null` its error."""
        deadline_ns = self._clock_ns() + int(self._spec.patience_s * 1e9)
        while True:
            try:
                return call(*args)
            except ErllamaError as error:
                if (isinstance(error, QueueFull) or error.resumable) and self._clock_ns() < deadline_ns:
                    self._sleep(error.retry_after_s or _RETRY_S)
                elif self._spec.on_error == "null":
                    return error
                else:
                    error.add_note(f"in row {row} of the batch")
                    raise


def shared_prefixes(ordered: Iterable[Prompt]) -> Iterator[Prompt]:
    """What neighbours among sorted prompts begin with, where that is long: once for each group of
    them."""
    prefix: Prompt | None = None
    for one, other in pairwise(ordered):
        shared = _common(one, other)
        if len(shared) >= (_SHARED_CHARS if isinstance(other, str) else _SHARED_TOKENS):
            prefix = shared if prefix is None else min(prefix, shared, key=len)
        elif prefix is not None:
            yield prefix
            prefix = None
    if prefix is not None:
        yield prefix


def _common(one: Prompt, other: Prompt) -> Prompt:
    if type(one) is not type(other):
        return ""
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:n]
