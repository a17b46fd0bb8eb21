"""A stub whose decodes a test can hold and make crash: the order of threads is then the test's,
without sleeping.
"""

import threading

from erllama.backend.batch_plan import BatchPlan
from erllama.sequence.sampling import Logits
from erllama.testing.stub_backend import StubBackend

WAIT_S = 20  # far above what any wait of a test takes; one that reaches it has failed


class GatedStub(StubBackend):
    """`hold` stops the engine thread inside the decode after the next `n_free`, `release` lets it
    go on; `crash` is raised by a decode.
    """

    def __init__(self, n_ctx: int, n_parallel: int) -> None:
        super().__init__(n_ctx, n_parallel, reply_tokens=0)
        self.crash: BaseException | None = None
        self._gate = threading.Condition()
        self._n_free: int | None = None  # decodes that may pass; None: all
        self._held = False

    def hold(self, n_free: int = 0) -> None:
        with self._gate:
            self._n_free = n_free

    def wait_until_held(self) -> None:
        """After `hold`: until the engine thread stands inside a decode."""
        with self._gate:
            assert self._gate.wait_for(lambda: self._held, WAIT_S), "nothing is decoded"

    def release(self) -> None:
        with self._gate:
            self._n_free = None
            self._gate.notify_all()

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        with self._gate:
            self._held = self._n_free == 0
            self._gate.notify_all()
            assert self._gate.wait_for(lambda: self._n_free != 0, WAIT_S), "the test forgot to release the stub"
            self._held = False
            if self._n_free is not None:
                self._n_free -= 1
        if self.crash is not None:
            raise self.crash
        return super().decode(plan)
