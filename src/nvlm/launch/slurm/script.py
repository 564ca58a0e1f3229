"""The batch script of a stage: one torchrun on each node, which meet at the first node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.errors import UserError

# What sbatch(1) takes for --time.
TIME_LIMIT = re.compile(r"\d+(:\d\d){0,2}|\d+-\d\d(:\d\d){0,2}")


@dataclass(frozen=True, kw_only=True)
class SlurmParams:
    """What a job asks Slurm for, and how its ranks start."""

    partition: str | None  # null: the cluster's default
    account: str | None  # null: the user's default
    time: str  # limit of a job, as sbatch's --time; the next run goes on from its last snapshot
    resubmit: int  # jobs that may follow one that reached its limit, as long as the run advances
    ranks_per_node: int  # one a GPU; a larger grid fills nodes of this many
    gpus: bool  # ask for a GPU a rank; false: the CPU, or a request among the options
    cpus_per_rank: int
    options: list[str]  # further options of sbatch: --qos=long
    srun: list[str]  # options of srun, such as a container's: --container-image=nvlm.sqsh
    setup: list[str]  # shell lines before the ranks: module load cuda, source .venv/bin/activate
    port: int  # of the first node, where the ranks meet
    poll_seconds: int  # between two questions about a job

    def __post_init__(self) -> None:
        if not TIME_LIMIT.fullmatch(self.time):
            raise ValueError(f"time: {self.time!r} should be like '24:00:00' or '2-00:00:00'")
        for name in ("ranks_per_node", "cpus_per_rank", "port", "poll_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} should be 1 or more")
        if self.resubmit < 0:
            raise ValueError(f"resubmit: {self.resubmit} should be 0 or more")
        for name in ("options", "srun"):
            for option in getattr(self, name):
                if not option.startswith("-") or "\n" in option:
                    raise ValueError(f"{name}: {option!r} should be one option, such as --name=x")

    def nodes(self, processes: int) -> tuple[int, int]:
        """How many nodes ``processes`` ranks take, and how many ranks each of them holds.

        Raises UserError for ranks that would leave one of several nodes partly empty: the ranks of
        a tensor-parallel group would lie in two nodes.
        """
        if processes <= self.ranks_per_node:
            return 1, processes
        if processes % self.ranks_per_node:
            raise UserError(
                f"the grid's {processes} processes do not fill nodes of {self.ranks_per_node}: "
                "change the grid, or launch.slurm.ranks_per_node"
            )
        return processes // self.ranks_per_node, self.ranks_per_node


def batch_script(
    params: SlurmParams,
    command: Sequence[str],
    *,
    processes: int,
    name: str,
    log: str,
    environment: dict[str, str],
    stop_seconds: int,
) -> str:
    """The script that runs ``command`` (a Python script and its arguments) on ``processes`` ranks.

    ``log``: where its output goes, ``%j`` being the job; ``environment``: what the ranks find set
    besides the submitter's own environment; ``stop_seconds``: between the SIGTERM that ranks get
    and the job's limit. The same arguments give the same text.
    """
    nodes, ranks = params.nodes(processes)
    cpus = ranks * params.cpus_per_rank
    options = [
        f"--job-name=nvlm-{name}",
        f"--output={log}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",
        *([f"--gpus-per-node={ranks}"] if params.gpus else []),
        f"--time={params.time}",
        f"--signal=TERM@{stop_seconds}",
        "--no-requeue",  # whoever waits for the job decides whether it runs again
        *([f"--partition={params.partition}"] if params.partition else []),
        *([f"--account={params.account}"] if params.account else []),
        *params.options,
    ]
    # srun does not take over the CPUs of a task since Slurm 22.05.
    srun = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *params.srun]
    torchrun = f"torchrun --nnodes {nodes} --nproc-per-node {ranks} --rdzv-backend c10d"
    exported = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(stop_seconds), **environment}
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "",
            "set -e -o pipefail",
            *params.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in exported.items()),
            # A batch script runs on the first node of its job. More threads a rank are slower.
            'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
            f'meeting="$SLURMD_NODENAME:{params.port}"',
            f"{shlex.join(srun)} \\",
            f'  {torchrun} --rdzv-endpoint "$meeting" --rdzv-id "$SLURM_JOB_ID" \\',
            f"  {shlex.join(command)}",
            "",
        ]
    )
