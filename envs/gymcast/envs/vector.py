"""`GameVectorEnv`: a batch of games stepped by compiled kernels, as a Gymnasium vector environment."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from gymcast.envs.errors import ActionError, OptionValueError
from gymcast.envs.policy import load_policy
from gymcast.envs.registry import action_space, game_spec
from gymcast.envs.rng import lane_seeds

Opponent = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]
"""A policy for other seats: (observations (M, ...), masks (M, K)) -> actions (M, ...)."""

THREADS_FROM_LANES = 256  # below, handing work to a thread costs more than it saves
OUTCOMES = {1: "win", 0: "draw", -1: "loss"}


def make_game_vector_env(
    num_envs: int = 1, *, env_id: str = "gymcast/Archers-v0", render_mode: str | None = None, **options: Any
) -> GameVectorEnv:
    """Entry point of `gym.make_vec(id, num_envs, vectorization_mode="vector_entry_point")`."""
    return GameVectorEnv(env_id, num_envs, render_mode=render_mode, **options)


class GameVectorEnv(VectorEnv[Any, Any, Any]):
    """A batch of games in one process, stepped by compiled code; same-step autoreset.

    A lane is one seat played by the caller. With opponent="self" every seat of a game is a lane (lane = game * players
    + seat); otherwise each game has one lane, seat 0. Lane i of a batch seeded with s plays what a single environment
    seeded with s + i plays (with opponent="self": game i).

    Observations, rewards and masks are views of arrays that two steps take turns to write: what a step returns stays as
    it is until the step after next. Copy what you keep longer.

    `infos` of a step holds `action_mask` bool (N, K); when matches ended also `final_obs` (N, ...), `final_info`
    (`episode` {r, l}, `outcome` +1/0/-1, `kills`, `deaths`, each (N,)) and their masks `_final_obs`, `_final_info`.

    Args:
        env_id: id or name of a built-in game.
        num_envs: lanes; with opponent="self" a multiple of `players`.
        seed: seed of the first lane, used by the first `reset` that gets none; None draws one.
        threads: threads that step the batch; None takes the processors there are from 256 games on, else one.
        render_mode: None or "rgb_array" (the first game).
        opponent: as the game's option, or a callable (observations, masks) -> actions, or the path of a `policy.npz`.
        options: the game's options.

    Raises:
        UnknownEnvError, UnknownOptionError, OptionValueError: what was given is not there or not allowed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it without ClassVar
        "render_modes": ["rgb_array", "ansi"],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        threads: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.game = game_spec(env_id)
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise OptionValueError(f"num_envs={num_envs!r} is not allowed: give a whole number of at least 1.")
        self._policy: Opponent | None = None
        self.options = self._take_options(options)
        players = int(self.options["players"])
        self.seats = players if options.get("opponent") == "self" else 1
        self._inner_seats = players if self._policy else self.seats
        if num_envs % self.seats:
            raise OptionValueError(
                f"num_envs={num_envs} is not allowed with opponent='self': every seat is a lane, "
                f"give a multiple of {players}."
            )
        self.num_envs = int(num_envs)
        self.num_games = self.num_envs // self.seats
        self.batch = self.game.load_batch()(self.num_games, self.options, self._inner_seats, autoreset=True)
        self.render_mode = render_mode
        self.decision_seconds = self.options["frame_skip"] / self.game.tick_rate
        self.metadata = {**type(self).metadata, "render_fps": round(1 / self.decision_seconds, 2)}
        self.single_action_space = action_space(self.game, self.options)
        self.single_observation_space = observation_space(self.batch.observation)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._first_seed = seed
        self._seeded = False
        self._nvec = np.array([len(labels) for _, labels in self.game.action_labels])
        self._discrete_masks = (
            np.zeros((2, self.num_envs, int(np.prod(self._nvec))), np.bool_)
            if self.options["action"] == "discrete"
            else None
        )
        self._turn = 0
        self.ended: NDArray[np.int64] = np.zeros(0, np.int64)
        self.inner_actions: NDArray[Any] = np.zeros(0)
        self._chunks = self._split(threads)
        self._pool = ThreadPoolExecutor(len(self._chunks) - 1) if len(self._chunks) > 1 else None

    def _take_options(self, given: dict[str, Any]) -> dict[str, Any]:
        opponent = given.get("opponent")
        if callable(opponent):
            self._policy = opponent
        elif isinstance(opponent, str) and opponent.endswith(".npz"):
            self._policy = load_policy(opponent)
        if self._policy is None:
            return self.game.complete_options(given)
        options = self.game.complete_options({**given, "opponent": "self"})
        if options["observation"] != "vector" and not callable(opponent):
            raise OptionValueError("a policy.npz opponent needs observation='vector'.")
        return options

    def _split(self, threads: int | None) -> list[tuple[int, int]]:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise OptionValueError(f"threads={threads!r} is not allowed: give a whole number of at least 1, or None.")
        if threads is None:
            threads = len(os.sched_getaffinity(0)) if self.num_games >= THREADS_FROM_LANES else 1
        threads = min(threads, self.num_games)
        edges = [round(i * self.num_games / threads) for i in range(threads + 1)]
        return list(itertools.pairwise(edges))

    # ------------------------------------------------------------------------------------------------ Gymnasium's API

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin new matches in all games, or in those of `options["reset_mask"]` (bool (num_envs,)); at first in all.

        `seed`: an int seeds game i with seed + i; a list gives one seed per game (None keeps a game's own).

        Raises:
            OptionValueError: a list or a mask of another length.
        """
        chosen = np.ones(self.num_games, np.bool_)
        if options and "reset_mask" in options and self._seeded:
            mask = np.asarray(options["reset_mask"], np.bool_)
            if mask.shape != (self.num_envs,):
                raise OptionValueError(f"reset_mask has shape {mask.shape}, expected ({self.num_envs},).")
            chosen = np.any(mask.reshape(self.num_games, self.seats), axis=1)
        state = self.batch.state
        if isinstance(seed, list | tuple):
            if len(seed) != self.num_games:
                raise OptionValueError(f"{len(seed)} seeds were given for {self.num_games} games: give one for each.")
            for g, value in enumerate(seed):
                if chosen[g] and not (value is None and self._seeded):
                    state["seed"][g] = lane_seeds(value, 1)[0]
                    state["episode"][g] = -1
        elif seed is not None or not self._seeded:
            first = seed if seed is not None else self._first_seed
            state["seed"][chosen] = lane_seeds(first, self.num_games)[chosen]
            state["episode"][chosen] = -1
        self._seeded = True
        state["episode"][chosen] += 1
        self.batch.reset(chosen)
        self.ended = np.zeros(0, np.int64)
        return self._lanes(self.batch.observation), {"action_mask": self.action_masks()}

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Play one decision in every game.

        Raises:
            ActionError: actions of the wrong shape, not finite, or outside the action space; no reset before it.
        """
        if not self._seeded:
            raise ActionError("no match has begun: call reset() before step().")
        inner = self._inner(self.check_actions(actions))
        batch = self.batch
        batch.swap()
        self._turn ^= 1
        self.inner_actions = inner
        if self._pool is None:
            batch.step(inner, 0, self.num_games)
        else:
            futures = [self._pool.submit(batch.step, inner, *chunk) for chunk in self._chunks[1:]]
            batch.step(inner, *self._chunks[0])
            for future in futures:
                future.result()
        out = batch.out
        terminated, truncated = self._lanes(out.terminated), self._lanes(out.truncated)
        infos: dict[str, Any] = {"action_mask": self.action_masks()}
        done = terminated | truncated
        self.ended = np.flatnonzero(done)
        if self.ended.size:
            infos["final_obs"] = self.final_obs
            infos["final_info"] = {
                "episode": {"r": self.episode_return, "l": self.episode_length},
                "outcome": self.outcome,
                "kills": self.kills,
                "deaths": self.deaths,
            }
            infos["_final_obs"] = infos["_final_info"] = done
        return self._lanes(batch.observation), self._lanes(out.reward), terminated, truncated, infos

    def render(self) -> Any:
        """The first game as an image uint8 (600, 800, 3), or text, after `render_mode`; None without one."""
        if self.render_mode is None:
            return None
        draw = self.game.load_draw()
        return (draw.ansi if self.render_mode == "ansi" else draw.rgb_array)(self.batch, 0)

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            self._chunks = [(0, self.num_games)]

    # -------------------------------------------------------------------------------------------------- for adapters

    @property
    def observation(self) -> NDArray[Any]:
        """Observations now, (N, ...): what the last reset, step or restored snapshot gave."""
        return self._lanes(self.batch.observation)

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions now, bool (N, K): the groups of a MultiDiscrete side by side, or each Discrete action."""
        mask: NDArray[np.bool_] = self._lanes(self.batch.out.mask)
        if self._discrete_masks is None:
            return mask
        joint: NDArray[np.bool_] = self._discrete_masks[self._turn]
        joint[:] = joint_mask(mask, self._nvec)
        return joint

    @property
    def final_obs(self) -> NDArray[Any]:
        """Last observations of the matches that just ended, (N, ...); valid for the lanes in `ended`."""
        return self._lanes(self.batch.final_observation)

    @property
    def episode_return(self) -> NDArray[np.float64]:
        """Sum of rewards of the matches that just ended, (N,); valid for the lanes in `ended`."""
        return self._lanes(self.batch.out.final_return)

    @property
    def episode_length(self) -> NDArray[np.int32]:
        """Decisions of the matches that just ended, (N,); valid for the lanes in `ended`."""
        return self._lanes(self.batch.out.final_length)

    @property
    def outcome(self) -> NDArray[np.int8]:
        """+1 won, 0 drawn, -1 lost, of the matches that just ended, (N,); valid for the lanes in `ended`."""
        return self._lanes(self.batch.out.final_outcome)

    @property
    def kills(self) -> NDArray[np.int32]:
        """Kills in the matches that just ended, (N,); valid for the lanes in `ended`."""
        return self._lanes(self.batch.out.final_kills)

    @property
    def deaths(self) -> NDArray[np.int32]:
        """Deaths in the matches that just ended, (N,); valid for the lanes in `ended`."""
        return self._lanes(self.batch.out.final_deaths)

    @property
    def lane_seed(self) -> NDArray[np.int64]:
        """Seed of each lane's game, (N,)."""
        return np.repeat(self.batch.state["seed"], self.seats)

    @property
    def episode_index(self) -> NDArray[np.int64]:
        """Index of the match each lane is in, (N,); with `lane_seed` it determines the match."""
        return np.repeat(self.batch.state["episode"], self.seats)

    @property
    def bytes_per_lane(self) -> float:
        """Memory of the game states and the output arrays of both turns, bytes per lane."""
        arrays = {id(a): a for out in self.batch._outputs for a in out}
        return float((self.batch.state.nbytes + sum(a.nbytes for a in arrays.values())) / self.num_envs)

    def _lanes(self, array: NDArray[Any]) -> NDArray[Any]:
        """The caller's rows of an array over all seats the kernel has as lanes."""
        return array if self._inner_seats == self.seats else array[:: self._inner_seats]

    def _inner(self, actions: NDArray[Any]) -> NDArray[Any]:
        """The actions of all seats the kernel has as lanes: the caller's, and those of a policy for the others."""
        if self._policy is None:
            return actions
        seats = self._inner_seats
        others = np.arange(self.batch.lanes) % seats != 0
        chosen = self._policy(self.batch.observation[others], self.batch.out.mask[others])
        inner = np.empty((self.batch.lanes, actions.shape[1]), actions.dtype)
        inner[::seats] = actions
        inner[others] = self.check_actions(chosen, int(others.sum()))
        return inner

    def check_actions(self, actions: Any, lanes: int | None = None) -> NDArray[Any]:
        """Actions as the kernels take them: int64 (N, groups), or float64 (N, 5) for a Box; raises ActionError."""
        lanes = self.num_envs if lanes is None else lanes
        kind = self.options["action"]
        try:
            array = np.asarray(actions)
        except ValueError as error:
            raise ActionError(f"actions are no array ({error}).") from error
        shape = (lanes,) if kind == "discrete" else (lanes, *(self.single_action_space.shape or ()))
        if array.shape != shape:
            raise ActionError(f"actions have shape {array.shape}, expected {shape}: one row per lane.")
        if kind == "box":
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise ActionError("actions must be finite numbers: NaN, infinity or another type was given.")
            clipped = np.clip(np.asarray(array, np.float64), -1.0, 1.0)
            return clipped.astype(np.float32).astype(np.float64)  # as precise as the action space and a replay
        if array.dtype.kind not in "iu":
            raise ActionError(f"actions have dtype {array.dtype}, expected integers.")
        limits = int(np.prod(self._nvec)) if kind == "discrete" else self._nvec
        if ((array < 0) | (array >= limits)).any():
            raise ActionError(f"actions out of range: each must be at least 0 and below {limits}.")
        if kind == "discrete":
            return np.stack(np.unravel_index(array, tuple(self._nvec)), axis=1).astype(np.int64)
        return np.ascontiguousarray(array, np.int64)


def observation_space(sample: NDArray[Any]) -> spaces.Box:
    """The observation space of one lane, from an array over lanes."""
    if sample.dtype == np.uint8:
        return spaces.Box(0, 255, sample.shape[1:], np.uint8)
    return spaces.Box(-1.0, 1.0, sample.shape[1:], np.float32)


def joint_mask(mask: NDArray[np.bool_], nvec: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Masks of groups side by side, bool (N, sum nvec), as masks of their combinations, bool (N, prod nvec)."""
    joint = np.ones((len(mask), 1), np.bool_)
    for group in np.split(mask, np.cumsum(nvec)[:-1], axis=1):
        joint = (joint[:, :, None] & group[:, None, :]).reshape(len(mask), -1)
    return joint
