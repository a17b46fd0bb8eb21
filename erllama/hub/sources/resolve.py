"""From a source to its files."""

from __future__ import annotations

from erllama.hub.config import HubConfig
from erllama.hub.sources.client import HttpClient
from erllama.hub.sources.huggingface import huggingface_files
from erllama.hub.sources.ollama_registry import ollama_files
from erllama.hub.sources.plain import fsspec_files, url_files
from erllama.hub.sources.remote import RemoteModel
from erllama.hub.sources.source import FileSource, FsspecSource, HuggingFaceSource, OllamaSource, Source, UrlSource


def resolve_source(source: Source, client: HttpClient, config: HubConfig) -> RemoteModel:
    """Ask where the files of `source` are, how large and, where it is known, of which digest.

    Raises `SourceNotFound`, `SourceRefused` and `PullFailed`. Whether the source may be used at all
    is `Reach.check_source`'s to say, before.
    """
    match source:
        case HuggingFaceSource():
            files = huggingface_files(source, config)
        case OllamaSource():
            files = ollama_files(source, client, config)
        case UrlSource():
            files = url_files(source, client)
        case FsspecSource() | FileSource():
            files = fsspec_files(source, config)
    return RemoteModel(source, tuple(files))
