"""Runs jobs under Slurm through submitit: one Slurm job a run, on a file system that all nodes share.

Slurm jobs live on when the process that sent them dies. Started again, that finds what has finished, and
sends the rest; what is still being trained is waited for (:func:`trickbag.study.exclusion.until_free`). A job
that reaches its time limit writes its checkpoint and goes on in its next try.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trickbag.errors import UsageError
from trickbag.study.remote import RemoteExecutor, errand
from trickbag.study.worker import Job

MINUTES = 24 * 60


class SlurmExecutor(RemoteExecutor):
    """Runs jobs under Slurm.

    Args:
        workers: jobs in Slurm's queue at once.
        cpus: cores of each job.
        gpus: devices of each job.
        attempts: tries a job has.
        cluster: ``slurm``; ``local`` and ``debug`` are submitit's stand-ins.
        parameters: more of ``submitit.AutoExecutor.update_parameters``: ``timeout_min``, ``slurm_partition``.

    Raises:
        UsageError: there is no Slurm here, or it does not know a parameter.
    """

    def __init__(
        self,
        workers: int = 4,
        cpus: int = 1,
        gpus: int = 0,
        attempts: int = 3,
        cluster: str = "slurm",
        **parameters: Any,
    ) -> None:
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UsageError("there is no Slurm here: sbatch is not found", fix="run it on a login node")
        self._workers, self.attempts, self._cluster = workers, attempts, cluster
        self._parameters = {
            "name": "trickbag",
            "cpus_per_task": cpus,
            "gpus_per_node": gpus,
            "timeout_min": MINUTES,
            **parameters,
        }

    @property
    def workers(self) -> int:
        """Jobs at once."""
        return self._workers

    def submit(self, job: Job, mailbox: str, environment: dict[str, str]) -> Any:
        """See :class:`RemoteExecutor`."""
        import submitit

        executor = submitit.AutoExecutor(folder=Path(mailbox).parent / "slurm", cluster=self._cluster)
        try:
            executor.update_parameters(**self._parameters)
        except (NameError, ValueError, TypeError) as error:
            raise UsageError(f"Slurm parameters: {error}") from None
        return executor.submit(errand, job, mailbox, environment)

    def outcome(self, ticket: Any) -> tuple[str, Any] | None:
        """See :class:`RemoteExecutor`."""
        from submitit.core.utils import UncompletedJobError

        try:
            if not ticket.done():
                return None
            kind, detail = ticket.result()
            return kind, detail
        except UncompletedJobError as error:
            return "crashed", str(error)
        except Exception as error:  # whatever the task has raised
            return "crashed", f"{type(error).__name__}: {error}"

    def cancel(self, ticket: Any, *, force: bool) -> None:
        """See :class:`RemoteExecutor`."""
        ticket.cancel(check=False)
