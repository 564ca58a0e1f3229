"""The parallel sizes of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GridParams:
    """Parallel sizes of a run; their product is the number of processes.

    Data-parallel ranks hold ``replicate`` copies of the model, each of them sharded over ``shard``
    ranks (FSDP2; HSDP where both are more than one).
    """

    tensor: int  # as the input checkpoint is laid out
    pipeline: int = 1  # as the input checkpoint is laid out
    replicate: int = 1
    shard: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "replicate", "shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} should be 1 or more")

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.replicate * self.shard

    @property
    def processes(self) -> int:
        """Ranks of the whole grid."""
        return self.tensor * self.pipeline * self.data
