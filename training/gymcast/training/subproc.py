"""``GymcastSubprocVecEnv``: Stable-Baselines3's ``SubprocVecEnv`` with shared memory, several lanes per worker, and
workers that are started again when they die or hang.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from gymcast.envs.shared_arrays import ArraySpec, SharedArrays, action_leaf, allocate, observation_leaves
from gymcast.envs.subproc import RestartBudget, Worker, WorkerDown, WorkerError, WorkerRestart, end_all
from gymcast.envs.subproc_worker import STEP, Failure

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Indices = int | Iterable[int] | None
_STEP_MESSAGES = (STEP + b"\0", STEP + b"\1")
_PRELOADED = ["__main__", "gymcast.envs.subproc_worker", "stable_baselines3.common.monitor"]
_SPIN_SECONDS = 0.0002  # made CartPole, 8 lanes in 2 workers on 2 cores, about 1.6 times as fast
_REMEMBERED_RESTARTS = 1000


class GymcastSubprocVecEnv(SubprocVecEnv):
    """Environments in worker processes, several lanes in each, with everything that is an array in shared memory.

    Takes the place of ``SubprocVecEnv``: ``make_vec_env(..., vec_env_cls=GymcastSubprocVecEnv, vec_env_kwargs={...})``.
    ``step`` returns arrays of its own (observations in the dtype of their space, rewards float64 (N,), dones bool (N,))
    and one ``info`` per lane.

    A worker that is killed, crashes, raises in ``step`` or ``reset``, or hangs is ended and started again. In that step
    its lanes are done, with reward 0 and ``info`` holding ``worker_restarted`` (true), ``TimeLimit.truncated`` (true),
    ``terminal_observation`` (the last one there was) and ``worker_failure`` (why): algorithms bootstrap as they do for
    any truncated episode. Other lanes only wait. An environment that breaks its contract (wrong shape or dtype, NaN,
    changed spaces) is not started again: that raises ``WorkerError`` with the lane.

    Args:
        env_fns: one function per lane that makes its environment; anything cloudpickle takes.
        start_method: "forkserver" (default), "spawn" or "fork".
        n_workers: worker processes; by default one per core. Environments that mostly wait (for a network, a game of
            its own) want as many as there are lanes.
        step_timeout: seconds a worker may take for a step or reset of all its lanes; None waits for ever.
        start_timeout: seconds a worker may take to start and make its environments; None waits for ever.
        episode_timeout: seconds of wall-clock time after which an episode is truncated between two steps, with
            ``info["episode_timeout"]``; None for no limit.
        max_restarts: restarts allowed in all, None for any number. A worker that fails five times in a row without
            completing a step is given up in any case.
        max_restarts_per_minute: restarts allowed within any minute.
        on_restart: called with a :class:`~gymcast.envs.subproc.WorkerRestart` after each.

    Raises:
        WorkerError: a factory raises, spaces differ between lanes, an environment breaks its contract, or the restarts
            allowed are spent; with the lane and the worker's own traceback.
        TypeError: an observation space that has no arrays of fixed shape.
        ValueError: numbers out of range.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        start_method: str | None = None,
        *,
        n_workers: int | None = None,
        step_timeout: float | None = 60.0,
        start_timeout: float | None = 120.0,
        episode_timeout: float | None = None,
        max_restarts: int | None = 100,
        max_restarts_per_minute: int = 20,
        on_restart: Callable[[WorkerRestart], None] | None = None,
    ) -> None:
        self.waiting = False
        self.closed = True
        lanes = len(env_fns)
        count = _worker_count(lanes, n_workers)
        self.step_timeout, self.start_timeout = step_timeout, start_timeout
        self.on_restart = on_restart
        self.restarts: deque[WorkerRestart] = deque(maxlen=_REMEMBERED_RESTARTS)
        """The latest restarts, oldest first."""
        self._budget = RestartBudget(max_restarts, max_restarts_per_minute)
        self._turn = 0
        self._lane_seeds: list[int | None] = [None] * lanes
        self._set: dict[int, dict[str, Any]] = {}
        self._memory = os.memfd_create("gymcast-lanes")
        self._workers: list[Worker] = []
        self._finalizer = Finalize(self, _let_go, args=(self._workers, self._memory), exitpriority=20)
        method = start_method or ("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
        if method == "forkserver":  # once per process, so that a worker starts in a moment
            multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
        spin = _SPIN_SECONDS if count <= len(os.sched_getaffinity(0)) else 0.0  # more would take each other's cores
        edges = [round(place * lanes / count) for place in range(count + 1)]
        for number in range(count):
            mine = range(edges[number], edges[number + 1])
            factories = env_fns[mine.start : mine.stop]
            self._workers.append(Worker(number, mine, factories, method, self._memory, episode_timeout, spin))
        self.closed = False
        try:
            observation_space, action_space = self._start_all()
            VecEnv.__init__(self, lanes, observation_space, action_space)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The worker processes there are now."""
        return [worker.process for worker in self._workers if worker.process is not None]

    @property
    def n_restarts(self) -> int:
        """Workers started again so far."""
        return self._budget.spent

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step with ``actions`` (N, ...), cast to the dtype of the action space.

        Raises ``ValueError`` for another shape and ``TypeError`` for numbers of another kind.
        """
        self._failed: dict[int, WorkerDown] = {}
        self._pending: set[int] = set()  # workers still to be heard; Ctrl-C may interrupt the waiting for them
        shared = self._arrays.actions
        if shared is not None:
            if np.shape(actions) != shared.shape:
                raise ValueError(f"actions have shape {np.shape(actions)}, expected {shared.shape}: one row per lane")
            np.copyto(shared, actions, casting="same_kind")
        self._turn ^= 1
        for worker in self._workers:
            message = _STEP_MESSAGES[self._turn]
            if shared is None:
                message += pickle.dumps([actions[lane] for lane in worker.lanes])
            try:
                worker.send(message)
                self._pending.add(worker.number)
            except WorkerDown as down:
                self._failed[worker.number] = down
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step. Raises ``WorkerError`` when a worker failed for good."""
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for worker in self._workers:
            if worker.number not in self._pending:
                continue
            try:
                message = worker.receive(self.step_timeout, "a step")
            except WorkerDown as down:
                self._failed[worker.number] = down
                message = b""
            self._pending.remove(worker.number)
            worker.in_a_row = 0 if message else worker.in_a_row
            if len(message) > 1:
                for lane, info, reset_info in pickle.loads(memoryview(message)[1:]):  # noqa: S301 - from own workers
                    infos[lane] = info
                    if reset_info is not None:
                        self.reset_infos[lane] = reset_info
        self.waiting = False
        for number, why in self._failed.items():
            self._heal_step(self._workers[number], why, infos)
        arrays = self._arrays
        return self._observation(), arrays.rewards.copy(), arrays.dones.copy(), infos

    def reset(self) -> VecEnvObs:
        """Begin an episode in every lane, with the seeds and options given before; both are used once."""
        if self.waiting:
            self.step_wait()
        self._turn ^= 1
        seeds, options = list(self._seeds), list(self._options)
        self._lane_seeds = [new if new is not None else old for new, old in zip(seeds, self._lane_seeds, strict=True)]
        failed: dict[int, WorkerDown] = {}
        for worker in self._workers:
            try:
                worker.send(self._reset_message(worker, seeds, options))
            except WorkerDown as down:
                failed[worker.number] = down
        for worker in self._workers:
            if worker.number not in failed:
                try:
                    self._take_reset(worker)
                except WorkerDown as down:
                    failed[worker.number] = down
        for number, why in failed.items():
            self._restart(self._workers[number], why, options)
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def _reset_message(self, worker: Worker, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> bytes:
        lanes = worker.lanes
        mine = slice(lanes.start, lanes.stop)
        message: bytes = cloudpickle.dumps(("reset", (self._turn, list(seeds[mine]), list(options[mine]))))
        return message

    def _take_reset(self, worker: Worker) -> None:
        for lane, info in zip(worker.lanes, worker.receive_reply(self.step_timeout, "a reset"), strict=True):
            self.reset_infos[lane] = info

    def _observation(self) -> VecEnvObs:
        whole: VecEnvObs = self._assembled([part.copy() for part in self._arrays.observations[self._turn]])
        return whole

    def _assembled(self, parts: list[Any]) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return dict(zip(self.observation_space.spaces, parts, strict=True))
        return tuple(parts) if isinstance(self.observation_space, spaces.Tuple) else parts[0]

    def _heal_step(self, worker: Worker, down: WorkerDown, infos: list[dict[str, Any]]) -> None:
        """Start a worker again that failed in a step, and end its episodes as truncated."""
        lanes = worker.lanes
        before = self._arrays.observations[self._turn ^ 1]
        last = [self._assembled([part[lane].copy() for part in before]) for lane in lanes]
        reason = self._restart(worker, down, [{}] * self.num_envs)
        for lane, observation in zip(lanes, last, strict=True):
            self._arrays.rewards[lane] = 0.0
            self._arrays.dones[lane] = True
            infos[lane] = {
                "worker_restarted": True,
                "worker_failure": reason,
                "TimeLimit.truncated": True,
                "terminal_observation": observation,
            }

    def _restart(self, worker: Worker, down: WorkerDown, options: Sequence[dict[str, Any]]) -> str:
        """Start a worker again, as often as the budget allows, and reset its lanes; returns why it was needed."""
        began = time.monotonic()
        first = down.failure
        while True:
            failure = down.failure
            if failure.is_fault:
                raise worker.given_up(failure)
            try:
                delay = self._budget.spend(worker.in_a_row)
            except WorkerError as limit:
                raise worker.given_up(failure, f"\nGiven up: {limit}.") from None
            log.warning("%s; starting it again", worker.named(failure))
            worker.in_a_row += 1
            time.sleep(delay)
            try:
                worker.start()
                self._welcome(worker)
                self._set_again(worker)
                worker.send(self._reset_message(worker, self._fresh_seeds(), options))
                self._take_reset(worker)
                break
            except WorkerDown as again:
                down = again
        restart = WorkerRestart(
            worker.number,
            tuple(worker.lanes),
            worker.named(first),
            first.traceback,
            self.n_restarts,
            time.monotonic() - began,
        )
        self.restarts.append(restart)
        if self.on_restart is not None:
            self.on_restart(restart)
        return restart.reason

    def _fresh_seeds(self) -> list[int | None]:
        """Seeds for lanes that begin anew: other ones than before, or the episode that failed would come again."""
        return [
            None if seed is None else int(np.random.SeedSequence([seed, self.n_restarts]).generate_state(1)[0] >> 1)
            for seed in self._lane_seeds
        ]

    def _set_again(self, worker: Worker) -> None:
        """Set attributes that were set by ``set_attr`` in the worker before."""
        calls = [(lane, name, value) for lane in worker.lanes for name, value in self._set.get(lane, {}).items()]
        if calls:
            worker.send(cloudpickle.dumps(("set_attr", calls)))
            worker.receive_reply(self.step_timeout, "set_attr")

    def _start_all(self) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """Start all workers at once; returns the spaces of a lane."""
        self._described: tuple[Any, Any, int] | None = None
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                self._welcome(worker)
        except WorkerDown as down:
            raise worker.given_up(down.failure) from None
        assert self._described is not None
        return self._described[0], self._described[1]

    def _welcome(self, worker: Worker) -> None:
        """Take a worker in that has made its environments. The first one decides what the shared memory holds."""
        described = worker.greet(self.start_timeout)
        if self._described is None:
            observation_space, action_space, masks = self._described = described
            observation, action = observation_leaves(observation_space), action_leaf(action_space)
            lanes = self._workers[-1].lanes.stop
            self._spec = ArraySpec(lanes, len(self._workers), observation, action, masks)
            self._arrays: SharedArrays = allocate(self._spec, self._memory)
        elif described != self._described:
            reason = (
                f"its spaces and masks {described} are not those of lane 0 when it was first made: {self._described}"
            )
            raise worker.given_up(Failure(worker.lanes[0], reason, "", True))
        worker.attach(self._spec, self._arrays)

    def close(self) -> None:
        """Close the environments and end the workers, by force after five seconds."""
        if self.closed:
            return
        self.closed = True
        self.waiting = False
        end_all(self._workers, 5.0)
        self._finalizer()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every lane has the attribute."""
        return all(self._call("has_attr", None, attr_name))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute of each lane. Raises ``AttributeError`` when there is none, ``WorkerError`` as below."""
        return self._call("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute; it is set again in a worker that is started again."""
        self._call("set_attr", indices, attr_name, value)
        for lane in self._get_indices(indices):
            self._set.setdefault(lane % self.num_envs, {})[attr_name] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each lane; what it raises is raised here, with the worker's traceback as a note.

        ``action_masks`` is answered from shared memory. Raises ``WorkerError`` when a worker dies or hangs in the call;
        the next step starts it again.
        """
        if method_name == "action_masks" and self._spec.mask_size and not method_args and not method_kwargs:
            return [self._arrays.masks[lane].copy() for lane in self._get_indices(indices)]
        return self._call("env_method", indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Whether each lane is wrapped by ``wrapper_class``."""
        return self._call("is_wrapped", indices, wrapper_class)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (N, M): the legal choices of every lane now; M is 0 when the environments have no ``action_masks``."""
        return self._arrays.masks.copy()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """An image of each lane, uint8 (H, W, 3); None for each without ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return self.env_method("render")

    def _call(self, command: str, indices: Indices, *arguments: Any) -> list[Any]:
        if self.waiting:
            raise RuntimeError(f"{command} cannot be answered during a step: call step_wait() first")
        wanted = [range(self.num_envs)[lane] for lane in self._get_indices(indices)]
        asked: list[tuple[Worker, list[int]]] = []
        errors: list[BaseException] = []
        for worker in self._workers:
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
                values.update(zip(mine, worker.receive_reply(self.step_timeout, command), strict=True))
            except WorkerDown as down:
                errors.append(worker.given_up(down.failure))
            except Exception as error:  # noqa: BLE001 - what the environment's own method raised
                errors.append(error)
        if errors:
            raise errors[0]
        return [values[lane] for lane in wanted]


def _worker_count(lanes: int, given: int | None) -> int:
    if lanes < 1:
        raise ValueError("env_fns is empty: give one function per lane")
    if given is None:
        return min(lanes, len(os.sched_getaffinity(0)))
    if isinstance(given, bool) or given < 1:
        raise ValueError(f"n_workers={given!r} is not allowed: give a whole number of at least 1, or None")
    return min(lanes, int(given))


def _let_go(workers: Sequence[Worker], memory: int) -> None:
    """End whatever runs and give the memory back; also called at exit and when the environment is collected."""
    end_all(workers, 0.0)
    os.close(memory)
