"""Runs jobs on a Ray cluster: one core task a job; Ray carries them and nothing else.

What a job leaves is in its run directory, on a file system that all nodes share: nothing is kept in Ray,
whose tasks die with their driver. A driver that died is started again (``trickbag study resume``), finds
what is finished, and sends the rest. A task of the old driver, or on a node that only seems dead, may still
be writing then; :func:`trickbag.study.exclusion.until_free` keeps the two apart.

Lost workers and nodes are tried again by us rather than by Ray's ``max_retries``, so that every try is an
event of the study and all reasons count together. Processes of Ray are kept for the next task, with a warm
parent of jobs beside each, so that only a node's first jobs pay for imports.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from trickbag.errors import UsageError
from trickbag.study.remote import RemoteExecutor, errand
from trickbag.study.worker import Job


class RayExecutor(RemoteExecutor):
    """Runs jobs on a Ray cluster; connects when it is made, unless this process is connected already.

    Args:
        address: of the cluster: ``auto`` finds the one that this machine belongs to; ``host:port``.
        workers: jobs at once; 0 for as many as the cluster's nodes have room for, which is looked up again
            and again, as nodes come and go.
        cpus: cores of each job.
        gpus: devices of each job; Ray says which.
        attempts: tries a job has.

    Raises:
        UsageError: there is no such cluster, or no node in it has room for a job.
    """

    def __init__(
        self, address: str = "auto", workers: int = 0, cpus: float = 1, gpus: float = 0, attempts: int = 3
    ) -> None:
        import ray

        self.attempts = attempts
        self._wanted, self._cpus, self._gpus = workers, cpus, gpus
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError, ValueError) as error:
                first = next(iter(str(error).splitlines()), "")
                raise UsageError(
                    f"no Ray cluster at {address!r}: {first}", fix="start one: `ray start --head`"
                ) from None
        if not workers and not self._room():
            raise UsageError(
                f"no node of the Ray cluster has room for a job: {cpus} CPUs and {gpus} GPUs",
                fix="lower --threads, or say how many --workers there will be when nodes come up",
            )

        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(errand)

    @property
    def workers(self) -> int:
        """Jobs at once."""
        return self._wanted or max(1, self._room())

    def _room(self) -> int:
        import ray

        room = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                here = [has.get("CPU", 0) // self._cpus] if self._cpus else []
                here += [has.get("GPU", 0) // self._gpus] if self._gpus else []
                room += int(min(here, default=1))
        return room

    def submit(self, job: Job, mailbox: str, environment: dict[str, str]) -> Any:
        """See :class:`RemoteExecutor`."""
        return self._task.options(name=job.name).remote(job, mailbox, environment)

    def outcome(self, ticket: Any) -> tuple[str, Any] | None:
        """See :class:`RemoteExecutor`."""
        import ray
        from ray.exceptions import RayError, TaskCancelledError

        if not ray.wait([ticket], timeout=0)[0]:
            return None
        try:
            kind, detail = ray.get(ticket)
            return kind, detail
        except TaskCancelledError:
            return "stopped", None
        except RayError as error:
            return "crashed", str(error)

    def cancel(self, ticket: Any, *, force: bool) -> None:
        """See :class:`RemoteExecutor`."""
        import ray

        ray.cancel(ticket, force=force)

    def sleep(self, tickets: Sequence[Any]) -> None:
        """See :class:`RemoteExecutor`."""
        import ray

        if tickets:
            ray.wait(list(tickets), timeout=0.5)
        else:
            super().sleep(tickets)
