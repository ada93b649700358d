"""Who plays the episodes of a batch: random legal actions, a scripted level, a trained policy, or a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymcast.envs import GAMES, NumpyPolicy, OptionValueError, load_policy
from gymcast.training.algorithm_table import AlgorithmSpec
from gymcast.training.run_folder import CONFIG_NAME
from gymcast.training.sessions.batch.find import Setup

_AHEAD: Final = 64  # decisions for which a lane's chance is drawn at once


class UnfitError(Exception):
    """An environment or policy that cannot be had, or that do not fit each other: trying again would not help."""


class Policy(Protocol):
    """Chooses actions. What it chooses on a lane follows from the seed the lane began with and what it saw."""

    def begin(self, lane: int, seed: int) -> None:
        """Begin an episode on a lane, with a seed for the policy's own chance."""
        ...

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> Any:
        """Actions (N, ...) for observations (N, ...) and the legal entries, bool (N, K), where there are any."""
        ...


def load(setup: Setup, env: Any, lanes: int) -> Policy:
    """The policy of a batch for ``lanes`` lanes of an environment (anything with the spaces of one lane).

    Raises :class:`UnfitError` when it does not fit the environment.
    """
    source, env_id, deterministic = setup.policy, setup.env_id, setup.deterministic
    actions = getattr(env, "single_action_space", env.action_space)
    observations = getattr(env, "single_observation_space", env.observation_space)
    if source.kind == "random":
        if env_id in GAMES:
            return _RandomLegal(actions, lanes)
        return _Sampled(actions)
    if source.kind == "level":
        return _Scripted(env, source.name, lanes)
    if source.kind == "function":
        return _Function(source.function)
    assert source.path is not None
    if source.kind == "npz":
        try:
            policy = load_policy(source.path)
        except OptionValueError as error:
            raise UnfitError(str(error)) from None
        return _Exported(policy, source.name, observations, actions, lanes, deterministic)
    return _load_torch(setup, (observations, actions), lanes)


class _Chance:
    """Uniform numbers in [0, 1), a stream per lane: (N, width) at a time."""

    def __init__(self, lanes: int, width: int) -> None:
        self._drawn = np.zeros((lanes, _AHEAD, width))
        self._at = np.zeros(lanes, np.int64)
        self._lanes = np.arange(lanes)
        self._streams: list[np.random.Generator | None] = [None] * lanes

    def begin(self, lane: int, seed: int) -> None:
        self._streams[lane] = np.random.default_rng(seed)
        self._at[lane] = _AHEAD

    def draw(self) -> NDArray[np.float64]:
        for lane in np.flatnonzero(self._at == _AHEAD):
            stream = self._streams[lane]
            self._at[lane] = 0
            if stream is not None:
                self._drawn[lane] = stream.random(self._drawn.shape[1:])
        row: NDArray[np.float64] = self._drawn[self._lanes, self._at]
        self._at += 1
        return row


class _RandomLegal:
    """Uniformly random legal entries of each group of actions."""

    def __init__(self, space: spaces.Space[Any], lanes: int) -> None:
        self._space = space
        self._sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else []
        if isinstance(space, spaces.MultiDiscrete):
            self._sizes = [int(n) for n in space.nvec]
        self._splits = np.cumsum(self._sizes)[:-1]
        self._chance = _Chance(lanes, len(self._sizes) or int(np.prod(space.shape or ())))

    def begin(self, lane: int, seed: int) -> None:
        self._chance.begin(lane, seed)

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> NDArray[Any]:
        drawn = self._chance.draw()
        space = self._space
        if isinstance(space, spaces.Box):
            spread: NDArray[Any] = space.low + drawn * (space.high - space.low)
            return spread.astype(space.dtype)
        assert masks is not None
        columns = []
        for group, share in zip(np.split(masks, self._splits, axis=1), drawn.T, strict=True):
            wanted = (share * group.sum(axis=1)).astype(np.int64)  # which of the legal ones
            columns.append((group.cumsum(axis=1) > wanted[:, None]).argmax(axis=1))
        return columns[0] if isinstance(space, spaces.Discrete) else np.stack(columns, axis=1)


class _Sampled:
    """Samples of the action space of one environment, legal ones where it has masks."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space

    def begin(self, lane: int, seed: int) -> None:
        self._space.seed(seed)

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> Any:
        space = self._space
        if masks is None:
            return (space.sample(),)
        legal = masks[0].astype(np.int8)
        if isinstance(space, spaces.MultiDiscrete):
            return (space.sample(mask=tuple(np.split(legal, np.cumsum(space.nvec)[:-1]))),)
        return (space.sample(mask=legal),)


class _Scripted:
    """A scripted level of a built-in game."""

    def __init__(self, env: Any, level: str, lanes: int) -> None:
        self._batch = env.batch
        self._seats = env._inner_seats
        self._script = env.game.load_script()(level, lanes, env.options)

    def begin(self, lane: int, seed: int) -> None:
        self._script.begin(lane, seed)

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> NDArray[Any]:
        seen: NDArray[np.float32] = self._batch.out.observation[:: self._seats]  # also where learners see images
        actions: NDArray[Any] = self._script.act(np.ascontiguousarray(seen))
        return actions


class _Exported:
    """A trained network, computed by NumPy row by row: what a lane does never depends on its neighbours."""

    def __init__(
        self,
        policy: NumpyPolicy,
        name: str,
        observations: spaces.Space[Any],
        actions: spaces.Space[Any],
        lanes: int,
        deterministic: bool,
    ) -> None:
        sizes = [int(actions.n)] if isinstance(actions, spaces.Discrete) else None
        if isinstance(actions, spaces.MultiDiscrete):
            sizes = [int(n) for n in actions.nvec.ravel()]
        seen = policy.meta.get("observation_size")
        if sizes != policy.nvec or observations.shape != (seen,):
            raise UnfitError(
                f"{name} sees {seen} numbers and chooses from {policy.nvec}, the environment has {observations} and "
                f"{actions}: play it with the options it was trained with."
            )
        policy.row_by_row = True
        self._policy, self._deterministic = policy, deterministic
        self._masked = bool(policy.meta.get("masked"))
        self._start = np.reshape(actions.start, -1) if hasattr(actions, "start") else 0
        self._chance = _Chance(lanes, len(policy.nvec))

    def begin(self, lane: int, seed: int) -> None:
        self._chance.begin(lane, seed)

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        shares = self._policy.probabilities(observations, masks if self._masked else None)
        if self._deterministic:
            actions = np.stack([share.argmax(axis=1) for share in shares], axis=1)
        else:
            drawn = self._chance.draw()
            below = [share.cumsum(axis=1) < drawn[:, i : i + 1] for i, share in enumerate(shares)]
            actions = np.stack(
                [np.minimum(b.sum(axis=1), share.shape[1] - 1) for b, share in zip(below, shares, strict=True)], axis=1
            )
        actions = actions.astype(np.int64) + self._start
        return actions[:, 0] if len(shares) == 1 else actions


class _Function:
    """A function of the caller's: one observation to one action. Its own chance is its own affair."""

    def __init__(self, pickled: bytes) -> None:
        import cloudpickle

        self._function: Callable[[Any], Any] = cloudpickle.loads(pickled)

    def begin(self, lane: int, seed: int) -> None:
        """It is not told."""

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> Any:
        return [self._function(observation) for observation in observations]


def _load_torch(setup: Setup, of_env: tuple[spaces.Space[Any], spaces.Space[Any]], lanes: int) -> Policy:
    import torch as th

    from gymcast.training.policies import can_export, policy_arrays

    th.set_num_threads(1)
    held, source = ExitStack(), setup.policy
    model, spec = _open_model(setup, held)
    lane = model.get_env().unwrapped  # the model itself sees images with their channels first
    if (lane.observation_space, lane.action_space) != of_env:
        held.close()
        raise UnfitError(
            f"{source.name} was trained for {lane.observation_space} and {lane.action_space}, the environment has "
            f"{of_env[0]} and {of_env[1]}: play it with the options and wrappers it was trained with."
        )
    if can_export(model) and model.get_vec_normalize_env() is None and isinstance(of_env[1], spaces.Discrete):
        arrays = policy_arrays(model, env_id=setup.env_id, version="", options=dict(setup.options))
        meta = json.loads(str(arrays.pop("meta")))
        held.close()
        return _Exported(NumpyPolicy(arrays, meta), source.name, *of_env, lanes, setup.deterministic)
    # Off-policy algorithms explore by chance that is no part of what they have learned.
    return _Torch(model, spec.masked, setup.deterministic or spec.off_policy, held)


def _open_model(setup: Setup, held: ExitStack) -> tuple[Any, AlgorithmSpec]:
    from gymcast.training.checkpoints import CheckpointError, verify
    from gymcast.training.config import ConfigError, TrainingConfig
    from gymcast.training.models import build_model
    from gymcast.training.resume import loaded_model
    from gymcast.training.sb3_zip import Sb3ZipError, load_weights, read_sb3_zip
    from gymcast.training.vec_env import make_training_vec_env

    source = setup.policy
    assert source.path is not None
    try:
        if source.kind == "checkpoint":
            assert source.run_dir is not None
            config = TrainingConfig.from_yaml(source.run_dir / CONFIG_NAME)
            return held.enter_context(loaded_model(config, verify(source.path))), config.spec
        weights = read_sb3_zip(source.path)
        config = TrainingConfig.parse({"algorithm": weights.algorithm, "network": weights.network})
        env = make_training_vec_env(setup.env_id, 1, 0, options=setup.options, extras=setup.extras)
        held.callback(env.close)
        model = build_model(config, env, seed=0)
        load_weights(model, weights)
        return model, config.spec
    except (CheckpointError, ConfigError, Sb3ZipError, OSError) as error:
        held.close()
        raise UnfitError(f"{source.name}: {error}") from None


class _Torch:
    """Any policy of Stable-Baselines3, one episode at a time."""

    def __init__(self, model: Any, masked: bool, deterministic: bool, held: ExitStack) -> None:
        self._model, self._masked, self._held = model, masked, held
        self._deterministic = deterministic
        normalise = model.get_vec_normalize_env()
        self._normalize = None if normalise is None else normalise.normalize_obs
        self._state: Any = None
        self._starts = np.ones(1, np.bool_)

    def begin(self, lane: int, seed: int) -> None:
        import torch as th

        th.manual_seed(seed)
        self._state, self._starts = None, np.ones(1, np.bool_)

    def act(self, observations: Any, masks: NDArray[np.bool_] | None) -> Any:
        more: dict[str, Any] = {"action_masks": masks} if self._masked else {}
        if self._state is not None:
            more |= {"state": self._state, "episode_start": self._starts}
        seen = observations if self._normalize is None else self._normalize(observations)
        actions, self._state = self._model.predict(seen, deterministic=self._deterministic, **more)
        self._starts = np.zeros(1, np.bool_)
        return actions
