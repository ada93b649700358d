"""The state of an environment as a value: to bytes, and back, after which it goes on bit for bit.

Of built-in games the bytes are a header (id, version, options, layout) and the raw arrays: whole batches, or the game
of a single lane, which any lane of another batch with the same options can take over. Of any other Gymnasium
environment they are a signed pickle of its attributes; of one that cannot be pickled (compiled physics, such as
LunarLander's) what its episode was made of, when an `EpisodeRecorder` watched it: it is played again.

Outside of an environment's state are the streams of the modules `random` and `numpy.random`, and what a callable
opponent keeps for itself (the random stream of a `NumpyPolicy` is in).
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium

from gymcast.envs import foreign, game_state, sealed
from gymcast.envs.errors import SnapshotError


def snapshot(env: Any, lane: int | None = None) -> bytes:
    """The state of an environment with its wrappers, or of the game of one lane of a `GameVectorEnv`.

    `env`: a `GameVectorEnv`, or any Gymnasium environment (single or vector), reset before. What was drawn or shown is
    not in it.

    Raises:
        SnapshotError: no episode has begun, there is no such lane, or the environment cannot be copied.
    """
    chain = foreign.levels(env)
    vector = game_state.batch_of(chain[-1])
    if vector is not None:
        return game_state.capture(chain, vector, lane)
    _only_whole(chain, lane)
    header = _env_header(chain)
    at = _recorder_at(chain)
    try:
        if at is None or chain[at].gymcast_episode is None:
            return sealed.pack({**header, "kind": "env"}, foreign.dump_levels(chain, chain), signed=True)
        outside, inside = chain[: at + 1], chain[at + 1 :]
        outer = foreign.dump_levels(chain, outside)
        episode = foreign.dump_episode(inside, chain[at].gymcast_episode)
        return sealed.pack({**header, "kind": "episode", "outer": len(outer)}, outer, episode, signed=True)
    except SnapshotError as error:
        remedy = "reset it with a new seed instead"
        if at is None:
            remedy = f"wrap it in gymcast.envs.EpisodeRecorder before its first reset, or {remedy}"
        raise SnapshotError(f"no snapshot of {header['env_id']}: {error}; {remedy}.") from error


def restore(env: Any, data: bytes, lane: int | None = None) -> None:
    """Put an environment, or the game of one lane of a `GameVectorEnv`, into the state of a snapshot.

    The environment is made like the one the snapshot was taken of: same id, version, options and wrappers. Arrays it
    handed out last are overwritten in place with those of the snapshot.

    Raises:
        SnapshotError: the snapshot is damaged, of another environment, not signed with this user's key though it holds
            a pickle, or it does not play again as it did; only in this last case the environment has been changed, and
            has to be reset.
    """
    seal = sealed.unpack(data)
    chain = foreign.levels(env)
    vector = game_state.batch_of(chain[-1])
    kind = seal.header.get("kind")
    if kind not in ("game", "env", "episode") or (vector is not None) != (kind == "game"):
        raise SnapshotError(f"this is a snapshot of {seal.header.get('env_id')}, the environment here is {_id(chain)}.")
    if vector is not None:
        game_state.put_back(chain, vector, lane, seal)
        return
    _only_whole(chain, lane)
    sealed.must_match(seal.header, _env_header(chain))
    if kind == "env":
        foreign.put_levels(chain, foreign.load(chain, seal.payload, seal))
    else:
        _restore_episode(chain, seal)


def snapshot_header(data: bytes) -> dict[str, Any]:
    """What a snapshot is of (`kind`, `env_id`, `version`, `options`, ...), checked for damage; raises SnapshotError."""
    return sealed.unpack(data).header


class EpisodeRecorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes snapshots possible of an environment that cannot be copied: it notes what an episode is made of.

    After the first reset it looks whether the environment can be copied; if so it records nothing. To be put around the
    other wrappers. `snapshot` and `restore` are here too, so that Stable-Baselines3's `env_method` reaches them in
    another process.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.gymcast_episode: foreign.Episode | None = None
        self._copied: bool | None = None  # None: not known before the first reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and begin to record when that is needed."""
        if self._copied:
            return self.env.reset(seed=seed, options=options)
        chain = foreign.levels(self.env)
        episode = foreign.begin_episode(chain, seed, options)
        observation, info = self.env.reset(seed=seed, options=options)
        if self._copied is None:
            self._copied = self._can_be_copied(chain)
        if not self._copied:
            episode.trajectory.update(observation)
            self.gymcast_episode = episode
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        episode = self.gymcast_episode
        if episode is None:
            return self.env.step(action)
        episode.actions.append(copy.deepcopy(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        episode.trajectory.update(observation, reward, terminated, truncated, info)
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> bytes:
        """`gymcast.envs.snapshot` of this environment."""
        return snapshot(self)

    def restore(self, data: bytes) -> None:
        """`gymcast.envs.restore` of this environment."""
        restore(self, data)

    @staticmethod
    def _can_be_copied(chain: list[Any]) -> bool:
        try:
            foreign.dump_levels(chain, chain)
        except SnapshotError:
            return False
        return True


def _recorder_at(chain: list[Any]) -> int | None:
    return next((i for i, level in enumerate(chain) if isinstance(level, EpisodeRecorder)), None)


def _restore_episode(chain: list[Any], seal: sealed.Sealed) -> None:
    """Play the episode of a snapshot again, inside the recorder of this chain."""
    at, size = _recorder_at(chain), seal.header.get("outer")
    if at is None or type(size) is not int:
        raise SnapshotError("this snapshot is damaged: it holds an episode, but no EpisodeRecorder recorded it.")
    outside, inside = chain[: at + 1], chain[at + 1 :]
    outer = foreign.load(chain, seal.payload[:size], seal)
    episode = foreign.replay_episode(inside, seal.payload[size:], seal)
    foreign.put_levels(outside, outer)
    chain[at].gymcast_episode = episode


def _id(chain: list[Any]) -> str:
    vector = game_state.batch_of(chain[-1])
    return vector.game.id if vector is not None else foreign.env_id(chain[0])


def _env_header(chain: list[Any]) -> dict[str, Any]:
    spec = chain[-1].spec
    return {
        "format": sealed.FORMAT,
        "env_id": _id(chain),
        "version": gymnasium.__version__,
        "options": {} if spec is None else {name: repr(value) for name, value in spec.kwargs.items()},
        "levels": foreign.level_names(chain),
    }


def _only_whole(chain: list[Any], lane: int | None) -> None:
    if lane is not None:
        raise SnapshotError(f"lane={lane} was given, but {_id(chain)} is no GameVectorEnv: leave it out.")
