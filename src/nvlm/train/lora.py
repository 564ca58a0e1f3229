"""Low-rank adaptation, as a training stage is asked for it."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.checkpoint.format.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class LoraParams:
    """An adapter is trained in place of the decoder's own weights, which stay as they are."""

    rank: int
    alpha: float  # what the adapter adds is multiplied by alpha / rank
    dropout: float  # of what its first matrix reads
    targets: list[
        str
    ]  # linear layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} should be from 0 up to 1")
        assert self.adapter  # the rest is checked there

    @property
    def adapter(self) -> Adapter:
        """What of it a checkpoint says."""
        return Adapter(rank=self.rank, alpha=self.alpha, targets=tuple(self.targets))
