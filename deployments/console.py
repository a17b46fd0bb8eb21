"""What the console tells of an application's models: each change of state in one line, and the URL
once none is loading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ray.serve.schema import ApplicationStatusOverview

from deployments.model.states import LoadState, Phase, state_in

Clock = Callable[[], float]


class Progress:
    """Compares states with those that were told last."""

    def __init__(
        self,
        models: Sequence[tuple[str, str, str]],
        url: str,
        clock: Clock = time.monotonic,
        *,
        apps: Sequence[str] = (),
    ) -> None:
        """`models`: application, deployment and id of each. `apps`: applications that may have none."""
        self._apps = dict.fromkeys([*apps, *(app for app, _, _ in models)])
        self._models = models
        self._url = url
        self._clock = clock
        self._told: dict[str, LoadState] = {}
        self._since: dict[str, float] = {}
        self._settled = False

    def lines(self, applications: Mapping[str, ApplicationStatusOverview]) -> list[str]:
        """What is new, for people."""
        now = {model: self._state(applications, app, name) for app, name, model in self._models}
        lines = [self._line(model, state) for model, state in now.items() if self._told.get(model) != state]
        fronts = {app: self._state(applications, app, "ingress") for app in self._apps}
        settled = all(state.phase != Phase.LOADING for state in (*now.values(), *fronts.values()))
        if settled and not self._settled and any(state.phase == Phase.READY for state in fronts.values()):
            failed = [model for model, state in now.items() if state.phase == Phase.FAILED]
            lines.append(f"Serving at {self._url}" + (f", without {', '.join(failed)}" if failed else ""))
        self._told, self._settled = now, settled
        return lines

    @staticmethod
    def _state(applications: Mapping[str, ApplicationStatusOverview], app: str, deployment: str) -> LoadState:
        application = applications.get(app)
        return LoadState(Phase.LOADING) if application is None else state_in(application, deployment)

    def _line(self, model: str, state: LoadState) -> str:
        if state.phase == Phase.LOADING:
            self._since.setdefault(model, self._clock())
            return f"{model}: loading" + (f", after a failure: {state.reason}" if state.reason else "")
        started = self._since.pop(model, None)
        match state.phase:
            case Phase.READY:
                since = "" if started is None else f" in {self._clock() - started:.1f} s"
                return f"{model}: ready{since}" + (f", but not all of it: {state.reason}" if state.reason else "")
            case Phase.ASLEEP:
                return f"{model}: asleep, the first request loads it"
            case _:
                return f"{model}: failed: {state.reason}"
