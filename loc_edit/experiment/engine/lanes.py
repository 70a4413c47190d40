"""Lanes: workers side by side, each with a stream of tasks in front of it; a worker that dies is replaced.

The loop is the same for processes of this machine (`local`) and for a Ray cluster (`cluster`), which bring their own
kind of lane.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

log = logging.getLogger(__name__)

Compute = Callable[[Any], Any]
"""Task -> result, in a worker."""

TRIES = 3
"""How many workers a task may end before the run gives up."""
PATIENCE = 60.0
"""Seconds without any result after which it is reported that no worker is ready."""


class WorkerDied(RuntimeError):
    """Workers ended in the middle of a task, again and again; what was written before is kept."""


class Lane(ABC):
    """One worker and the tasks in front of it.

    Attributes:
        tasks: the rest of the stream that the worker is at.
        running: the tasks that it was given and has not finished, in order.
        died: the errors by which a future says that the worker is gone.
        ahead: how many tasks the worker has at most, the one that it computes included.
    """

    died: tuple[type[Exception], ...]
    ahead = 1

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()
        self.running: dict[Future[Any], Any] = {}

    @abstractmethod
    def start(self) -> Future[Any]:
        """Start the worker, or a new one in place of one that died; the future is done when it is ready."""

    @abstractmethod
    def submit(self, task: Any) -> Future[Any]:
        """Have a task computed."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker at once: what it has not finished is computed when the run goes on."""

    def take_back(self) -> deque[Any]:
        """All that it has not finished, in order; the first is what its worker was at."""
        unfinished = deque([*self.running.values(), *self.tasks])
        self.running, self.tasks = {}, deque()
        return unfinished


def compute_in_lanes(
    streams: Sequence[Sequence[Any]], lanes: Sequence[Lane], explain: Callable[[], str] = lambda: ""
) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, in the order in which they finish.

    Args:
        streams: tasks; a stream stays with one lane, or goes to another as a whole if the worker is lost.
        lanes: not started yet; they are stopped at the end.
        explain: says why no worker may be ready.

    Raises:
        WorkerDied: a task has ended `TRIES` workers.
    """
    dispatcher = _Dispatcher(streams, lanes)
    try:
        dispatcher.start()
        while dispatcher.lane_of:
            done = wait(dispatcher.lane_of, PATIENCE, FIRST_COMPLETED).done
            if not done and not any(lane.running for lane in lanes):
                log.warning("no worker is ready; %s", explain())
            for future in done:
                yield from dispatcher.finish(future)
    finally:
        for lane in lanes:
            lane.stop()


class _Dispatcher:
    """Gives the streams to lanes that are ready, and takes back what a lost worker had.

    Attributes:
        waiting: streams that no lane has.
        starting: futures of workers that are not ready yet.
        deaths: how many workers each task has ended.
    """

    def __init__(self, streams: Sequence[Sequence[Any]], lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.waiting = deque(deque(stream) for stream in streams if stream)
        self.starting: dict[Future[Any], Lane] = {}
        self.deaths: Counter[int] = Counter()

    @property
    def lane_of(self) -> dict[Future[Any], Lane]:
        """The lane of each future that is still to be waited for; none when all tasks are done."""
        running = {future: lane for lane in self.lanes for future in lane.running}
        return running | self.starting if running or self.waiting else {}

    def start(self) -> None:
        """Start the workers."""
        self.starting = {lane.start(): lane for lane in self.lanes}

    def finish(self, future: Future[Any]) -> Iterator[tuple[Any, Any]]:
        """Take note of a future that is done: a worker is ready, a task has its result, or a worker was lost."""
        if future in self.starting:
            ready = self.starting.pop(future)
            future.result()  # a worker that cannot start raises here
            self.give(ready)
        elif lane := self.lane_of.get(future):  # else the worker was lost, and its tasks were taken back
            error = future.exception()
            if isinstance(error, lane.died):
                self.replace(lane, error)
            else:
                result, task = future.result(), lane.running.pop(future)
                self.give(lane)
                yield task, result

    def give(self, lane: Lane) -> None:
        """Give a worker tasks of its stream, or of the next one, as far ahead as it may have them."""
        while len(lane.running) < lane.ahead and (lane.tasks or self.waiting):
            lane.tasks = lane.tasks or self.waiting.popleft()
            task = lane.tasks.popleft()
            lane.running[lane.submit(task)] = task

    def replace(self, lane: Lane, error: Exception) -> None:
        """Start a new worker in place of one that was lost; whoever is ready goes on with its tasks."""
        unfinished = lane.take_back()
        culprit = unfinished[0]
        self.deaths[id(culprit)] += 1
        if self.deaths[id(culprit)] >= TRIES:
            raise WorkerDied(
                f"{TRIES} workers ended while they computed {culprit} (is memory enough?); "
                "rows finished before are kept, run again to go on"
            ) from error
        reason = str(error).partition("\n")[0]
        log.warning("a worker was lost while it computed %s, which is computed again: %s", culprit, reason)
        self.waiting.appendleft(unfinished)
        self.starting[lane.start()] = lane
        for other in self.lanes:
            if other not in self.starting.values():
                self.give(other)
