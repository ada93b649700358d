"""``GymcastSubprocVecEnv``: Stable-Baselines3's ``SubprocVecEnv`` with shared memory, several lanes per worker, and
workers that are started again when they die or hang.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from gymcast.envs.subproc import RestartBudget, Worker, WorkerDown, WorkerRestart
from gymcast.envs.subproc_lanes import Failure
from gymcast.envs.subproc_pool import Limits, WorkerPool
from gymcast.envs.subproc_worker import STEP

if TYPE_CHECKING:
    from numpy.typing import NDArray

Indices = int | Iterable[int] | None
_STEP_MESSAGES = (STEP + b"\0", STEP + b"\1")
_PRELOADED = ["__main__", "gymcast.envs.subproc_worker", "stable_baselines3.common.monitor"]


class GymcastSubprocVecEnv(SubprocVecEnv):
    """Environments in worker processes, several lanes in each, with everything that is an array in shared memory.

    Takes the place of ``SubprocVecEnv``: ``make_vec_env(..., vec_env_cls=GymcastSubprocVecEnv, vec_env_kwargs={...})``.
    ``step`` returns arrays of its own (observations in the dtype of their space, rewards float64 (N,), dones bool (N,))
    and one ``info`` per lane.

    An environment that raises in ``step`` or ``reset`` is made anew, and a worker that is killed, crashes or hangs is
    started again. In that step the lanes concerned are done, with reward 0 and ``info`` holding ``worker_restarted``
    (true), ``TimeLimit.truncated`` (true), ``terminal_observation`` (the last one there was) and ``worker_failure``
    (why): algorithms bootstrap as they do for any truncated episode. Other lanes only wait. An environment that breaks
    its contract (wrong shape or dtype, NaN, changed spaces) is not made anew: ``WorkerError`` is raised, with the lane.

    Args:
        env_fns: one function per lane that makes its environment; anything cloudpickle takes.
        start_method: "forkserver" (default), "spawn" or "fork".
        n_workers: worker processes; by default one per core. Environments that mostly wait (for a network, a game of
            its own) want as many as there are lanes.
        step_timeout: seconds a worker may take for a step or reset of all its lanes; None waits for ever.
        start_timeout: seconds a worker may take to start and make its environments; None waits for ever.
        episode_timeout: seconds of wall-clock time after which an episode is truncated between two steps, with
            ``info["episode_timeout"]``; None for no limit.
        max_restarts: restarts allowed in all, None for any number. A lane that fails five times in a row without
            completing a step is given up in any case.
        max_restarts_per_minute: restarts allowed within any minute.
        on_restart: called with a :class:`~gymcast.envs.subproc.WorkerRestart` after each.
        capture_output: keep the last lines that environments print, for errors and :meth:`last_output`; False lets
            them print where this process prints.
        overlap: step one half of the lanes while the algorithm chooses the actions of the other; only for the
            algorithms of ``gymcast.training.algorithms``, and with two workers or more.

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
        capture_output: bool = True,
        overlap: bool = False,
    ) -> None:
        self.waiting = False
        self.closed = True
        count = _worker_count(len(env_fns), n_workers)
        if overlap and count < 2:
            raise ValueError(f"overlap=True steps two halves in turn: n_workers is {count}, give 2 or more")
        self.step_timeout, self.overlap = step_timeout, overlap
        method = start_method or ("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
        if method == "forkserver":  # once per process, so that a worker starts in a moment
            multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
        self._pool = WorkerPool(
            env_fns,
            count,
            method,
            Limits(step_timeout, start_timeout, episode_timeout),
            RestartBudget(max_restarts, max_restarts_per_minute),
            on_restart,
            capture_output,
        )
        self._workers = self._pool.workers
        self._pending: set[int] = set()  # workers still to be heard; Ctrl-C may interrupt the waiting for them
        self._down: dict[int, WorkerDown] = {}
        self.closed = False
        try:
            observation_space, action_space = self._pool.start()
            VecEnv.__init__(self, len(env_fns), observation_space, action_space)
        except BaseException:
            self.close()
            raise
        self._arrays = self._pool.arrays
        self.reset_infos = self._pool.reset_infos
        half = count // 2
        self._halves = (self._workers[:half], self._workers[half:])

    @property
    def processes(self) -> list[Any]:  # type: ignore[override]
        """The worker processes there are now."""
        return [worker.own.process for worker in self._workers if worker.own is not None]

    @property
    def restarts(self) -> deque[WorkerRestart]:
        """The latest restarts, oldest first."""
        return self._pool.restarts

    @property
    def n_restarts(self) -> int:
        """Workers started again, and environments made anew, so far."""
        return self._pool.budget.spent

    @property
    def on_restart(self) -> Callable[[WorkerRestart], None] | None:
        """Called after each restart."""
        return self._pool.on_restart

    @on_restart.setter
    def on_restart(self, call: Callable[[WorkerRestart], None] | None) -> None:
        self._pool.on_restart = call

    @property
    def halves(self) -> tuple[range, range]:
        """The lanes of :meth:`half_step_async`; the first is empty with a single worker."""
        edge = self._halves[1][0].lanes.start
        return range(edge), range(edge, self.num_envs)

    def last_output(self) -> list[str]:
        """The last lines that each worker printed, on both streams together; empty with ``capture_output=False``."""
        return [worker.last_output() for worker in self._workers]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step with ``actions`` (N, ...), cast to the dtype of the action space.

        Raises ``ValueError`` for another shape and ``TypeError`` for numbers of another kind.
        """
        self._begin(self._workers, range(self.num_envs), actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step. Raises ``WorkerError`` when a worker failed for good."""
        return self._finish(self._workers, range(self.num_envs))

    def half_step_async(self, half: int, actions: NDArray[Any]) -> None:
        """Begin a step of the lanes ``halves[half]`` with their actions; the other half may be in a step."""
        self._begin(self._halves[half], self.halves[half], actions)

    def half_step_wait(self, half: int) -> VecEnvStepReturn:
        """Finish the step of one half; what it returns has a row for each of its lanes."""
        return self._finish(self._halves[half], self.halves[half])

    def _begin(self, workers: Sequence[Worker], lanes: range, actions: NDArray[Any]) -> None:
        shared = self._arrays.actions
        if shared is not None:
            rows = shared[lanes.start : lanes.stop]
            if np.shape(actions) != rows.shape:
                raise ValueError(f"actions have shape {np.shape(actions)}, expected {rows.shape}: one row per lane")
            np.copyto(rows, actions, casting="same_kind")
        now = time.monotonic()
        self.waiting = True
        for worker in workers:
            worker.turn ^= 1
            worker.look(now)
            try:
                if shared is None:
                    mine = [actions[lane - lanes.start] for lane in worker.lanes]
                    worker.send(_STEP_MESSAGES[worker.turn] + pickle.dumps(mine))
                else:
                    worker.ask_step()
                self._pending.add(worker.number)
            except WorkerDown as down:
                self._down[worker.number] = down

    def _finish(self, workers: Sequence[Worker], lanes: range) -> VecEnvStepReturn:
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in lanes]
        failed: dict[int, list[Failure]] = {}
        for worker in reversed(workers):  # the last to begin is mostly the last to end: one wake-up instead of many
            if worker.number in self._pending:
                try:
                    if self._arrays.actions is None:
                        message = worker.receive(self.step_timeout, "a step")
                    else:
                        message = worker.receive_step(self.step_timeout)
                except WorkerDown as down:
                    self._down[worker.number] = down
                    message = b""
                self._pending.remove(worker.number)
                if len(message) > 1:
                    failed[worker.number] = self._take_said(worker, message, infos, lanes.start)
        self.waiting = bool(self._pending)
        pool = self._pool
        if failed or self._down or pool.in_a_row:
            for worker in workers:
                self._heal(worker, failed.get(worker.number, []), infos, lanes.start)
        mine = slice(lanes.start, lanes.stop)
        return self._observation(workers), self._arrays.rewards[mine].copy(), self._arrays.dones[mine].copy(), infos

    def _take_said(self, worker: Worker, message: bytes, infos: list[dict[str, Any]], first: int) -> list[Failure]:
        """Put the infos of a worker in their places; returns the lanes of it that failed."""
        said, failures = pickle.loads(memoryview(message)[1:])  # noqa: S301 - from own workers
        for lane, data in said:
            infos[lane - first], reset_info = self._pool.read(worker, lane, data)
            if reset_info is not None:
                self.reset_infos[lane] = reset_info
        failed: list[Failure] = failures
        return failed

    def _heal(self, worker: Worker, failed: list[Failure], infos: list[dict[str, Any]], first: int) -> None:
        """Put what failed back in its place, and end its episodes as truncated."""
        pool, arrays = self._pool, self._arrays
        down = self._down.pop(worker.number, None)
        before = arrays.observations[worker.turn ^ 1]
        reasons = pool.heal(worker, down, failed, [{}] * self.num_envs) if down or failed else {}
        for lane in worker.lanes:
            if lane not in reasons:
                pool.in_a_row.pop(lane, None)
                continue
            arrays.rewards[lane] = 0.0
            arrays.dones[lane] = True
            infos[lane - first] = {
                "worker_restarted": True,
                "worker_failure": reasons[lane],
                "TimeLimit.truncated": True,
                "terminal_observation": self._assembled([part[lane].copy() for part in before]),
            }

    def reset(self) -> VecEnvObs:
        """Begin an episode in every lane, with the seeds and options given before; both are used once."""
        if self.waiting:
            self.step_wait()
        pool = self._pool
        seeds, options = list(self._seeds), list(self._options)
        pool.note_seeds(seeds)
        down: dict[int, WorkerDown] = {}
        for worker in self._workers:
            worker.turn ^= 1
            try:
                pool.begin_reset(worker, seeds, options)
            except WorkerDown as error:
                down[worker.number] = error
        failed: dict[int, list[Failure]] = {}
        for worker in self._workers:
            if worker.number not in down:
                try:
                    failed[worker.number] = pool.finish_reset(worker)
                except WorkerDown as error:
                    down[worker.number] = error
        for worker in self._workers:
            lost = failed.get(worker.number, [])
            if lost or worker.number in down:
                pool.heal(worker, down.get(worker.number), lost, options)
        self._reset_seeds()
        self._reset_options()
        return self._observation(self._workers)

    def _observation(self, workers: Sequence[Worker]) -> VecEnvObs:
        turns = {worker.turn for worker in workers}
        if len(turns) == 1:
            lanes = slice(workers[0].lanes.start, workers[-1].lanes.stop)
            parts = [part[lanes].copy() for part in self._arrays.observations[workers[0].turn]]
        else:
            each = [[part[w.lanes.start : w.lanes.stop] for part in self._arrays.observations[w.turn]] for w in workers]
            parts = [np.concatenate(same) for same in zip(*each, strict=True)]
        whole: VecEnvObs = self._assembled(parts)
        return whole

    def _assembled(self, parts: list[Any]) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return dict(zip(self.observation_space.spaces, parts, strict=True))
        return tuple(parts) if isinstance(self.observation_space, spaces.Tuple) else parts[0]

    def begin_from(self, observations: Sequence[Any]) -> None:
        """Go on in the middle of episodes that methods of the environments put back, instead of a reset.

        ``observations`` (N) are what each lane returned last, for lanes that fail before they return another one.
        """
        pool = self._pool
        pool.note_seeds(self._seeds)
        for worker in self._workers:
            for leaf, part in zip(pool.spec.observation, self._arrays.observations[worker.turn], strict=True):
                for lane in worker.lanes:
                    part[lane] = observations[lane] if leaf.key is None else observations[lane][leaf.key]
        # They were for the first reset, which these episodes have long had.
        self._reset_seeds()
        self._reset_options()

    def close(self) -> None:
        """Close the environments and end the workers, by force after five seconds."""
        if self.closed:
            return
        self.closed = True
        self.waiting = False
        self._pool.close(5.0)

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
            self._pool.attributes.setdefault(lane % self.num_envs, {})[attr_name] = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each lane; what it raises is raised here, with the worker's traceback as a note.

        ``action_masks`` is answered from shared memory. Raises ``WorkerError`` when a worker dies or hangs in the call;
        the next step starts it again.
        """
        if method_name == "action_masks" and self._pool.spec.mask_size and not method_args and not method_kwargs:
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
        return self._pool.call(command, wanted, arguments)


def _worker_count(lanes: int, given: int | None) -> int:
    if lanes < 1:
        raise ValueError("env_fns is empty: give one function per lane")
    if given is None:
        return min(lanes, len(os.sched_getaffinity(0)))
    if isinstance(given, bool) or given < 1:
        raise ValueError(f"n_workers={given!r} is not allowed: give a whole number of at least 1, or None")
    return min(lanes, int(given))
