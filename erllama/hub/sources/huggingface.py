"""Which files of a Hugging Face repository are the model: by quantisation, or by name.

The list of files with sizes and digests comes through huggingface_hub; the files themselves are
fetched by `erllama.hub.download` as any other, from the commit that the list is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed, SourceNotFound
from erllama.hub.sources.plain import split_names
from erllama.hub.sources.remote import RemoteFile, Role
from erllama.hub.sources.source import HuggingFaceSource

# What is taken when nothing is said; then the smallest that is there.
PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q8_0", "Q6_K", "F16", "BF16", "F32")
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+_[A-Z0-9]+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|B?F16|F32|FP16|FP32))(?=$|[-._/])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


class ListedFile(Protocol):
    """What huggingface_hub tells of a file."""

    rfilename: str
    size: int | None


def huggingface_files(source: HuggingFaceSource, config: HubConfig) -> list[RemoteFile]:
    """Raises `SourceNotFound` with the quantisations that there are, and `PullFailed`."""
    token = get_token() if config.hf_token is None else config.hf_token
    api = HfApi(endpoint=config.hf_endpoint, token=token or False, library_name="erllama")
    try:
        info = api.model_info(
            source.repo_id, revision=source.revision, files_metadata=True, timeout=config.stall_timeout_s
        )
    except GatedRepoError as error:
        raise PullFailed(f"{source}: the repository is gated: a token with access to it is needed") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, RevisionNotFoundError) else "repository, or it needs a token"
        raise SourceNotFound(f"{source}: there is no such {what}", param="model") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            raise SourceNotFound(f"{source}: the hub does not know it", param="model") from None
        raise PullFailed(f"{source}: the hub answers with HTTP {error.response.status_code}") from error
    except Exception as error:  # whichever HTTP library this version of huggingface_hub uses
        raise PullFailed(f"{source}: the hub cannot be asked: {type(error).__name__}: {error}") from error
    listed = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = []
    for role, path in choose_files(source, listed):
        sibling = listed.get(path)
        if sibling is None or not sibling.size:
            raise SourceNotFound(f"{source}: {path} is not in the repository, or has no size", param="model")
        url = hf_hub_url(source.repo_id, path, revision=info.sha or source.revision, endpoint=config.hf_endpoint)
        name, sha256 = path.rsplit("/", 1)[-1], sibling.lfs.sha256 if sibling.lfs else None
        authorization = f"Bearer {token}" if token else None
        files.append(RemoteFile(role, name, url, sibling.size, sha256, authorization=authorization))
    return files


def choose_files(source: HuggingFaceSource, listed: Iterable[str]) -> list[tuple[Role, str]]:
    """The files to fetch, in order: the model with its parts, then its projector.

    Pure. Raises `SourceNotFound` that lists what there is.
    """
    ggufs = sorted(path for path in listed if path.lower().endswith(".gguf"))
    if source.file is not None:
        if source.file not in ggufs:
            raise SourceNotFound(f"{source}: no such file; there are {_listed(ggufs)}", param="model")
        return _parts(source.file)
    models = [path for path in ggufs if not _is_beside(path) and _is_first(path)]
    if not models:
        raise SourceNotFound(f"{source}: the repository has no GGUF model", param="model")
    chosen = _of_quant(source.quant, models) if source.quant is not None else _preferred(models)
    if chosen is None:
        names = sorted({quant_of(path) or path for path in models})
        raise SourceNotFound(f"{source}: no such quantisation; there are {_listed(names)}", param="model")
    projectors = [path for path in ggufs if _is_projector(path)]
    return _parts(chosen) + [(Role.PROJECTOR, path) for path in _best_projector(projectors)]


def quant_of(path: str) -> str | None:
    """The quantisation that a file's name (or its folder's) tells, in upper case."""
    found = _QUANT.findall(_SPLIT.sub("", path).removesuffix(".gguf"))
    return str(found[-1]).upper() if found else None


def _of_quant(quant: str, models: list[str]) -> str | None:
    wanted = quant.upper()
    named = [path for path in models if quant_of(path) == wanted]
    stems = [path for path in models if _SPLIT.sub("", path).removesuffix(".gguf").upper().endswith(wanted)]
    return next(iter(named or stems), None)


def _preferred(models: list[str]) -> str:
    for quant in PREFERRED:
        for path in models:
            if quant_of(path) == quant:
                return path
    return models[0]


def _best_projector(paths: list[str]) -> list[str]:
    """One projector: F16 where there is a choice, as llama.cpp takes."""
    return sorted(paths, key=lambda path: (quant_of(path) not in ("F16", "FP16"), path))[:1]


def _parts(path: str) -> list[tuple[Role, str]]:
    folder, slash, name = path.rpartition("/")
    return [(Role.PART if i else Role.MODEL, f"{folder}{slash}{part}") for i, part in enumerate(split_names(name))]


def _is_first(path: str) -> bool:
    split = _SPLIT.search(path)
    return split is None or int(split[1]) == 1


def _is_projector(path: str) -> bool:
    return "mmproj" in path.rsplit("/", 1)[-1].lower()


def _is_beside(path: str) -> bool:
    """A file that belongs to a model and is none: a projector, an importance matrix, a LoRA."""
    name = path.rsplit("/", 1)[-1].lower()
    return _is_projector(path) or "imatrix" in name or "lora" in name


def _listed(names: list[str], most: int = 30) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
