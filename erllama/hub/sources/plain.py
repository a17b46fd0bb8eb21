"""Files that are named one by one: behind a URL, in a file system of fsspec, on this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

from erllama.errors import ModelLoadError
from erllama.gguf.check import split_paths
from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed
from erllama.hub.sources.client import HttpClient, check_status, shown
from erllama.hub.sources.origin import file_facts, file_system, validator_of
from erllama.hub.sources.remote import RemoteFile, Role
from erllama.hub.sources.source import FileSource, FsspecSource, UrlSource, wrong_source


def split_names(name: str) -> list[str]:
    """The names of all parts of a model whose first, or only, file is `name`."""
    try:
        return [part.name for part in split_paths(name)]
    except ModelLoadError as error:
        raise wrong_source(error.message) from None


def url_files(source: UrlSource, client: HttpClient) -> list[RemoteFile]:
    """Raises `PullFailed` and its like, for a server that does not tell the size, too."""
    parts = urlsplit(source.url)
    folder, _, name = parts.path.rpartition("/")
    files = []
    for i, part in enumerate(split_names(unquote(name))):
        path = parts.path if i == 0 else f"{folder}/{quote(part)}"
        url = parts._replace(path=path).geturl()
        size, etag = _head(url, client)
        files.append(RemoteFile(Role.PART if i else Role.MODEL, part, url, size, etag=etag))
    return files


def fsspec_files(source: FsspecSource | FileSource, config: HubConfig) -> list[RemoteFile]:
    """Raises `SourceNotFound` and `PullFailed`."""
    url = str(source.path) if isinstance(source, FileSource) else source.url
    folder, _, name = url.rpartition("/")
    scheme = "file://" if isinstance(source, FileSource) else ""
    files = []
    for i, part in enumerate(split_names(name)):
        location = f"{scheme}{folder}/{part}"
        fs, path = file_system(location, config.storage_options)
        size, etag = file_facts(fs, path, location)
        files.append(RemoteFile(Role.PART if i else Role.MODEL, Path(part).name, location, size, etag=etag))
    return files


def _head(url: str, client: HttpClient) -> tuple[int, str | None]:
    """(size, validator) by HEAD, or by a GET for one byte where a server has no HEAD."""
    try:
        with client.send("HEAD", url) as response:
            length = response.headers.get("content-length", "")
            if response.is_success and length.isdecimal() and int(length) > 0:
                check_status(response, url)
                return int(length), validator_of(response)
        with client.send("GET", url, {"Range": "bytes=0-0"}) as response:
            check_status(response, url)
            total = response.headers.get("content-range", "").rpartition("/")[2]
            length = total if response.status_code == 206 else response.headers.get("content-length", "")
            if length.isdecimal() and int(length) > 0:
                return int(length), validator_of(response)
    except httpx.HTTPError as error:
        raise PullFailed(f"{shown(url)}: {error or type(error).__name__}") from error
    raise PullFailed(f"{shown(url)}: the server does not tell the size of the file")
