"""What a model tells about itself, put together from what its backend loaded. Any thread; nothing
here waits for the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from erllama.backend.base import ModelBackend, Vocab
from erllama.chat.variants import TemplateVariants
from erllama.config import EngineConfig
from erllama.kv.layout import KvKind
from erllama.stats import EngineStats, ModelInfo, ModelMemory, ModelStatus


def make_templates(vocab: Vocab, config: EngineConfig) -> TemplateVariants:
    """The model's chat templates, or what the configuration has in their place. Raises
    `ModelLoadError` for one that the configuration names and that is none.
    """
    return TemplateVariants.of(
        vocab,
        override=config.chat_template,
        tool_format=config.tool_format,
        parse_special_in_content=config.parse_special_in_content,
        clock=config.template_clock,
    )


def make_model_memory(backend: ModelBackend, stats: EngineStats, idle_s: float) -> ModelMemory:
    """`ModelMemory` from the last snapshot of the engine."""
    return ModelMemory(
        kv_bytes=stats.kv_bytes,
        weights_bytes=backend.weights_bytes,
        weights_private_bytes=backend.weights_private_bytes,
        n_running=stats.n_running,
        n_queued=stats.n_queued,
        idle_s=idle_s,
        has_context=stats.has_context,
        weights_loaded=stats.weights_loaded,
        on_gpu=backend.on_gpu,
    )


def make_model_info(
    backend: ModelBackend,
    config: EngineConfig,
    digest: str,
    status: ModelStatus,
    tiers: Sequence[str] | None,
    *,
    has_chat_template: bool,
) -> ModelInfo:
    """`tiers` are the labels of the store's, None without a store."""
    info, kv = backend.info, backend.kv_layout
    return ModelInfo(
        id=config.id,
        status=status,
        backend="llama.cpp",
        architecture=info.architecture,
        name=info.name,
        context_size=backend.n_ctx,
        n_parallel=config.n_parallel,
        n_vocab=backend.n_vocab,
        n_params=info.n_params,
        size_bytes=info.size_bytes,
        quant_type=info.file_type,
        quant_bits=info.bits_per_weight,
        tier="none" if tiers is None or kv.kind is KvKind.OPAQUE else "+".join(tiers),
        kv_kind=kv.kind,
        kv_problem=kv.problem,
        fingerprint=digest,
        n_gpu_layers=backend.n_gpu_layers,
        has_chat_template=has_chat_template,
        generates=backend.generates,
        embeds=backend.embeds,
        rank_tokens=backend.rank_tokens,
    )
