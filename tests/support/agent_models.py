"""Random-weight models that speak as real families do: their vocabularies, control tokens and chat
templates. What they say means nothing, how it is written is the family's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import TokenType

from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.llama_cpp_files import MODELS, real_template

_N_CTX = 16384


@dataclass(frozen=True, slots=True)
class Family:
    """`vocab` and `template` name files of llama.cpp. `control` and `plain` are tokens that the
    family writes and the vocabulary, an older one, lacks. `unsaid` are tokens that the tool format
    knows and this model does not write. `parallel`: it makes several calls in a reply.
    """

    vocab: str
    template: str
    control: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    parallel: bool = True

    def write(self, path: Path) -> None:
        write_random_model(
            path,
            replace(SHAPES["tiny-llama"], n_ctx=_N_CTX),
            vocab=MODELS / f"ggml-vocab-{self.vocab}.gguf",
            added={
                **dict.fromkeys(self.control, TokenType.CONTROL),
                **dict.fromkeys(self.plain, TokenType.USER_DEFINED),
            },
            chat_template=real_template(self.template),
            file_type="F16",
            seed=1,
        )


_THINK, _TOOLS = ("<think>", "</think>"), ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_ROLES = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_ARGUMENTS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_MISTRAL = (
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[THINK]", "[/THINK]"),
)
FAMILIES = {
    "qwen3": Family("qwen2", "Qwen-Qwen3-0.6B", plain=(*_THINK, *_TOOLS)),
    "llama-3.1": Family(
        "llama-bpe", "meta-llama-Llama-3.1-8B-Instruct", ("<|python_tag|>", "<|eom_id|>"), parallel=False
    ),
    "ministral-3": Family("llama-bpe", "mistralai-Ministral-3-14B-Reasoning-2512", _MISTRAL, unsaid=("[CALL_ID]",)),
    "glm-4.6": Family("qwen2", "GLM-4.6", _ROLES, (*_THINK, *_TOOLS, *_ARGUMENTS)),
}


def app_args(folder: Path) -> dict[str, Any]:
    """The `args` of an app that serves all `FAMILIES`, whose files it writes to `folder`."""
    models = []
    for name, family in FAMILIES.items():
        family.write(folder / f"{name}.gguf")
        models.append(
            {
                "id": name,
                "path": str(folder / f"{name}.gguf"),
                "n_ctx": _N_CTX,
                "n_parallel": 2,
                "n_threads": 1,
                "num_cpus": 0.1,
            }
        )
    return {"models": models, "store": {"tiers": [{"url": str(folder / "kv")}]}}
