"""Units computed by Ray actors, on this machine or on a cluster, each with the model in its memory.

Ray places the actors, starts those again that die, moves tasks and results, and notices lost machines.  What is done
here: which chunk of facts goes to which actor, and that no actor has more than `AHEAD` units waiting, so that results
cannot pile up.  The rows go to the caller, who writes them: one writer needs one lock and one disk, rows are small
beside the work that makes them, and a lost machine leaves nothing half-written.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loc_edit.experiment.engine.local import TRIES, WorkerDied

log = logging.getLogger(__name__)

AHEAD = 2
"""Units that an actor has at most, the one that it computes included."""
PATIENCE = 60.0
"""Seconds without any result after which a cluster without a living worker is reported."""


class _Actor:
    """A worker with its model; an actor once Ray has it."""

    def __init__(self, open_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._compute = open_worker()

    def ready(self) -> None:
        """Returns when the model is there."""

    def compute(self, task: Any) -> Any:
        """The result of one task."""
        return self._compute(task)


class _Lane:
    """An actor and the tasks of its stream."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.tasks: deque[Any] = deque()
        self.running: dict[Any, Any] = {}

    def take_back(self) -> deque[Any]:
        """All that it has not finished, in order."""
        left = deque([*self.running.values(), *self.tasks])
        self.running.clear()
        self.tasks = deque()
        return left


def on_ray(
    streams: Sequence[Sequence[Any]],
    open_worker: Callable[[], Callable[[Any], Any]],
    workers: int | None,
    *,
    address: str | None = None,
    gpus: float | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, in the order in which they finish.

    Args:
        streams: tasks; a stream stays with one actor, or goes to another as a whole where that is lost.
        open_worker: called once in each actor; makes what computes a task there.
        workers: number of actors; `None` for one per GPU of the cluster, or per core where it has none.
        address: see `Engine`.
        gpus: of each actor; `None` for 1 where the cluster has any.

    Raises:
        WorkerDied: a task has ended `TRIES` actors.
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """
    waiting = deque(deque(stream) for stream in streams if stream)
    if not waiting:
        return
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, workers)
    gpus, workers = _shares(ray.cluster_resources(), gpus, workers)
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(_Actor)
    lanes = [_Lane(kind.remote(open_worker)) for _ in range(min(workers, len(waiting)))]
    try:
        yield from _loop(ray, lanes, waiting)
    finally:
        for lane in lanes:
            ray.kill(lane.actor)
        if ours:
            ray.shutdown()


def _loop(ray: Any, lanes: list[_Lane], waiting: deque[deque[Any]]) -> Iterator[tuple[Any, Any]]:
    """Give streams to actors that are ready, and take what is ready."""
    starting = {_ready(lane): lane for lane in lanes}
    deaths: dict[int, int] = {}

    def give(lane: _Lane) -> None:
        while len(lane.running) < AHEAD:
            if not lane.tasks:
                if not waiting:
                    return
                lane.tasks = waiting.popleft()
            task = lane.tasks.popleft()
            lane.running[lane.actor.compute.remote(task)] = task

    def lost(lane: _Lane, error: Exception) -> None:
        left = lane.take_back()
        if left:
            first = left[0]
            deaths[id(first)] = deaths.get(id(first), 0) + 1
            if deaths[id(first)] >= TRIES:
                raise WorkerDied(
                    f"{TRIES} Ray workers ended while they computed {first} (is memory enough?); rows finished before "
                    "are kept, run again to go on"
                ) from error
            waiting.appendleft(left)
        log.warning("a Ray worker was lost, what it had goes to another: %s", str(error).partition("\n")[0])
        starting[_ready(lane)] = lane
        for other in lanes:
            if other not in starting.values():
                give(other)

    while waiting or any(lane.running for lane in lanes):
        of_lane = {ref: lane for lane in lanes for ref in lane.running}
        done, _ = ray.wait([*starting, *of_lane], num_returns=1, timeout=PATIENCE)
        if not done:
            if not of_lane:
                log.warning("no Ray worker is ready; %s", _resources(ray))
            continue
        [ref] = done
        if ref in starting:
            lane = starting.pop(ref)
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError as error:
                if isinstance(error, ray.exceptions.ActorDiedError):  # its constructor raised: no second try helps
                    raise WorkerDied(f"a Ray worker cannot start: {error}") from error
                starting[_ready(lane)] = lane
            else:
                give(lane)
            continue
        lane = of_lane[ref]
        try:
            result = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            lost(lane, error)
            continue
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        task = lane.running.pop(ref)
        give(lane)
        yield task, result


def _ready(lane: _Lane) -> Any:
    """Done when the actor has its model, however often it is started till then."""
    return lane.actor.ready.options(max_task_retries=-1).remote()


def _ray() -> Any:
    """Ray, without its reports home."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("engine 'ray' needs Ray: pip install 'loc-edit[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    """To the cluster at an address, or to a new one on this machine that listens to this machine only."""
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
    """Refuses an address at which nobody listens, which Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from error


def _shares(resources: dict[str, float], gpus: float | None, workers: int | None) -> tuple[float, int]:
    """GPUs of each actor, and how many actors."""
    there = resources.get("GPU", 0.0)
    gpus = gpus if gpus is not None else float(there > 0)
    return gpus, workers or max(1, int(there / gpus) if gpus else int(resources.get("CPU", 1)))


def _resources(ray: Any) -> str:
    """What there is to be had, in words."""
    free, all_there = ray.available_resources(), ray.cluster_resources()
    names = ("CPU", "GPU")
    return ", ".join(f"{free.get(name, 0):g} of {all_there.get(name, 0):g} {name}s are free" for name in names)
