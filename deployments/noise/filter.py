"""Rules chosen for a client, and what they did for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployments.noise.normalise import Message, Normalised, Tools, normalise
from deployments.noise.options import NoiseOptions
from deployments.noise.report import NoiseCounters, Report
from deployments.noise.rules import Rule

MAX_AGENT_CHARS = 512


class NoiseFilter:
    """The rules for one request. `report` is what they did, once they did; used by one thread after
    the other.
    """

    def __init__(self, rules: Sequence[Rule], counters: NoiseCounters) -> None:
        self.report = Report()
        self._rules = rules
        self._counters = counters

    def unseen(self) -> NoiseFilter:
        """The same rules, for what no client has sent: nothing is counted."""
        return NoiseFilter(self._rules, NoiseCounters())

    def apply(self, messages: Sequence[Message], tools: Tools, late_system: Callable[[], bool]) -> Normalised:
        """What `normalise` makes of them."""
        normalised = normalise(messages, tools, self._rules, late_system=late_system)
        self.report = normalised.report
        self._counters.add(normalised.report)
        return normalised


class Noise:
    """The rules of one server, and their counts. Immutable but for those; any thread."""

    def __init__(self, options: NoiseOptions | None = None, watch: Callable[[str, int], None] | None = None) -> None:
        """`watch`: see `NoiseCounters`."""
        self.counters = NoiseCounters(watch)
        self._rules = (options or NoiseOptions()).active_rules

    def filter(self, dialect: str, user_agent: str) -> NoiseFilter:
        """What a client of this dialect gets."""
        agent = user_agent[:MAX_AGENT_CHARS]
        return NoiseFilter([rule for rule in self._rules if rule.is_for(dialect, agent)], self.counters)

    def no_filter(self) -> NoiseFilter:
        """What a client gets that wants its prompt as it stands."""
        return NoiseFilter((), self.counters)
