"""Replays played again: verified against what they say, drawn for the page, as images and as text."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.errors import EnvFaultError, EnvMakeError, OptionValueError, UnknownOptionError
from gymcast.envs.foreign_ids import import_family
from gymcast.envs.foreign_make import make_foreign
from gymcast.envs.registry import GAMES, GameSpec
from gymcast.envs.replay import Replay, ReplayError
from gymcast.envs.trajectory import TrajectoryHash, feed
from gymcast.envs.vector import OUTCOMES

_DIGITS = 6  # of a return that is shown


def observation_check(observations: Any) -> int:
    """64 bits of BLAKE2b over the last observations of an episode: an array (seats, ...), or a mapping or tuple."""
    digest = hashlib.blake2b(digest_size=8)
    feed(digest, observations)
    return int.from_bytes(digest.digest(), "little")


def outcome_of(info: Mapping[str, Any]) -> int | None:
    """+1 won, 0 drawn, -1 lost, from the last `info` of an episode (`outcome` or `is_success`); None without them."""
    outcome = info.get("outcome")
    if outcome is None and "is_success" in info:
        return 1 if info["is_success"] else -1
    if isinstance(outcome, str):
        return {name: number for number, name in OUTCOMES.items()}.get(outcome)
    return None if outcome is None else int(np.sign(outcome))


class Player(Protocol):
    """Plays one replay, decision by decision, from its beginning."""

    def step(self, number: int) -> bool:
        """Play decision `number`; true when the episode has ended."""

    def result(self) -> dict[str, Any]:
        """What it came to so far, named as in a replay's summary, and `hash`: SHA-256 of the whole trajectory."""

    def image(self) -> NDArray[np.uint8]:
        """The moment as an image, uint8 (H, W, 3); raises ReplayError where there is none."""

    def text(self) -> str:
        """The moment as text; raises ReplayError where there is none."""

    def close(self) -> None:
        """Release what it holds."""


def player_for(replay: Replay, *, images: bool = False) -> Player:
    """A player at the beginning of a replay; with `images` one that can draw.

    Raises:
        ReplayError: an environment that is not here, or of another version, or actions that are not its.
    """
    return GamePlayer(replay) if replay.env_id in GAMES else _GymPlayer(replay, images)


class GamePlayer:
    """Plays a replay of a built-in game."""

    def __init__(self, replay: Replay) -> None:
        try:
            game = GAMES[replay.env_id]
            options = game.complete_options(replay.options)
        except KeyError:
            raise ReplayError(f"this replay is of {replay.env_id!r}, which is no built-in game.") from None
        except (UnknownOptionError, OptionValueError) as error:
            raise ReplayError(f"this replay cannot be played: {error}") from error
        if replay.version != game.version:
            raise ReplayError(
                f"this replay is of {replay.env_id} version {replay.version}, the game here is version {game.version}: "
                "its rules changed, so the episode cannot be had again. Use the gymcast release that recorded it."
            )
        seats = int(options["players"]) if options["opponent"] == "self" else 1
        _check_actions(replay.actions, game, options, seats)
        self.game, self.options, self.replay, self._seats = game, options, replay, seats
        self.batch = game.load_batch()(1, options, seats, autoreset=False)
        self.batch.state["seed"] = replay.seed
        self.batch.state["episode"] = replay.episode
        self.batch.reset(np.ones(1, np.bool_))
        self._hash = hashlib.sha256()
        self._length = 0

    def step(self, number: int) -> bool:
        """Play decision `number`; true when the match has ended."""
        row: NDArray[Any] = self.replay.actions[number]
        self.batch.step(row.astype(np.float64 if row.dtype.kind == "f" else np.int64), 0, 1)
        self._hash.update(self.batch.state.tobytes())
        self._length += 1
        return bool(self.batch.out.terminated[0] or self.batch.out.truncated[0])

    def result(self) -> dict[str, Any]:
        """See `Player`; of a match that has not ended, the return is that so far and the rest that of a draw."""
        out, returns = self.batch.out, self.batch.state["episode_return"][0, : self._seats]
        return {
            "return": round(float(returns[0]), _DIGITS),
            "returns": [float(value) for value in returns],
            "length": self._length,
            "outcome": OUTCOMES[int(out.final_outcome[0])],
            "kills": int(out.final_kills[0]),
            "deaths": int(out.final_deaths[0]),
            "check": f"{observation_check(self.batch.final_observation):016x}",
            "hash": self._hash.hexdigest(),
        }

    def frame(self) -> dict[str, Any]:
        """The moment as the page draws it."""
        found: dict[str, Any] = self.game.load_draw().frame(self.batch, 0)
        return found

    def image(self) -> NDArray[np.uint8]:
        """The moment as an image, uint8 (H, W, 3)."""
        image: NDArray[np.uint8] = self.game.load_draw().rgb_array(self.batch, 0)
        return image

    def text(self) -> str:
        """The moment as text."""
        return str(self.game.load_draw().ansi(self.batch, 0))

    def close(self) -> None:
        """Nothing is held."""


class _GymPlayer:
    """Plays a replay of any registered Gymnasium environment: made anew and reset with the episode's seed.

    A replay may come from anywhere: of what it names, only modules that are imported already are used.
    """

    def __init__(self, replay: Replay, images: bool) -> None:
        if missing := [name for name in replay.extras.modules() if name not in sys.modules]:
            raise ReplayError(f"this replay needs {missing[0]}, which is not imported: --gym-packages {missing[0]}.")
        with contextlib.suppress(EnvMakeError):  # what is missing then is told below
            import_family(replay.env_id)
        spec = gymnasium.registry.get(replay.env_id)
        if spec is None:
            raise ReplayError(
                f"there is no environment {replay.env_id!r} here: import the package that registers it "
                "(--gym-packages NAME), or install it."
            )
        if replay.version != (spec.version or 0):
            raise ReplayError(
                f"this replay is of {replay.env_id} version {replay.version}, here is version {spec.version}."
            )
        self._can_draw = can_draw = images and "rgb_array" in _render_modes(spec)
        try:
            self._env = make_foreign(replay.env_id, {**replay.options, **_drawing(can_draw)}, replay.extras)
            self._env.reset(seed=replay.seed)
        except (TypeError, ValueError, EnvFaultError, gymnasium.error.Error) as error:
            raise ReplayError(f"this replay cannot be played: {error}") from error
        self._codec = ActionCodec.for_space(self._env.action_space)
        fits = replay.actions.ndim == 3 and self._codec is not None
        if self._codec is None or not fits or replay.actions.shape[1:] != (1, self._codec.width):
            self._env.close()
            raise ReplayError(f"this replay is damaged: its actions are not those of {replay.env_id}.")
        self._replay = replay
        self._length, self._return = 0, 0.0
        self._hash = TrajectoryHash()
        self._last: Any = None
        self._info: Mapping[str, Any] = {}

    def step(self, number: int) -> bool:
        """Play decision `number`; true when the episode has ended."""
        action = from_codec(self._replay.actions[number, 0], self._env.action_space)
        self._last, reward, terminated, truncated, self._info = self._env.step(action)
        self._length += 1
        self._return += float(reward)
        self._hash.update(self._last, reward, terminated, truncated)
        return bool(terminated or truncated)

    def result(self) -> dict[str, Any]:
        """See `Player`."""
        outcome = outcome_of(self._info)
        return {
            **({} if outcome is None else {"outcome": OUTCOMES[outcome]}),
            "return": round(self._return, _DIGITS),
            "returns": [self._return],
            "length": self._length,
            "check": f"{observation_check(self._last):016x}",
            "hash": self._hash.hexdigest(),
        }

    def image(self) -> NDArray[np.uint8]:
        """The moment as an image; raises ReplayError for an environment without images."""
        # Without that mode it would do something else, or raise NotImplementedError without a word.
        image = self._env.render() if self._can_draw else None
        if not isinstance(image, np.ndarray):
            raise ReplayError(f"{self._replay.env_id} draws no images (render_mode rgb_array).")
        return image

    def text(self) -> str:
        """Raises ReplayError: only built-in games are shown as text."""
        raise ReplayError(f"{self._replay.env_id} is not shown as text.")

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _render_modes(spec: gymnasium.envs.registration.EnvSpec) -> list[str]:
    return list(_metadata(spec).get("render_modes", []))


def _metadata(spec: gymnasium.envs.registration.EnvSpec) -> Mapping[str, Any]:
    entry = spec.entry_point
    maker = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    metadata: Mapping[str, Any] = getattr(maker, "metadata", {})
    return metadata


def _drawing(can_draw: bool) -> dict[str, Any]:
    return {"render_mode": "rgb_array"} if can_draw else {}


def to_codec(actions: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """Actions (N, ...) of a space as an `ActionCodec` keeps them, (N, width): discrete ones counted from 0."""
    rows: NDArray[Any] = np.asarray(actions).reshape(len(actions), -1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        rows = rows - np.reshape(space.start, (1, -1))
    return rows


def from_codec(row: NDArray[Any], space: spaces.Space[Any]) -> Any:
    """The action of a space that `to_codec` made `row` (width,) of."""
    if isinstance(space, spaces.Discrete):
        return np.int64(int(row[0]) + int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return (row.reshape(space.shape).astype(space.dtype) + space.start).astype(space.dtype)
    if isinstance(space, spaces.Box):
        return row.reshape(space.shape)  # the type that was played, which need not be the space's
    return row.reshape(space.shape or ()).astype(space.dtype)


def _check_actions(actions: NDArray[Any], game: GameSpec, options: Mapping[str, Any], seats: int) -> None:
    """Kernels index tables with actions without looking: nothing out of range may reach them."""
    nvec = [len(labels) for _, labels in game.action_labels]
    if options["action"] == "box":
        size, fits = 5, actions.dtype == np.float32 and bool((np.abs(actions) <= 1.0).all())
    else:
        size = len(nvec)
        fits = actions.dtype == np.uint8 and actions.shape[1:] == (seats, size) and bool((actions < nvec).all())
    if not fits or actions.ndim != 3 or actions.shape[1:] != (seats, size) or len(actions) == 0:
        raise ReplayError(
            f"this replay is damaged: its actions ({actions.dtype}, shape {actions.shape}) are not those of "
            f"{seats} seat(s) of {game.id}, or out of range."
        )


def _moments(player: Player, replay: Replay) -> Iterator[int]:
    """Play the whole replay; yields before each decision and at the end."""
    for number in range(len(replay.actions)):
        yield number
        if player.step(number):
            number += 1
            break
    yield number


def verify_replay(replay: Replay) -> dict[str, Any]:
    """Play a replay again and compare with its summary; returns that of the new play, with the trajectory's `hash`.

    Raises:
        ReplayError: another version of the environment, or a result that differs.
    """
    player = player_for(replay)
    try:
        for _ in _moments(player, replay):
            pass
        found = player.result()
    finally:
        player.close()
    for key, value in found.items():
        if key in replay.summary and replay.summary[key] != value:
            raise ReplayError(f"this replay says {key}={replay.summary[key]!r} and plays to {value!r}.")
    return found


def replay_observations(replay: Replay) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What the first seat saw before each decision, (T, ...), and its masks, bool (T, K); of built-in games."""
    player = GamePlayer(replay)
    seen = [(player.batch.observation[0].copy(), player.batch.out.mask[0].copy()) for _ in _moments(player, replay)]
    return np.stack([observation for observation, _ in seen[:-1]]), np.stack([mask for _, mask in seen[:-1]])


def replay_frames(replay: Replay) -> dict[str, Any]:
    """Play a replay again and draw it: {env_id, view, fps, scene, frames, summary}, a frame per decision and the last.

    The frames are what the page draws; `fps` is frames per second of game time. Of built-in games.
    """
    player = GamePlayer(replay)
    frames = [player.frame() for _ in _moments(player, replay)]
    return {
        "env_id": replay.env_id,
        "view": player.game.name,
        "fps": player.game.tick_rate / player.options["frame_skip"],
        "scene": player.game.load_draw().scene(player.batch, player.options),
        "frames": frames,
        "summary": {**player.result(), "seconds": frames[-1]["t"]},
    }


def replay_images(replay: Replay, numbers: set[int] | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Play a replay again: (decisions played so far, image uint8 (H, W, 3)), of all moments or those in `numbers`."""
    player = player_for(replay, images=True)
    try:
        for number in _moments(player, replay):
            if numbers is None or number in numbers:
                yield number, player.image()
    finally:
        player.close()


def replay_texts(replay: Replay, numbers: set[int]) -> Iterator[tuple[int, str]]:
    """Play a replay again: (decisions played so far, the moment as text), of the moments in `numbers`."""
    player = player_for(replay)
    try:
        for number in _moments(player, replay):
            if number in numbers:
                yield number, player.text()
    finally:
        player.close()


def frames_per_second(replay: Replay) -> float:
    """Decisions per second of game time; 30 where the environment does not say."""
    if replay.env_id in GAMES:
        game = GAMES[replay.env_id]
        return float(game.tick_rate / game.complete_options(replay.options)["frame_skip"])
    spec = gymnasium.registry.get(replay.env_id)
    return 30.0 if spec is None else float(_metadata(spec).get("render_fps") or 30.0)
