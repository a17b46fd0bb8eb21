"""The layers of a model in an Ollama registry (the registry protocol of Docker, version 2)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed
from erllama.hub.sources.client import HttpClient, shown
from erllama.hub.sources.remote import RemoteFile, Role
from erllama.hub.sources.source import OllamaSource

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MAX_TEXT_BYTES = 4 << 20  # of a layer that is no GGUF
_LAYER = "application/vnd.ollama.image."
_ROLES = {
    "model": Role.MODEL,
    "adapter": Role.ADAPTER,
    "projector": Role.PROJECTOR,
    "template": Role.TEMPLATE,
    "system": Role.SYSTEM,
    "params": Role.PARAMS,
    "license": Role.LICENSE,
}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def ollama_files(source: OllamaSource, client: HttpClient, config: HubConfig) -> list[RemoteFile]:
    """Raises `SourceNotFound`, and `PullFailed` for a manifest that is none."""
    base = _registry(source, config)
    repository = f"{base}/v2/{source.namespace}/{source.model}"
    url = f"{repository}/manifests/{source.tag}"
    manifest = client.get_json(url, {"Accept": MANIFEST_TYPE})
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list):
        raise PullFailed(f"{shown(url)}: is no manifest: it has no list of layers")
    found: dict[Role, list[tuple[str, int]]] = {}
    for layer in layers:
        role, digest, size = _layer(layer, url)
        if role is not None and (digest, size) not in found.setdefault(role, []):
            found[role].append((digest, size))
    if Role.MODEL not in found:
        raise PullFailed(f"{shown(url)}: has no layer with a GGUF model")
    return [
        RemoteFile(Role.PART if role is Role.MODEL and i else role, name, f"{repository}/blobs/sha256:{hex}", size, hex)
        for role in _ROLES.values()
        for i, (name, (hex, size)) in enumerate(_named(role, found.get(role, [])))
    ]


def _registry(source: OllamaSource, config: HubConfig) -> str:
    configured = config.ollama_registry.rstrip("/")
    if source.registry is None or source.registry == urlsplit(configured).netloc.lower():
        return configured
    return f"https://{source.registry}"


def _layer(layer: Any, url: str) -> tuple[Role | None, str, int]:
    """(role, hex digest, size) of one layer; the role of what is not used here is None."""
    match layer:
        case {"mediaType": str(kind), "digest": str(digest), "size": int(size)}:
            hex_digest = _DIGEST.fullmatch(digest)
            role = _ROLES.get(kind.removeprefix(_LAYER)) if kind.startswith(_LAYER) else None
            too_long = role in (Role.TEMPLATE, Role.SYSTEM, Role.PARAMS, Role.LICENSE) and size > MAX_TEXT_BYTES
            if hex_digest is not None and size > 0 and not too_long:
                return role, hex_digest[1], size
    raise PullFailed(f"{shown(url)}: has a layer without a type, a sha256 digest or a sensible size")


def _named(role: Role, layers: list[tuple[str, int]]) -> list[tuple[str, tuple[str, int]]]:
    """Layers have no names: files of a GGUF are found by theirs, the parts of a model by number."""
    names = [f"{role}-{i + 1}" if len(layers) > 1 else str(role) for i in range(len(layers))]
    if role is Role.MODEL and len(layers) > 1:
        names = [f"model-{i + 1:05d}-of-{len(layers):05d}" for i in range(len(layers))]
    ending = ".gguf" if role in (Role.MODEL, Role.ADAPTER, Role.PROJECTOR) else ".txt"
    return [(name + ending, layer) for name, layer in zip(names, layers, strict=True)]
