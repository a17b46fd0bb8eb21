"""Where a model comes from, as text and as a value of one class for each kind.

    hf://owner/repo[@revision][:quant]            the Hugging Face hub; also hf.co/..., and its
    hf://owner/repo[@revision]/path/file.gguf     web addresses
    ollama://[[registry/]namespace/]model[:tag]   an Ollama registry
    https://host/path/file.gguf                   one file (all parts of a split one)
    s3://bucket/path/file.gguf                    any other protocol of fsspec
    file:///path/file.gguf, /path, ./path, ~/path  this machine

URLs with credentials in them are refused: a source is shown, logged and written into manifests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import fsspec

from erllama.errors import InvalidParameter
from erllama.hub.name import DEFAULT_TAG, ModelName

MAX_LENGTH = 2000
HF_HOSTS = ("hf.co", "huggingface.co")
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET = re.compile(r"(?i)token|secret|passw|credential|signature|^sig$|api.?key|^key$|^auth")
# Wrappers of other file systems, or what would read this machine's files under another name.
_NO_SOURCES = frozenset(
    [
        *("async_wrapper", "asyncwrapper", "asynclocal", "blockcache", "cached", "dask", "data", "dir", "filecache"),
        *(
            "generic",
            "libarchive",
            "local",
            "pyscript",
            "reference",
            "simplecache",
            "tar",
            "zip",
            "http",
            "https",
            "hf",
        ),
    ]
)


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """Files of a repository: the one named `file`, or those of the quantisation `quant`, or (with
    neither) of the quantisation that is preferred.
    """

    owner: str
    repo: str
    revision: str | None = None
    quant: str | None = None
    file: str | None = None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        text = f"hf://{self.repo_id}" + (f"@{quote(self.revision, safe='')}" if self.revision else "")
        if self.file is not None:
            return f"{text}/{quote(self.file)}"
        return f"{text}:{self.quant}" if self.quant is not None else text


@dataclass(frozen=True, slots=True)
class OllamaSource:
    """A model of an Ollama registry; `registry` None is the configured one."""

    namespace: str
    model: str
    tag: str
    registry: str | None = None

    def __str__(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        return f"ollama://{registry}{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A file behind http or https; of a split model, its first part."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class FsspecSource:
    """A file in a file system that fsspec knows."""

    url: str

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of this machine; the path is absolute."""

    path: Path

    def __str__(self) -> str:
        return f"file://{quote(str(self.path))}"


Source = HuggingFaceSource | OllamaSource | UrlSource | FsspecSource | FileSource


def parse_source(text: str) -> Source:
    """The source that `text` names; a name without a scheme is one of the Ollama registry.

    Raises `InvalidParameter` with param "model" that says what is wrong, and never repeats
    credentials.
    """
    if not isinstance(text, str) or not text or len(text) > MAX_LENGTH:
        raise wrong_source(f"a source has 1 to {MAX_LENGTH} characters")
    if any(character.isspace() or not character.isprintable() for character in text.replace(" ", "")):
        raise wrong_source("a source must not contain control characters")
    if text.startswith(("/", "./", "../", "~")):
        return FileSource(Path(text).expanduser().absolute())
    match = _SCHEME.match(text)
    if match is not None:
        return _of_scheme(match[1].lower(), text, text[match.end() :])
    if text.lower().startswith(tuple(f"{host}/" for host in HF_HOSTS)):
        return _hugging_face(text.partition("/")[2])
    return _ollama(text)


def wrong_source(why: str) -> InvalidParameter:
    return InvalidParameter(f"model: {why}", param="model")


def _of_scheme(scheme: str, text: str, rest: str) -> Source:
    match scheme:
        case "hf" | "huggingface":
            return _hugging_face(rest)
        case "ollama":
            return _ollama(rest)
        case "file":
            if not rest.startswith("/"):
                raise wrong_source("file:// takes an absolute path: file:///path/model.gguf")
            return FileSource(Path(unquote(rest)))
        case "http" | "https":
            return _url(text)
    if "::" in text:
        raise wrong_source("chained URLs (::) are not allowed")
    if scheme in _NO_SOURCES or scheme not in fsspec.available_protocols():
        raise wrong_source(f"{scheme}:// is no source: hf://, ollama://, https://, file:// and those of fsspec are")
    parts, _ = _split_url(text)
    if not parts.path.lower().endswith(".gguf"):
        raise wrong_source(f"{scheme}:// takes the path of a .gguf file")
    return FsspecSource(f"{scheme}://{rest}")


def _split_url(text: str) -> tuple[SplitResult, int | None]:
    """A URL's parts and its port; refuses credentials and fragments."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise wrong_source("the URL cannot be read") from None
    if "@" in parts.netloc:
        raise wrong_source("a URL must not contain a user or password: configure them instead")
    if any(_SECRET.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise wrong_source("a URL must not contain credentials (a key, token or signature in its query)")
    if parts.fragment:
        raise wrong_source("the URL must not have a fragment (#...)")
    return parts, port


def _url(text: str) -> Source:
    parts, port = _split_url(text)
    host = (parts.hostname or "").rstrip(".")
    if not host or port == 0:
        raise wrong_source("the URL has no host, or port 0")
    if host in HF_HOSTS and not parts.query and port in (None, 443):
        return _hugging_face_page(unquote(parts.path).strip("/").split("/"))
    if not parts.path.lower().endswith(".gguf"):
        raise wrong_source("the path of the URL must end with .gguf")
    return UrlSource(parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()).geturl())


def _hugging_face_page(parts: list[str]) -> Source:
    """What the address of a repository or a file of it on the web means."""
    match parts:
        case [owner, repo]:
            return _hugging_face_value(owner, repo, None, None, None)
        case [owner, repo, "blob" | "resolve" | "raw", revision, *file] if file:
            return _hugging_face_value(owner, repo, revision, None, "/".join(file))
    raise wrong_source("the web address is neither of a repository nor of a file: use hf://owner/repo[:quant]")


def _hugging_face(rest: str) -> Source:
    owner, _, below = rest.partition("/")
    repo, slash, file = below.partition("/")
    if slash:
        repo, _, revision = repo.partition("@")
        return _hugging_face_value(owner, repo, unquote(revision) or None, None, unquote(file))
    repo, colon, quant = repo.partition(":")
    repo, at, revision = repo.partition("@")
    if (at and not revision) or (colon and not quant):
        raise wrong_source("hf:// has an empty revision or quantisation")
    if quant.lower() == DEFAULT_TAG:
        quant = ""
    return _hugging_face_value(owner, repo, unquote(revision) or None, quant or None, None)


def _hugging_face_value(owner: str, repo: str, revision: str | None, quant: str | None, file: str | None) -> Source:
    for part in (owner, repo):
        if not _REPO_PART.fullmatch(part) or ".." in part or "--" in part:
            raise wrong_source(f"{part!r:.100} is no owner or repository: expected hf://owner/repo[:quant]")
    if revision is not None and (not re.fullmatch(r"[\w./-]{1,200}", revision) or ".." in revision):
        raise wrong_source(f"{revision!r:.100} is no revision")
    if quant is not None and not _QUANT.fullmatch(quant):
        raise wrong_source(f"{quant!r:.100} is no quantisation")
    if file is not None:
        if not file.lower().endswith(".gguf"):
            raise wrong_source("the file in the repository must end with .gguf")
        if any(part in ("", ".", "..") for part in file.split("/")):
            raise wrong_source("the file in the repository must be a plain path")
    return HuggingFaceSource(owner, repo, revision, quant, file)


def _ollama(rest: str) -> Source:
    name = ModelName.parse(rest)
    return OllamaSource(name.namespace or "library", name.model, name.tag, name.host)


def name_of(source: Source) -> ModelName:
    """The name under which a source is kept unless another is asked for."""
    match source:
        case OllamaSource(namespace="library", model=model, tag=tag, registry=None):
            return ModelName.parse(f"{model}:{tag}")
        case OllamaSource(namespace=namespace, model=model, tag=tag, registry=registry):
            return ModelName.parse("/".join(filter(None, (registry, namespace, f"{model}:{tag}"))))
        case HuggingFaceSource(owner=owner, repo=repo, quant=quant, file=None):
            return ModelName.parse(f"hf.co/{owner}/{repo}:{quant or DEFAULT_TAG}")
        case HuggingFaceSource(owner=owner, repo=repo, file=file):
            return ModelName.parse(f"hf.co/{owner}/{repo}:{_as_part(str(file))}")
        case UrlSource(url=url) | FsspecSource(url=url):
            return ModelName.parse(_as_part(unquote(urlsplit(url).path)))
        case FileSource(path=path):
            return ModelName.parse(_as_part(path.name))


def _as_part(path: str) -> str:
    """A file's name, without its ending and the number of its part, as part of a model's name."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9_.-]+", "-", stem.lower()).strip("-.")[:90] or "model"
