"""What a recurrent layer keeps of a sequence, and what it computes in.

The sizes of the states are `n_embd_r` (convolution, token shift) and `n_embd_s` in llama-hparams.cpp;
llama.cpp keeps both in float32. Widths of what is computed are those of the graphs of mamba and jamba
as measured; for the other families the same sum over their widths is a guess on the high side.
"""

from __future__ import annotations

from dataclasses import dataclass

from erllama.footprint.hyperparameters import Hyperparameters

_F32_BYTES = 4
_LINEAR_ATTENTION = "minimax-01"  # models/minimax-01.cpp: a square state for each head


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """Elements: `n_shifted` of `n_embd_r`, `n_state` of `n_embd_s`, `mixer_width` alive for a token."""

    n_shifted: int
    n_state: int
    mixer_width: int

    @property
    def state_bytes(self) -> int:
        """What is kept of a sequence."""
        return _F32_BYTES * (self.n_shifted + self.n_state)

    @property
    def moving_bytes(self) -> int:
        """What of a sequence lies among the tokens that are computed: its states, and those that the
        convolution leaves.
        """
        return _F32_BYTES * (2 * self.n_shifted + self.n_state)

    @classmethod
    def of(cls, hyper: Hyperparameters) -> RecurrentShape:
        n_embd, n_head = hyper.number("embedding_length"), max(hyper.per_layer("attention.head_count"))
        convolved = max(0, hyper.number("ssm.conv_kernel") - 1)
        if size := hyper.number("wkv.head_size"):
            return cls(hyper.number("token_shift_count", 2) * n_embd, n_embd * size, 12 * n_embd)
        if length := hyper.number("shortconv.l_cache"):
            return cls(n_embd * (length - 1), 0, 6 * n_embd)
        if size := hyper.number("kda.head_dim"):
            inner = n_head * size
            return cls(3 * (convolved or 3) * inner, size * inner, 14 * inner)
        if hyper.architecture == _LINEAR_ATTENTION:
            size = hyper.number("attention.key_length", n_embd // max(1, n_head))
            return cls(0, size * size * n_head, 8 * size * n_head)
        inner, n_state = hyper.number("ssm.inner_size"), hyper.number("ssm.state_size")
        channels = inner + 2 * hyper.number("ssm.group_count") * n_state
        # two halves of the projection, then states before, after and beside the convolution and the scan
        return cls(convolved * channels, n_state * inner, 2 * inner + 4 * channels)
