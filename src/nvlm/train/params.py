"""Parameters of one training stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvlm.data.loading.params import LoaderParams
from nvlm.parallel.grid import GridParams
from nvlm.train.lora import LoraParams
from nvlm.train.online import OnlineParams

TRAINABLE = ("vision_projection", "language_model")
DTYPES = ("float32", "bfloat16")
POSITIVE = (
    *("steps", "global_batch", "micro_batch", "tile_chunk"),
    *("log_every", "snapshot_every", "snapshots_kept"),
)
RESUME = ("exact", "reshard")
TURN_WEIGHTINGS = ("token", "square_root")


@dataclass(frozen=True, kw_only=True)
class TrainParams:
    """One column of Tables 10 and 11 of the paper (appendix B)."""

    trainable: list[str]  # modules that are trained; the vision tower never is
    data: LoaderParams
    grid: GridParams
    steps: int  # optimizer steps
    global_batch: int  # rows of the decoder a step, over all replicas and micro-batches
    micro_batch: int  # rows that go through the model at once
    tile_chunk: int  # tiles that go through the vision tower at once
    lr: float  # peak learning rate, reached after the warmup
    min_lr: float  # learning rate at the last step
    warmup_steps: int
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float  # of matrices; biases and norms have none, as in Megatron-LM
    clip_grad: float  # largest global gradient norm
    stop_above_norm: float  # a gradient norm, before clipping, that ends the run as diverged
    turn_weighting: str  # of an answer's tokens in the loss: token or square_root
    attention_dropout: float  # of the decoder, as Megatron's --attention-dropout
    hidden_dropout: float  # of what attention and MLP add, as Megatron's --hidden-dropout
    dtype: str  # of computation; masters of what is trained and reductions are fp32
    sequence_parallel: bool  # split norms and the residual stream over the tensor ranks
    deterministic: bool  # the same bytes at every run on the same machines; some kernels are slower
    recompute_every: int  # every n-th decoder layer runs again in the backward pass; 0: none does
    keep_gathered: bool  # FSDP2 gathers once a step, not once a micro-batch: faster, more memory
    compile: bool  # torch.compile each decoder layer
    seed: int
    log_every: int  # steps between two points of the curves
    tensorboard: bool  # write the curves to logs/ for TensorBoard too, as the run goes
    lora: LoraParams | None = None  # adapts the language model instead of training it
    online: OnlineParams | None = None  # what is scored on the way; null: nothing
    snapshot_every: int  # steps between two snapshots to resume from
    snapshots_kept: int  # the newest may be half-written when a machine dies
    # exact: a snapshot of these very parameters; reshard: also one of another grid or number of
    # workers, whose state is dealt anew, so that bytes differ from those of a run left alone.
    resume: str = "exact"

    def __post_init__(self) -> None:
        unknown = set(self.trainable) - set(TRAINABLE)
        if unknown or not self.trainable:
            raise ValueError(f"trainable: {self.trainable} should name some of {list(TRAINABLE)}")
        for name, known in (
            ("dtype", DTYPES),
            ("resume", RESUME),
            ("turn_weighting", TURN_WEIGHTINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} should be one of {list(known)}")
        self._check_numbers()
        if self.global_batch % (self.micro_batch * self.grid.data):
            raise ValueError(
                f"global_batch: {self.global_batch} should be a multiple of micro_batch "
                f"({self.micro_batch}) times the data-parallel ranks ({self.grid.data})"
            )
        if self.grid.pipeline > 1 and "language_model" not in self.trainable:
            raise ValueError(
                f"grid.pipeline: {self.grid.pipeline} should be 1 where trainable leaves out the "
                "language model: later stages would have nothing to train"
            )
        if self.lora is not None and "language_model" not in self.trainable:
            raise ValueError(
                f"lora: should be null where trainable ({self.trainable}) leaves out the "
                "language model, which it adapts"
            )
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr: {self.min_lr} should lie between 0 and lr ({self.lr})")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} should be less than steps ({self.steps})"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {self.betas} should be two numbers from 0 up to 1")

    @property
    def trained(self) -> list[str]:
        """Modules whose own weights are trained: an adapted language model's are not."""
        return [name for name in self.trainable if not (self.lora and name == "language_model")]

    def _check_numbers(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} should be 1 or more")
        for name in ("clip_grad", "stop_above_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} should be more than 0")
        if self.recompute_every < 0:
            raise ValueError(f"recompute_every: {self.recompute_every} should be 0 or more")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: {self.weight_decay} should be 0 or more")
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} should be from 0 up to 1")
