"""Who is served next when several wait for one thing: a free sequence id, or the next slice of a
prefill. Pure policy over claims; nothing here knows a sequence, a clock or a thread.

What is shared out are prompt tokens that have to be computed. Three rules, the first one first:

1. Priority. A lower number goes first. While lower classes wait, one token in `CLASS_TURNS` of what
   is served goes to them, and in them by the same rule.
2. Tenants of one class get equal shares, as far as they ask for them. A tenant may run ahead of the
   one that has had least by `CREDIT` slices. Among tenants that are not too far ahead, what is
   finished first, counted from where its tenant stands, goes first: small requests do not wait for
   long ones.
3. Claims of one tenant: the shortest goes first, in order of arrival where sizes are alike. One
   token in `AGE_TURNS` goes to the one that has waited longest.

So claims of one tenant, one priority and one size are served first come, first served. Shares alone
bound a wait: among n tenants of the highest class, a claim and the older ones of its tenant, of R
tokens together, are done when about `AGE_TURNS` * n * R tokens and two credits for each other tenant
have been served; each higher class makes that `CLASS_TURNS` times as many. A tenant that comes back
is charged with what it had, as long as that is more than others had; time without claims gives no
credit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CLASS_TURNS = 8
AGE_TURNS = 4
CREDIT = 16


class Claim(NamedTuple):
    """One that waits. `n_tokens` are what it has to compute still; `arrival` orders claims in time."""

    tenant: str
    priority: int
    n_tokens: int
    arrival: int


class FairOrder:
    """The order in one queue. `unit`, the tokens of a slice, is the grain of all shares."""

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._classes: dict[int, _Class] = {}
        self._passed: dict[int, int] = {}  # by priority: tokens served while a lower one waited, less its turns

    def pick(self, claims: Sequence[Claim]) -> int:
        """The index of the one that is next, of at least one. Changes nothing."""
        priority = self._priority(claims)
        members = [i for i, claim in enumerate(claims) if claim.priority == priority]
        return self._class(priority).pick(claims, members)

    def charge(self, claims: Sequence[Claim], served: int, n_tokens: int) -> None:
        """The claim of index `served` among `claims` got `n_tokens`."""
        priority = claims[served].priority
        present = {claim.priority for claim in claims}
        passed = {p: self._passed.get(p, 0) for p in present if p < max(present)}
        for other in passed:
            if other == priority:
                passed[other] += n_tokens
            elif other < priority:
                passed[other] = max(0, passed[other] - (CLASS_TURNS - 1) * n_tokens)
        self._passed = passed
        members = [i for i, claim in enumerate(claims) if claim.priority == priority]
        self._classes.setdefault(priority, self._class(priority)).charge(claims, members, served, n_tokens)

    def _class(self, priority: int) -> _Class:
        return self._classes.get(priority) or _Class(self._unit)

    def _priority(self, claims: Iterable[Claim]) -> int:
        """The first class that has not passed the lower ones for too long."""
        *higher, last = sorted({claim.priority for claim in claims})
        due = (CLASS_TURNS - 1) * self._unit
        return next((priority for priority in higher if self._passed.get(priority, 0) < due), last)


class _Class:
    """The tenants of one priority. `_used` has tokens by tenant, of those that had more than `_least`,
    which is what every other one counts as having had.
    """

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._least = 0
        self._used: dict[str, int] = {}
        self._passed: dict[str, int] = {}  # tokens of younger claims while an older one waited, less its turns

    def pick(self, claims: Sequence[Claim], members: Sequence[int]) -> int:
        of_tenant = _by_tenant(claims, members)
        bound = min(map(self._level, of_tenant)) + CREDIT * self._unit
        heads = [self._head(claims, indices) for tenant, indices in of_tenant.items() if self._level(tenant) <= bound]
        return min(heads, key=lambda i: (self._level(claims[i].tenant) + claims[i].n_tokens, claims[i].arrival))

    def charge(self, claims: Sequence[Claim], members: Sequence[int], served: int, n_tokens: int) -> None:
        of_tenant, tenant = _by_tenant(claims, members), claims[served].tenant
        level = self._level(tenant)
        self._least = max(self._least, min(map(self._level, of_tenant)))
        self._used[tenant] = level + n_tokens
        self._used = {name: used for name, used in self._used.items() if used > self._least}
        self._passed = {name: self._passed.get(name, 0) for name, own in of_tenant.items() if len(own) > 1}
        if tenant in self._passed:
            is_oldest = served == _oldest(claims, of_tenant[tenant])
            change = -(AGE_TURNS - 1) * n_tokens if is_oldest else n_tokens
            self._passed[tenant] = max(0, self._passed[tenant] + change)

    def _level(self, tenant: str) -> int:
        return max(self._least, self._used.get(tenant, 0))

    def _head(self, claims: Sequence[Claim], indices: Sequence[int]) -> int:
        """The next one of a tenant."""
        oldest = _oldest(claims, indices)
        if self._passed.get(claims[oldest].tenant, 0) >= (AGE_TURNS - 1) * self._unit:
            return oldest
        return min(indices, key=lambda i: (self._size(claims[i].n_tokens), claims[i].arrival))

    def _size(self, n_tokens: int) -> int:
        """Sizes that count as alike: up to one slice, two, four, eight, ..."""
        return max(0, -(-n_tokens // self._unit) - 1).bit_length()


def _by_tenant(claims: Sequence[Claim], members: Iterable[int]) -> dict[str, list[int]]:
    of_tenant: dict[str, list[int]] = {}
    for i in members:
        of_tenant.setdefault(claims[i].tenant, []).append(i)
    return of_tenant


def _oldest(claims: Sequence[Claim], indices: Iterable[int]) -> int:
    return min(indices, key=lambda i: claims[i].arrival)
