"""The workers of a vector environment together: started, asked, and started again within a budget."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
import numpy as np
from gymnasium import spaces

from gymcast.envs.shared_arrays import ArraySpec, SharedArrays, action_leaf, allocate, observation_leaves
from gymcast.envs.subproc import RestartBudget, Worker, WorkerDown, WorkerError, WorkerRestart, end_all
from gymcast.envs.subproc_lanes import Failure
from gymcast.envs.subproc_process import WorkerProcess

log = logging.getLogger(__name__)

_SPIN_SECONDS = 0.0002
_REMEMBERED_RESTARTS = 1000

Options = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """Seconds, None for no limit."""

    step: float | None
    start: float | None
    episode: float | None


class WorkerPool:
    """W workers that step N lanes, and what is needed to put one that failed back in its place.

    Args:
        factories: one function per lane that makes its environment.
        count: workers.
        method: "fork", "spawn" or "forkserver".
        limits: how long things may take.
        budget: how often workers may be started again.
        on_restart: called after each.
        capture: whether to keep what environments print.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], Any]],
        count: int,
        method: str,
        limits: Limits,
        budget: RestartBudget,
        on_restart: Callable[[WorkerRestart], None] | None,
        capture: bool,
    ) -> None:
        lanes = len(factories)
        self.limits, self.budget, self.on_restart = limits, budget, on_restart
        self.restarts: deque[WorkerRestart] = deque(maxlen=_REMEMBERED_RESTARTS)
        self.lane_seeds: list[int | None] = [None] * lanes
        self.attributes: dict[int, dict[str, Any]] = {}
        """What was set in each lane, to be set again."""
        self.reset_infos: list[dict[str, Any]] = [{} for _ in range(lanes)]
        self.in_a_row: dict[int, int] = {}
        """Failures of each lane since it last completed a step."""
        cores = len(os.sched_getaffinity(0))
        self._method, self._capture = method, capture
        self._memory = os.memfd_create("gymcast-lanes")
        self.workers: list[Worker] = []
        self._spares: list[WorkerProcess] = []  # a process that has imported what is needed, after the first restart
        self._modules: list[str] = []
        self._described: tuple[Any, Any, int] | None = None
        self.let_go = Finalize(self, _let_go, args=(self.workers, self._spares, self._memory), exitpriority=20)
        edges = [round(place * lanes / count) for place in range(count + 1)]
        spin = _SPIN_SECONDS if count <= cores else 0.0
        for number in range(count):
            mine = range(edges[number], edges[number + 1])
            self.workers.append(Worker(number, mine, factories[mine.start : mine.stop], limits.episode, spin))

    def start(self) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """Start all workers at once; returns the spaces of a lane. Raises WorkerError."""
        try:
            for worker in self.workers:
                worker.begin(self._process())
            for worker in self.workers:
                self._welcome(worker)
        except WorkerDown as down:
            raise worker.given_up(down.failure) from None
        assert self._described is not None
        return self._described[0], self._described[1]

    def close(self, seconds: float) -> None:
        """End all processes, giving them `seconds` to close their environments."""
        end_all(self.workers, seconds)
        self.let_go()

    def note_seeds(self, seeds: Sequence[int | None]) -> None:
        """Remember the seeds that lanes are given."""
        self.lane_seeds = [new if new is not None else old for new, old in zip(seeds, self.lane_seeds, strict=True)]

    def begin_reset(self, worker: Worker, seeds: Sequence[int | None], options: Options) -> None:
        """Ask a worker for new episodes in all its lanes."""
        mine = slice(worker.lanes.start, worker.lanes.stop)
        worker.send(cloudpickle.dumps(("reset", (worker.turn, list(seeds[mine]), list(options[mine])))))

    def finish_reset(self, worker: Worker) -> list[Failure]:
        """Take its answer; returns the lanes that failed."""
        infos, failures = worker.receive_reply(self.limits.step, "a reset")
        for lane, data in zip(worker.lanes, infos, strict=True):
            if data is not None:
                self.reset_infos[lane] = self.read(worker, lane, data)[0]
        failed: list[Failure] = failures
        return failed

    def read(self, worker: Worker, lane: int, data: bytes) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(info, info of the reset) that a lane sent. Raises WorkerError when they cannot be read here."""
        try:
            both: tuple[dict[str, Any], dict[str, Any] | None] = pickle.loads(data)  # noqa: S301 - from own workers
        except Exception as error:
            reason = f"its info cannot be read in this process: {type(error).__name__}: {error}"
            raise worker.given_up(Failure(lane, reason, "", True)) from error
        return both

    def heal(
        self, worker: Worker, down: WorkerDown | None, failed: Sequence[Failure], options: Options
    ) -> dict[int, str]:
        """Make the `failed` lanes of a worker anew, or start it again when it is down; returns why, by lane."""
        reasons: dict[int, str] = {}
        if down is None:
            try:
                for failure in failed:
                    assert failure.lane is not None
                    reasons[failure.lane] = self._remake(worker, failure, options)
                return reasons
            except WorkerDown as now:
                down = now
        reason = self._restart(worker, down.failure, options)
        return dict.fromkeys(worker.lanes, reason)

    def call(self, command: str, wanted: Sequence[int], arguments: Sequence[Any]) -> list[Any]:
        """Ask lanes for an attribute or a call; what they raise, or WorkerError, is raised."""
        asked: list[tuple[Worker, list[int]]] = []
        errors: list[BaseException] = []
        for worker in self.workers:
            mine = [lane for lane in wanted if lane in worker.lanes]
            if mine:
                try:
                    worker.send(cloudpickle.dumps((command, [(lane, *arguments) for lane in mine])))
                    asked.append((worker, mine))
                except WorkerDown as down:
                    errors.append(worker.given_up(down.failure))
        values: dict[int, Any] = {}
        for worker, mine in asked:  # every answer is taken before an error is raised: none may be left in a channel
            try:
                values.update(zip(mine, worker.receive_reply(self.limits.step, command), strict=True))
            except WorkerDown as down:
                errors.append(worker.given_up(down.failure))
            except Exception as error:  # noqa: BLE001 - what the environment's own method raised
                errors.append(error)
        if errors:
            raise errors[0]
        return [values[lane] for lane in wanted]

    def _restart(self, worker: Worker, failure: Failure, options: Options) -> str:
        """Start a worker again, as often as the budget allows, and reset its lanes; returns why it was needed."""
        began, first = time.monotonic(), failure
        while True:
            self._spend(worker, failure, worker.lanes)
            try:
                worker.begin(self._process())
                self._welcome(worker)
                calls = [(lane, *item) for lane in worker.lanes for item in self.attributes.get(lane, {}).items()]
                if calls:
                    worker.send(cloudpickle.dumps(("set_attr", calls)))
                    worker.receive_reply(self.limits.step, "set_attr")
                self.begin_reset(worker, [self._fresh_seed(lane) for lane in range(len(self.lane_seeds))], options)
                for lost in self.finish_reset(worker):
                    self._remake(worker, lost, options)
                break
            except WorkerDown as again:
                failure = again.failure
        self._tell(worker, worker.lanes, first, worker.named(first), began)
        self._keep_spare()
        return worker.named(first)

    def _remake(self, worker: Worker, failure: Failure, options: Options) -> str:
        """Make one lane anew in a worker that goes on; returns why it was needed."""
        began, first = time.monotonic(), replace(failure, output=worker.last_output())
        assert failure.lane is not None
        lane = failure.lane
        while True:
            self._spend(worker, failure, (lane,))
            given = (worker.turn, lane, self._fresh_seed(lane), options[lane], self.attributes.get(lane, {}))
            worker.send(cloudpickle.dumps(("remake", given)))
            info, failures = worker.receive_reply(self.limits.start, "making an environment anew")
            if not failures:
                break
            failure = failures[0]
        self.reset_infos[lane] = self.read(worker, lane, info)[0]
        self._tell(worker, (lane,), first, worker.named(first, alone=True), began)
        return worker.named(first, alone=True)

    def _spend(self, worker: Worker, failure: Failure, lanes: Sequence[int]) -> None:
        """Take one restart from the budget, and wait as long as it says. Raises WorkerError where it is spent."""
        alone = worker.own is not None
        if failure.is_fault:
            raise worker.given_up(failure)
        try:
            delay = self.budget.spend(max(self.in_a_row.get(lane, 0) for lane in lanes))
        except WorkerError as limit:
            raise worker.given_up(failure, f"\nGiven up: {limit}.", alone) from None
        what = "making its environment anew" if alone else "starting it again"
        log.warning("%s; %s", worker.named(failure, alone), what)
        for lane in lanes:
            self.in_a_row[lane] = self.in_a_row.get(lane, 0) + 1
        time.sleep(delay)

    def _tell(self, worker: Worker, lanes: Sequence[int], first: Failure, reason: str, began: float) -> None:
        restart = WorkerRestart(
            worker.number,
            tuple(lanes),
            reason,
            first.traceback,
            self.budget.spent,
            time.monotonic() - began,
            first.output,
        )
        self.restarts.append(restart)
        if self.on_restart is not None:
            self.on_restart(restart)

    def _fresh_seed(self, lane: int) -> int | None:
        """A seed for a lane that begins anew: another one than before, or the episode that failed would come again."""
        seed = self.lane_seeds[lane]
        if seed is None:
            return None
        return int(np.random.SeedSequence([seed, self.budget.spent]).generate_state(1)[0] >> 1)

    def _process(self) -> WorkerProcess:
        """The one held in reserve, or a new one."""
        if self._spares:
            spare = self._spares.pop()
            if spare.is_alive():
                return spare
            spare.end()
        try:
            return WorkerProcess(self._method, self._memory, self._capture)
        except OSError as error:
            raise WorkerDown(Failure(None, f"its process ended at once ({error})", "", False)) from None

    def _keep_spare(self) -> None:
        """A worker that failed once may fail again: have a process ready that has imported what it will need."""
        if self._spares:
            return
        with contextlib.suppress(OSError):  # the next restart will say why, if it needs saying
            spare = WorkerProcess(self._method, self._memory, self._capture)
            self._spares.append(spare)
            spare.warm(self._modules)

    def _welcome(self, worker: Worker) -> None:
        """Take a worker in that has made its environments. The first one decides what the shared memory holds."""
        said, modules = worker.greet(self.limits.start)
        if self._described is None:
            observation_space, action_space, masks = self._described = said[0][1]
            self._modules = modules
            observation, action = observation_leaves(observation_space), action_leaf(action_space)
            self.spec = ArraySpec(len(self.lane_seeds), len(self.workers), observation, action, masks)
            self.arrays: SharedArrays = allocate(self.spec, self._memory)
        for lane, found in said:
            if found != self._described:
                reason = f"its spaces and masks are {_said(found)}, those of lane 0 at first: {_said(self._described)}"
                raise worker.given_up(Failure(lane, reason, "", True))
        worker.attach(self.spec, self.arrays)


def _said(described: tuple[Any, Any, int]) -> str:
    masks = f"action masks of {described[2]}" if described[2] else "no action masks"
    return f"{described[0]}, {described[1]}, {masks}"


def _let_go(workers: Sequence[Worker], spares: Sequence[WorkerProcess], memory: int) -> None:
    """End whatever runs and give the memory back; also called at exit and when the pool is collected."""
    end_all(workers, 0.0)
    for spare in spares:
        spare.end()
    os.close(memory)
