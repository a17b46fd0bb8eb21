"""The demo model in torch: a small llama whose first two layers start out able to copy.

Split for the compiler: everything but attention works on flattened (tokens, width) tensors of one
fixed size, so it is compiled once and serves every row length; attention stays eager. Rotary
embedding is the half-split form; the exporter permutes Q and K rows to the interleaved form that
llama.cpp expects of a llama.

The initialisation writes an induction circuit by hand. Layer 0: the heads attend to the tokens 1,
2, 3 and 4 places back and write them into residual dimensions of their own. Layer 1: heads match
the current token and its predecessors with the predecessors of every earlier token, over rotary
dimensions too slow to matter at these lengths, and copy the token found. Training refines it;
without it, recall has to wait until gradient descent finds the same circuit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vocabulary: int = 1280
    width: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    head_size: int = 64
    feed_forward: int = 640
    rope_base: float = 1e6
    norm_epsilon: float = 1e-5


def rope_table(config: ModelConfig, n_positions: int) -> tuple[Tensor, Tensor]:
    half = config.head_size // 2
    angles = torch.arange(n_positions)[:, None] * config.rope_base ** (-torch.arange(half) / half)[None, :]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Layer(nn.Module):  # type: ignore[misc]  # torch is Any where it is not installed
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.n_kv_heads * config.head_size
        self.attention_norm = nn.Parameter(torch.ones(config.width))
        self.query = nn.Parameter(torch.empty(config.n_heads * config.head_size, config.width))
        self.key = nn.Parameter(torch.empty(kv_width, config.width))
        self.value = nn.Parameter(torch.empty(kv_width, config.width))
        self.output = nn.Parameter(torch.empty(config.width, config.n_heads * config.head_size))
        self.feed_forward_norm = nn.Parameter(torch.ones(config.width))
        self.gate = nn.Parameter(torch.empty(config.feed_forward, config.width))
        self.up = nn.Parameter(torch.empty(config.feed_forward, config.width))
        self.down = nn.Parameter(torch.empty(config.width, config.feed_forward))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        h = F.rms_norm(x, (config.width,), self.attention_norm, config.norm_epsilon)
        query = _rotate(F.linear(h, self.query).view(-1, config.n_heads, config.head_size), cos, sin)
        key = _rotate(F.linear(h, self.key).view(-1, config.n_kv_heads, config.head_size), cos, sin)
        value = F.linear(h, self.value).view(-1, config.n_kv_heads, config.head_size)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + F.linear(attended, self.output)
        h = F.rms_norm(x, (self.config.width,), self.feed_forward_norm, self.config.norm_epsilon)
        return x + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)


def attend(query: Tensor, key: Tensor, value: Tensor, n_rows: int) -> Tensor:
    """Causal attention within each of `n_rows` equal rows of the flattened batch."""

    def heads(x: Tensor) -> Tensor:
        return x.view(n_rows, -1, x.shape[1], x.shape[2]).transpose(1, 2)

    n_repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(n_repeat, dim=1), value.repeat_interleave(n_repeat, dim=1)
    out = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), is_causal=True)
    return out.transpose(1, 2).reshape(query.shape[0], -1)


class DemoModel(nn.Module):  # type: ignore[misc]
    def __init__(self, config: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.final_norm = nn.Parameter(torch.ones(config.width))
        with torch.no_grad():
            _initialise(self, torch.Generator().manual_seed(seed))

    def hidden(self, tokens: Tensor, cos: Tensor, sin: Tensor, n_rows: int) -> Tensor:
        """Final hidden states of a flattened batch; cos and sin are those of each token's position
        in its row.
        """
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            query, key, value = layer.project(x, cos, sin)
            x = layer.finish(x, attend(query, key, value, n_rows))
        return x

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(weighted mean, plain sum over the targets of weight 1) of the cross-entropy."""
        each = F.cross_entropy(self.logits(hidden).float(), targets, reduction="none")
        full = (weights == 1).float()
        return (each * weights).sum() / weights.sum(), (each.detach() * full).sum() / full.sum().clamp(min=1)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(
            F.rms_norm(hidden, (self.config.width,), self.final_norm, self.config.norm_epsilon), self.embedding
        )


# Residual dimensions of the hand-written circuit: 0 is a constant, then the token, then the tokens
# 1 to 4 places back.
_TOKEN = slice(1, 128)
_BACK = {offset: slice(96 + 32 * offset, 128 + 32 * offset) for offset in (1, 2, 3, 4)}
_SIGMA = 0.04
# Rotary pairs this slow turn by less than 0.9 rad over 2000 tokens at base 1e6, so content can be
# matched on them.
_SLOW = 18


def _initialise(model: DemoModel, generator: torch.Generator) -> None:
    config = model.config
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, 0.5 / math.sqrt(parameter.shape[1]), generator=generator)
    for layer in model.layers:
        layer.output.mul_(0.3)
        layer.down.mul_(0.3)
    model.embedding.normal_(0.0, _SIGMA, generator=generator)
    model.embedding[:, 128:] *= 0.2
    # Rows of equal norm keep the constant constant behind the first RMS norm.
    model.embedding.mul_(_SIGMA * math.sqrt(config.width) / model.embedding.norm(dim=1, keepdim=True))
    model.embedding[:, 0] = 4 * _SIGMA
    _previous_token_heads(model.layers[0], config, generator)
    _match_copy_heads(model.layers[1], model.layers[0], config)


def _previous_token_heads(layer: Layer, config: ModelConfig, generator: torch.Generator) -> None:
    half, size = config.head_size // 2, config.head_size
    speeds = config.rope_base ** (-torch.arange(half) / half)
    sharpness = 1.8
    # Neighbours differ in the fast rotary pairs only; slower ones would just amplify the noise in
    # the constant.
    fast = 6
    projection = torch.linalg.qr(torch.randn(127, size, generator=generator)).Q.T
    for kv_head in range(config.n_kv_heads):
        rows = layer.key[kv_head * size : (kv_head + 1) * size]
        rows.mul_(0.1)
        rows[:fast, 0] = sharpness
        value = layer.value[kv_head * size : (kv_head + 1) * size]
        value.zero_()
        value[:, _TOKEN] = projection
    for head, (offset, target) in enumerate(_BACK.items()):
        rows = layer.query[head * size : (head + 1) * size]
        rows.mul_(0.1)
        rows[:fast, 0] = sharpness * torch.cos(offset * speeds[:fast])
        rows[half : half + fast, 0] = -sharpness * torch.sin(offset * speeds[:fast])
        columns = layer.output[:, head * size : (head + 1) * size]
        columns.zero_()
        n_dims = target.stop - target.start
        columns[target, :n_dims] = _SIGMA * torch.eye(n_dims)


def _match_copy_heads(layer: Layer, before: Layer, config: ModelConfig) -> None:
    half, size = config.head_size // 2, config.head_size
    # Where each of the 28 slow dimensions of a head lies, and which pair (queried, keyed) of places
    # it compares.
    slow = [*range(_SLOW, half), *range(half + _SLOW, size)]
    compared = [(0, 1)] * 8 + [(1, 2)] * 8 + [(2, 3)] * 4 + [(3, 4)] * 8
    token_rows = before.value[:size, _TOKEN]
    gain = 2.0
    for head in range(config.n_heads):
        kv_head = head // (config.n_heads // config.n_kv_heads)
        query = layer.query[head * size : (head + 1) * size]
        key = layer.key[kv_head * size : (kv_head + 1) * size]
        query.mul_(0.1)
        key.mul_(0.1)
        for index, (dimension, (queried, keyed)) in enumerate(zip(slow, compared, strict=True)):
            component = (index + 12 * kv_head) % 32
            query[dimension].zero_()
            key[dimension].zero_()
            if queried == 0:
                query[dimension, _TOKEN] = gain * token_rows[component]
            else:
                query[dimension, _BACK[queried].start + component] = gain
            key[dimension, _BACK[keyed].start + component] = gain
        columns = layer.output[:, head * size : (head + 1) * size]
        columns.zero_()
        columns[kv_head * size : (kv_head + 1) * size] = 3.0 * _SIGMA * torch.eye(size)
    layer.value.zero_()
    layer.value[:, : layer.value.shape[0]] = torch.eye(layer.value.shape[0])
    # Dimension 0 is the constant: copying it would only add a bias.
    layer.value[:, 0] = 0
