"""What a person sees of a run while it goes on: progress, a line now and then, logs, scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

from nvlm.data.loading.batch import Batch
from nvlm.data.loading.blend import Blend
from nvlm.data.loading.tally import Tally
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.telemetry.logs import Logs
from nvlm.train.telemetry.measurements import line, measurements
from nvlm.train.trainer import StepResult, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nvlm.evaluate.online import OnlineEvaluation


class Observer:
    """Follows a run on every rank; rank 0 tells and writes."""

    def __init__(
        self,
        params: TrainParams,
        trainer: Trainer,
        tokenizer: PreTrainedTokenizerFast,
        logs: Logs,
    ) -> None:
        self.params, self.trainer, self.logs = params, trainer, logs
        self.is_main = trainer.mesh.is_main
        self.online = _online(params, trainer, tokenizer)
        self.tally = Tally()  # of this replica's samples, since this start
        self._shortfalls_told = False

    def start(self, blend: Blend) -> None:
        """Say what of ``blend`` is missing."""
        if self.is_main and blend.missing:
            tqdm.write(f"note: {blend.told()}", file=sys.stderr)

    def steps(self, first: int, what: str) -> Iterator[int]:
        """The steps from ``first`` on, with a bar where there is a terminal."""
        return iter(
            tqdm(
                range(first, self.params.steps + 1),
                desc=what,
                unit="step",
                initial=first - 1,
                total=self.params.steps,
                disable=None if self.is_main else True,
            )
        )

    def after(
        self, step: int, result: StepResult, batch: Batch, *, seconds: float, waited: float
    ) -> None:
        """Tell of ``step``, every few steps; score the model, where that is asked for."""
        self.tally.add(batch)
        if step % self.params.log_every == 0 or step == self.params.steps:
            point = {
                "loss": result.loss,
                "lr": result.learning_rate,
                "grad_norm": result.gradient_norm,
            }
            measured = measurements(self.params, self.trainer, batch, seconds, waited)
            self.logs.show(step, "training", point)
            self.logs.add_timing(step, **measured)
            self.logs.show(step, "data", self.tally.shares())
            if self.is_main:
                tqdm.write(line(step, self.params.steps, point, measured), file=sys.stderr)
                self._tell_shortfalls(last=step == self.params.steps)
        online = self.params.online
        if self.online is not None and online is not None and step % online.every == 0:
            scores = self.online.scores()
            if self.is_main:
                self.logs.add_scores(step, **scores)

    def _tell_shortfalls(self, *, last: bool) -> None:
        """Say which samples were not read whole: once there are some, and at the end."""
        told = self.tally.sentence(self.params.data.sequence_length)
        if told and (last or not self._shortfalls_told):
            ranks = self.trainer.mesh.grid.data
            whose = f" (what the first of {ranks} data ranks read)" if ranks > 1 else ""
            tqdm.write(f"note: {told}{whose}", file=sys.stderr)
            self._shortfalls_told = True

    def write(self, curves: Curves) -> None:
        """Write the logs so far, so that a running or dead run can be looked at."""
        if self.is_main:
            self.logs.write(curves.points)


def _online(
    params: TrainParams, trainer: Trainer, tokenizer: PreTrainedTokenizerFast
) -> OnlineEvaluation | None:
    if params.online is None:
        return None
    from nvlm.evaluate.online import OnlineEvaluation

    return OnlineEvaluation(params.online, trainer.model, tokenizer, trainer.mesh)
