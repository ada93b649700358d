"""From gymcast's compiled batches to Stable-Baselines3's ``VecEnv``, without copying observations.

``GameVectorEnv`` writes into two alternating sets of buffers, so the observation of one step stays valid until the step
after next. That is as long as Stable-Baselines3 needs it: on-policy algorithms store the previous observation right
after stepping, off-policy ones copy at once, and ``VecNormalize`` and ``VecFrameStack`` make arrays of their own.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from gymcast.envs import (
    GAMES,
    EnvMakeError,
    EpisodeRecorder,
    GameVectorEnv,
    SnapshotError,
    resolve_env_id,
    restore,
    snapshot,
)
from gymcast.envs.foreign_ids import split_module
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras, make_foreign, try_out
from gymcast.envs.subproc import WorkerError
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.episode_taps import EpisodeSeeds, TappedDummyVecEnv, TappedSubprocVecEnv
from gymcast.training.hang_watch import WATCH, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray


class StepListener(Protocol):
    """Told about every step of a :class:`GameVecEnv`, for recording single lanes."""

    def before_step(self, obs: NDArray[Any], action_mask: NDArray[np.bool_], actions: NDArray[Any]) -> None:
        """Called with the observations (N, D) and masks (N, M) the ``actions`` (N, ...) were chosen from."""
        ...

    def after_step(self) -> None:
        """Called when the step is done; lanes that ended have begun their next episode."""
        ...


Indices = int | Iterable[int] | None


class GameVecEnv(VecEnv):
    """A native batch of games as a Stable-Baselines3 ``VecEnv`` with ``num_envs`` lanes.

    ``infos`` is one list that lives as long as the environment. The dict of a lane is empty unless its episode ended in
    the step before; then it holds ``terminal_observation`` (a copy, float32 (D,)), ``episode`` (``r`` return, ``l``
    length in decisions, ``t`` seconds since the environment was made), ``TimeLimit.truncated``, ``outcome`` (+1 win,
    0 draw, -1 loss), ``kills`` and ``deaths``. Lanes that did not end cost no Python at all.
    """

    def __init__(self, env: GameVectorEnv) -> None:
        self.env = env
        self._actions: NDArray[Any] | None = None
        self._ended: list[int] = []
        self._next_seed: int | None = None
        self._started = time.monotonic()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self.listeners: list[StepListener] = []
        self._obs: NDArray[Any] = np.zeros((0,), dtype=np.float32)
        self.action_mask: NDArray[np.bool_] = np.ones((self.num_envs, 0), dtype=np.bool_)
        """bool (N, M): the legal choices of every lane, groups side by side."""

    def reset(self) -> NDArray[Any]:
        """Start every lane anew; a seed given by :meth:`seed` is used once. Returns observations (N, D)."""
        options = self._options[0] or None
        obs, infos = self.env.reset(seed=self._next_seed, options=options)
        self._next_seed = None
        self._reset_seeds()
        self._reset_options()
        self._clear_infos()
        self.action_mask = infos["action_mask"]
        self._obs = obs
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self._actions is not None, "step_wait() needs step_async() first"
        self._clear_infos()
        for listener in self.listeners:
            listener.before_step(self._obs, self.action_mask, self._actions)
        obs, rewards, terminations, truncations, infos = self.env.step(self._actions)
        for listener in self.listeners:
            listener.after_step()
        self.action_mask = infos["action_mask"]
        self._obs = obs
        dones = np.logical_or(terminations, truncations)
        if len(self.env.ended):
            self._fill_infos(terminations)
        # Rewards are small, and algorithms write bootstrapped values into them: they get an array of their own.
        return obs, rewards.astype(np.float32), dones, self.infos

    def restore(self, data: bytes) -> None:
        """Take the batch back to a snapshot of it; raises ``SnapshotError`` when that is one of something else."""
        restore(self.env, data)
        self._next_seed = None
        self._clear_infos()
        self.action_mask = self.env.action_masks()
        self._obs = self.env._lanes(self.env.batch.observation)

    def _clear_infos(self) -> None:
        for lane in self._ended:
            self.infos[lane] = {}
        self._ended = []

    def _fill_infos(self, terminations: NDArray[np.bool_]) -> None:
        env = self.env
        self._ended = [int(lane) for lane in env.ended]
        seconds = round(time.monotonic() - self._started, 6)
        for lane in self._ended:
            self.infos[lane] = {
                "terminal_observation": env.final_obs[lane].copy(),
                "episode": {"r": float(env.episode_return[lane]), "l": int(env.episode_length[lane]), "t": seconds},
                "TimeLimit.truncated": not bool(terminations[lane]),
                "outcome": int(env.outcome[lane]),
                "kills": int(env.kills[lane]),
                "deaths": int(env.deaths[lane]),
            }

    def close(self) -> None:
        self.env.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset. One seed determines the whole batch; lane ``i`` is listed as ``seed + i``."""
        seeds = super().seed(seed)
        self._next_seed = seeds[0]
        return seeds

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (N, M): legal choices now; a view that is valid until the step after next."""
        return self.action_mask

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute of the batch once per lane; ``action_masks`` is the lane's own method."""
        if attr_name == "action_masks":
            return [partial(self._lane_mask, lane) for lane in self._lanes(indices)]
        value = getattr(self.env, attr_name)
        return [value for _ in self._lanes(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the whole batch; ``ValueError`` for a part of the lanes, which share it."""
        if indices is not None and len(set(self._lanes(indices))) != self.num_envs:
            raise ValueError(
                f"{attr_name!r} belongs to the whole batch of {self.num_envs} lanes; set it without indices"
            )
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call ``action_masks`` or ``render`` for single lanes. ``AttributeError`` for anything else."""
        if method_name == "action_masks":
            return list(self.action_mask if indices is None else self.action_mask[list(self._lanes(indices))])
        if method_name == "render":
            images = self.get_images()
            return [images[lane] for lane in self._lanes(indices) if lane < len(images)]
        raise AttributeError(
            f"lanes of {self.env.game.id} have the methods action_masks and render, not {method_name!r}; "
            "methods of the whole batch are on vec_env.env"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Always false: lanes of a compiled batch cannot be wrapped one by one."""
        return [False for _ in self._lanes(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The first lane as an image uint8 (H, W, 3), in a list; empty without ``render_mode="rgb_array"``."""
        image = self.env.render()
        return [] if image is None else [image]

    def _lane_mask(self, lane: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.action_mask[lane]
        return mask

    def _lanes(self, indices: Indices) -> Iterable[int]:
        lanes: Iterable[int] = self._get_indices(indices)
        return lanes


class WallClockLimit(gym.Wrapper[Any, Any, Any, Any]):
    """Truncates an episode once it has lasted ``seconds`` of wall-clock time, for games whose own clock is unknown."""

    def __init__(self, env: gym.Env[Any, Any], seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds
        self._deadline = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._deadline = time.monotonic() + self._seconds
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        late = time.monotonic() >= self._deadline
        return obs, reward, terminated, truncated or (late and not terminated), info


def decision_seconds(env: VecEnv) -> float | None:
    """Game seconds of one step: of other environments by their ``metadata["render_fps"]``; ``None`` without one."""
    base = env.unwrapped
    if isinstance(base, GameVecEnv):
        return float(base.env.decision_seconds)
    fps = env.get_attr("metadata")[0].get("render_fps")
    return 1.0 / float(fps) if fps else None


def is_builtin(env_id: str) -> bool:
    """Whether ``env_id`` (resolved) is a game of gymcast, which runs as a compiled batch."""
    return env_id in GAMES


def _make_other(
    spec: gym.envs.registration.EnvSpec, extras: EnvExtras, options: Mapping[str, Any]
) -> gym.Env[Any, Any]:
    try:
        with WATCH.at(Place.MAKING):
            return make_foreign(spec, options, extras)
    except EnvMakeError as error:
        raise ConfigError("invalid TrainingConfig", [(error.field, str(error))]) from error


def try_foreign(config: TrainingConfig) -> None:
    """Make the environment of ``config`` once, in this process, and play a few steps.

    Raises :class:`~gymcast.training.config.ConfigError` for one that cannot be made, or breaks Gymnasium's rules.
    """
    try:
        with WATCH.at(Place.MAKING):
            env = make_foreign(config.env_id, config.env_kwargs, config.extras)
        try:
            with WATCH.at(Place.TRYING):
                try_out(env)
        finally:
            env.close()
    except EnvMakeError as error:
        raise ConfigError("invalid TrainingConfig", [(error.field, str(error))]) from error


def _make_lane(
    spec: gym.envs.registration.EnvSpec, extras: EnvExtras, episode_timeout: float | None, **options: Any
) -> gym.Env[Any, Any]:
    """A lane that is not gymcast's, made of its ``spec``: a worker may not know what was registered here."""
    env = _make_other(spec, extras, options)
    # Inside of the wrappers that have to know when an episode ends.
    return EpisodeSeeds(env if episode_timeout is None else WallClockLimit(env, episode_timeout))


def _wrap_lane(env: Monitor) -> gym.Env[Any, Any]:
    # Monitor keeps every episode there ever was; nobody reads that here, and every snapshot would hold it.
    env.episode_returns = env.episode_lengths = env.episode_times = deque(maxlen=0)  # type: ignore[assignment]
    return EpisodeRecorder(env)


def make_training_vec_env(
    env_id: str,
    n: int,
    seed: int | None = None,
    *,
    subprocesses: bool = False,
    workers: Mapping[str, Any] | None = None,
    episode_timeout: float | None = None,
    episode_steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    extras: EnvExtras = NO_EXTRAS,
    **more_options: Any,
) -> VecEnv:
    """``n`` lanes of ``env_id`` for Stable-Baselines3.

    Built-in games run as one compiled batch; any other Gymnasium id runs in ``DummyVecEnv``, or with
    ``subprocesses=True`` in a :class:`~gymcast.training.subproc.GymcastSubprocVecEnv`, with ``workers`` as its
    arguments when they are given, and is reset with a seed of each episode's own: both play the same.
    ``episode_timeout`` truncates episodes after that many seconds: of game time in built-in games, of wall-clock time
    in others; ``episode_steps`` after that many decisions, in place of the limit that another environment was
    registered with. ``options``, as a mapping or one by one, go to the environment; ``extras`` are the packages and
    wrappers of one that is not gymcast's.
    Raises ``UnknownEnvError``, ``UnknownOptionError`` or ``OptionValueError`` with the nearest valid name, and
    :class:`~gymcast.training.config.ConfigError` for options that another environment's constructor does not take,
    ``WorkerError`` when a worker cannot make its environments.
    """
    module, env_id = split_module(env_id)
    if module is not None:
        extras = replace(extras, packages=(*extras.packages, module))
    env_id = resolve_env_id(env_id, extras.packages)
    chosen = {**(options or {}), **more_options}
    if is_builtin(env_id):
        game = GAMES[env_id]
        step_seconds = float(chosen.get("frame_skip", game.options["frame_skip"].default)) / game.tick_rate
        limits = [episode_timeout, None if episode_steps is None else episode_steps * step_seconds]
        if given := [limit for limit in limits if limit is not None]:
            longest = chosen.get("max_duration_s", game.options["max_duration_s"].default)
            chosen["max_duration_s"] = min(longest, *given)
        env = GameVecEnv(GameVectorEnv(env_id, n, seed=seed, **chosen))
        env.seed(seed)
        return env

    if episode_steps is not None:
        chosen["max_episode_steps"] = episode_steps  # of gymnasium.make itself
    try:
        # A function instead of the id: for an id, images are asked for whether the environment has them or not.
        vec_env: VecEnv = make_vec_env(
            partial(_make_lane, gym.spec(env_id), extras, episode_timeout),
            n_envs=n,
            seed=seed,
            env_kwargs=chosen,
            wrapper_class=_wrap_lane,  # type: ignore[arg-type]
            vec_env_cls=TappedSubprocVecEnv if subprocesses or workers is not None else TappedDummyVecEnv,
            vec_env_kwargs=None if workers is None else dict(workers),
        )
    except WorkerError as error:
        if refused := re.search(r"ConfigError: invalid TrainingConfig\n  ([\w.]+): (.*)", str(error)):
            raise ConfigError("invalid TrainingConfig", [(refused[1], refused[2])]) from None
        raise
    return vec_env


def snapshot_games(env: VecEnv) -> list[bytes]:
    """The state of the games in ``env``, wrappers around the whole of it left out: of a native batch one snapshot, else
    one for each lane. Raises ``SnapshotError`` when the state cannot be had."""
    base = env.unwrapped
    if isinstance(base, GameVecEnv):
        return [snapshot(base.env)]
    if isinstance(base, DummyVecEnv):
        return [snapshot(one) for one in base.envs]
    if isinstance(base, TappedSubprocVecEnv):
        try:
            return base.env_method("snapshot")
        except WorkerError as error:
            raise SnapshotError(f"no snapshot of the games: {error}") from error
    raise SnapshotError(f"the games in {type(base).__name__} are out of reach, in other processes")


def restore_games(env: VecEnv, data: Sequence[bytes]) -> None:
    """Take the games in ``env`` back to what :func:`snapshot_games` returned. Raises ``SnapshotError``."""
    base = env.unwrapped
    lanes = 1 if isinstance(base, GameVecEnv) else base.num_envs
    if lanes != len(data):
        raise SnapshotError(f"{len(data)} snapshots do not fit {lanes} environments")
    if isinstance(base, GameVecEnv):
        base.restore(data[0])
    elif isinstance(base, DummyVecEnv):
        # Those for the first reset, which these games have long had; a later reset would use them again.
        base._reset_seeds()
        base._reset_options()
        for one, part in zip(base.envs, data, strict=True):
            restore(one, part)
    elif isinstance(base, TappedSubprocVecEnv):
        try:
            for lane, part in enumerate(data):
                base.env_method("restore", part, indices=lane)
            base.begin_from(base.get_attr("last_observation"))
        except WorkerError as error:
            raise SnapshotError(f"the games cannot be put back: {error}") from error
    else:
        raise SnapshotError(f"the games in {type(base).__name__} are out of reach, in other processes")
