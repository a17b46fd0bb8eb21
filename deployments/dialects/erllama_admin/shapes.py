"""What this API answers, as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cache_store import CachedPrefix, ImportReport, PinInfo
from deployments.http.answers import Answer

_MAX_CHARS = 160  # of the text by which people know a prefix


def merged(told: Iterable[Sequence[CachedPrefix]], limit: int, order: str) -> list[CachedPrefix]:
    """What several replicas know, as one list: each prefix once, with all its tiers and pins."""
    found: dict[str, CachedPrefix] = {}
    for prefix in (prefix for prefixes in told for prefix in prefixes):
        other = found.setdefault(prefix.key, prefix)
        found[prefix.key] = replace(
            max(prefix, other, key=lambda one: one.n_bytes),
            tiers=_union(other.tiers, prefix.tiers),
            pins=_union(other.pins, prefix.pins),
            hits=max(other.hits, prefix.hits),
            last_used_s=max(other.last_used_s, prefix.last_used_s),
            head=other.head or prefix.head,
        )
    by = {"hits": "hits", "bytes": "n_bytes", "tokens": "n_tokens"}.get(order, "last_used_s")
    return sorted(found.values(), key=lambda prefix: getattr(prefix, by), reverse=True)[:limit]


def merged_pins(told: Iterable[Sequence[PinInfo]]) -> list[PinInfo]:
    """The pins that several replicas know, each once."""
    found: dict[tuple[str, str], PinInfo] = {}
    for pin in (pin for pins in told for pin in pins):
        other = found.setdefault((pin.owner, pin.name), pin)
        newest = max(pin, other, key=lambda one: one.expires_s)
        found[pin.owner, pin.name] = replace(newest, tiers=_union(other.tiers, pin.tiers))
    return list(found.values())


def _union(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*a, *b)))


def prefix_card(prefix: CachedPrefix, tenant: str, text: str) -> dict[str, Any]:
    """`tenant` is the name of whose it is, `text` its beginning."""
    return {
        "object": "kv.prefix",
        "tenant": tenant,
        "key": prefix.key,
        "tokens": prefix.n_tokens,
        "bytes": prefix.n_bytes,
        "hits": prefix.hits,
        "last_used": prefix.last_used_s,
        "tiers": list(prefix.tiers),
        "pins": list(prefix.pins),
        "text": text[:_MAX_CHARS],
    }


def pin_card(pin: PinInfo, tenant: str, names: Mapping[str, str]) -> dict[str, Any]:
    """`tenant` is the name of whose prefix it keeps; `names` are those of the owners that have one."""
    return {
        "object": "kv.pin",
        "tenant": tenant,
        "name": pin.name,
        "owner": names.get(pin.owner, pin.owner),
        "key": pin.key,
        "tokens": pin.n_tokens,
        "bytes": pin.n_bytes,
        "expires": pin.expires_s,
        "tiers": list(pin.tiers),
    }


def import_card(report: ImportReport, tenant: str) -> dict[str, Any]:
    return {
        "object": "kv.import",
        "tenant": tenant,
        "key": report.key,
        "tokens": report.n_tokens,
        "objects": report.n_objects,
        "bytes": report.n_bytes,
    }


def state_card(answer: Answer[Any]) -> dict[str, Any]:
    """`value` is a dataclass."""
    state: Any = answer.value
    return _error(answer) if answer.error is not None else asdict(state)


def replies(answers: Sequence[Answer[Any]]) -> dict[str, Any]:
    """How many replicas answered, and why others did not."""
    failed = [_error(answer) for answer in answers if answer.error is not None]
    return {"answered": len(answers) - len(failed), "failed": failed}


def _error(answer: Answer[Any]) -> dict[str, Any]:
    assert answer.error is not None
    return {"error": {"message": answer.error.message, "code": answer.error.code}}
