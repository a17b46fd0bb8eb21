"""The configuration of the rules: `http.noise`."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from deployments.noise.rules import KeepRule, Rule, RuleName, check_names, packaged_rules


class NoiseOptions(BaseModel):
    """Which rules run. Raises pydantic's `ValidationError`.

    enabled: run rules at all.
    rules: one's own, behind the packaged ones; one that has the name of a packaged rule stands for it.
    opt_in: names of rules that do nothing of themselves, and shall run.
    disabled: names of those that shall not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    rules: tuple[Rule, ...] = ()
    opt_in: tuple[RuleName, ...] = ()
    disabled: tuple[RuleName, ...] = ()

    @field_validator("rules")
    @classmethod
    def _distinct(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        check_names(value)
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = {rule.name: rule for rule in self.known_rules}
        for field in ("opt_in", "disabled"):
            for name in getattr(self, field):
                if name not in known:
                    raise ValueError(f"{field} names {name!r}, which is no rule; there are {', '.join(known)}")
        idle = [name for name in self.opt_in if isinstance(known[name], KeepRule)]
        if idle:
            raise ValueError(f"opt_in names {idle[0]!r}, a rule that does nothing")
        return self

    @property
    def known_rules(self) -> tuple[Rule, ...]:
        """The packaged rules and one's own, in the order in which they run."""
        own = {rule.name: rule for rule in self.rules}
        packaged = [own.pop(rule.name, rule) for rule in packaged_rules()]
        return (*packaged, *own.values())

    @property
    def active_rules(self) -> tuple[Rule, ...]:
        """Those that run."""
        if not self.enabled:
            return ()
        return tuple(
            rule
            for rule in self.known_rules
            if not isinstance(rule, KeepRule)
            and rule.name not in self.disabled
            and (not rule.opt_in or rule.name in self.opt_in)
        )
