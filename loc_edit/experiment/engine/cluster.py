"""Tasks computed by Ray actors, on this machine or on a cluster, each with the model in its memory.

Ray places the actors, starts those again that die, moves tasks and results, and notices lost machines.  The rows go to
the caller, who writes them: one writer needs one lock and one disk, rows are small beside the work that makes them, and
a lost machine leaves nothing half-written.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from loc_edit.experiment.engine.lanes import Compute, Lane, WorkerDied, compute_in_lanes

log = logging.getLogger(__name__)


class _Actor:
    """A worker with its model; an actor once Ray has it."""

    def __init__(self, open_worker: Callable[[], Compute]) -> None:
        self._compute = open_worker()

    def ready(self) -> None:
        """Returns when the model is there."""

    def compute(self, task: Any) -> Any:
        """The result of one task."""
        return self._compute(task)


class _ActorLane(Lane):
    """A Ray actor; it has one task more than it computes, so that it need not wait, and results cannot pile up."""

    ahead = 2

    def __init__(self, ray: Any, kind: Any, open_worker: Callable[[], Compute]) -> None:
        super().__init__()
        self.died = (ray.exceptions.RayActorError,)
        self._ray, self._actor = ray, kind.remote(open_worker)

    def start(self) -> Future[Any]:
        """Ray starts an actor again by itself; the future waits for it, however often it is started till then."""
        future: Future[Any] = self._actor.ready.options(max_task_retries=-1).remote().future()
        return future

    def submit(self, task: Any) -> Future[Any]:
        future: Future[Any] = self._actor.compute.remote(task).future()
        return future

    def stop(self) -> None:
        self._ray.kill(self._actor)


def on_ray(
    streams: Sequence[Sequence[Any]],
    open_worker: Callable[[], Compute],
    workers: int | None,
    *,
    address: str | None = None,
    gpus: float | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, in the order in which they finish.

    Args:
        streams: tasks; a stream stays with one actor, or goes to another as a whole if the actor is lost.
        open_worker: called once in each actor; makes what computes a task there.
        workers: number of actors; `None` for one per GPU of the cluster, or per core if it has none.
        address: see `Engine`.
        gpus: of each actor; `None` for 1 if the cluster has any.

    Raises:
        WorkerDied: a task has ended several actors, or an actor cannot start.
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """
    n_streams = len([stream for stream in streams if stream])
    if not n_streams:
        return
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, workers)
    gpus, workers = _shares(ray.cluster_resources(), gpus, workers)
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(_Actor)
    lanes = [_ActorLane(ray, kind, open_worker) for _ in range(min(workers, n_streams))]
    try:
        yield from compute_in_lanes(streams, lanes, lambda: _resources(ray))
    except ray.exceptions.ActorDiedError as error:  # its constructor raised: no second try helps
        raise WorkerDied(f"a Ray worker cannot start: {error}") from error
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    """Ray, without its reports home."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("engine 'ray' needs Ray: pip install 'loc-edit[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    """Connect to the cluster at an address, or to a new one on this machine that listens to this machine only."""
    if address is None:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            logging_level=logging.WARNING,
        )
    else:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)


def _knock(address: str) -> None:
    """Refuses an address at which nobody listens; Ray itself would try it for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from error


def _shares(resources: dict[str, float], gpus: float | None, workers: int | None) -> tuple[float, int]:
    """GPUs of each actor, and how many actors."""
    n_gpus = resources.get("GPU", 0.0)
    gpus = gpus if gpus is not None else float(n_gpus > 0)
    return gpus, workers or max(1, int(n_gpus / gpus) if gpus else int(resources.get("CPU", 1)))


def _resources(ray: Any) -> str:
    """Which cores and GPUs are free, in words."""
    free, total = ray.available_resources(), ray.cluster_resources()
    names = ("CPU", "GPU")
    return ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in names)
