"""What the trainings of all stand-ins share: optimizer, learning rate, reproducibility."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import trange

WARMUP, DECAY = 0.05, 0.6  # shares of the training in which the learning rate rises and falls
CLIP_GRAD = 1.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a stand-in is trained."""

    steps: int
    batch: int  # pictures or dialogs a step
    matrix_lr: float  # Muon's, for the matrices of the layers
    lr: float  # AdamW's, for everything else
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps: steps and batch at least 1, not {self.steps}, {self.batch}")


def reproducible(seed: int) -> None:
    """Seed torch, keep it on one thread and off algorithms whose result varies between runs."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


class Optimizer:
    """Muon for matrices inside layers, AdamW for the rest; warm-up, plateau, linear decay.

    Muon reaches in 200 steps what AdamW needs some thousand for, which is what lets the stand-ins
    be trained within a minute.
    """

    def __init__(self, layers: nn.Module, parameters: list[nn.Parameter], training: Training):
        matrices = [parameter for parameter in layers.parameters() if parameter.ndim == 2]
        chosen = set(map(id, matrices))
        others = [parameter for parameter in parameters if id(parameter) not in chosen]
        self.parameters = parameters
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=training.matrix_lr, momentum=0.9, weight_decay=0.0),
            torch.optim.AdamW(
                others, lr=training.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            ),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate_factor(step, training.steps)
            )
            for optimizer in self.optimizers
        ]

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of ``loss``, whose norm is clipped."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_GRAD)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``."""
    rising = (step + 1) / max(1.0, WARMUP * steps)
    falling = (steps - step) / max(1.0, DECAY * steps)
    return min(1.0, rising, falling)


def progress(steps: int, what: str) -> Iterator[int]:
    """Count ``steps`` with an ETA on the terminal, quietly where there is none."""
    return iter(trange(steps, desc=what, unit="step", disable=None))
