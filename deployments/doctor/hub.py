"""The hub's directory: what lies there, whether it can be read, and whether there is room for more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.doctor.finding import Finding, fail, gib, ok, warn
from erllama.errors import ErllamaError
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
from erllama.hub.manifest import Damaged, Manifest


@dataclass(frozen=True, slots=True)
class HubFacts:
    """`damaged`: models that cannot be served, each with the reason. Bytes."""

    folder: str
    problem: str = ""
    n_models: int = 0
    damaged: tuple[str, ...] = ()
    free_bytes: int = 0
    keep_free_bytes: int = 0


def hub_findings(facts: HubFacts) -> Iterator[Finding]:
    if facts.problem:
        why = "models by name are neither found nor fetched"
        yield fail("hub", f"{facts.folder}: {facts.problem}", why, "mend its permissions, or another hub.dir")
        return
    if facts.damaged:
        why = "requests that name them fail"
        yield warn("hub", "; ".join(facts.damaged), why, "erllama pull them again, or erllama rm them")
    told = f"{facts.folder}: {facts.n_models} models, {gib(facts.free_bytes)} free"
    if facts.free_bytes < facts.keep_free_bytes:
        why = f"a pull leaves {gib(facts.keep_free_bytes)} free (hub.keep_free_bytes), and is refused"
        yield warn("hub", told, why, "erllama rm models, or another hub.dir")
    else:
        yield ok("hub", told)


def collect_hub(config: HubConfig) -> HubFacts:
    """Reads manifests, and looks whether their files are there whole; reads none of them."""
    folder = config.root
    facts = HubFacts(str(folder), keep_free_bytes=config.keep_free_bytes)
    there = _nearest(folder)
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK) or not there.is_dir():
        return replace(facts, problem=f"{there} cannot be written")
    facts = replace(facts, free_bytes=shutil.disk_usage(there).free)
    if there != folder:  # it is made with the first pull
        return facts
    try:
        hub = Hub(config)
        models = hub.list()
    except (ErllamaError, OSError) as error:
        return replace(facts, problem=str(error))
    told = [(model.name, _damage(hub, model)) for model in models]
    return replace(facts, n_models=len(models), damaged=tuple(f"{name}: {why}" for name, why in told if why))


def _damage(hub: Hub, model: Manifest | Damaged) -> str:
    """Why a model cannot be served; "" if nothing is known against it."""
    if isinstance(model, Damaged):
        return model.reason
    return "" if all(hub.has_blob(file.digest) for file in model.files) else "a file of it is missing"


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
