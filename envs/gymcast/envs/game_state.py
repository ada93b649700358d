"""Snapshots of built-in games: raw arrays, with a header that says of what. No pickle, but for unusual wrappers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs import foreign, sealed
from gymcast.envs.errors import SnapshotError
from gymcast.envs.policy import NumpyPolicy
from gymcast.envs.single import GameEnv
from gymcast.envs.vector import GameVectorEnv

_SPACES = ("action_space", "observation_space", "single_action_space", "single_observation_space")
_WRAPPER_VALUES = bool | int | float | str | None


def batch_of(base: Any) -> GameVectorEnv | None:
    """The batch behind a built-in game's environment; None for any other environment."""
    if isinstance(base, GameEnv):
        return base._vector
    return base if isinstance(base, GameVectorEnv) else None


def capture(chain: list[Any], vector: GameVectorEnv, lane: int | None) -> bytes:
    """A snapshot of all games of the batch (with the wrappers around it), or of the game of one lane."""
    games = _games(vector, lane)
    arrays = _arrays(vector, games)
    first, count = games.start * vector.seats, games.stop - games.start
    header = {
        **_identity(vector),
        "games": count,
        "arrays": _layout(arrays),
        "ended": [int(n) - first for n in vector.ended if first <= n < games.stop * vector.seats],
        "over": isinstance(chain[-1], GameEnv) and chain[-1]._needs_reset,
    }
    payload = [a.reshape(-1).view(np.uint8).data for a in arrays.values()]
    pickled = b""
    if lane is None:
        header["streams"] = _stream_states(chain[-1], vector)
        header["wrappers"], pickled = _wrapper_states(chain)
    return sealed.pack(header, *payload, pickled, signed=bool(pickled))


def put_back(chain: list[Any], vector: GameVectorEnv, lane: int | None, seal: sealed.Sealed) -> None:
    """Put a snapshot into all games of the batch, or into the game of one lane. Nothing changes when it raises."""
    header = seal.header
    sealed.must_match(header, _identity(vector))
    games = slice(0, vector.num_games) if lane is None else _games(vector, lane)
    live = _arrays(vector, games)
    found, rest = _read_arrays(header, live, seal.payload)
    _check_state(vector, live["state"], found["state"])
    ended, over = _read_ends(header, (games.stop - games.start) * vector.seats, chain[-1])
    streams = _read_streams(header) if lane is None else {}
    wrappers = _read_wrappers(chain, seal, rest) if lane is None else None

    for name, array in live.items():
        array[...] = found[name]
    first = games.start * vector.seats
    others = [int(n) for n in vector.ended if not first <= n < games.stop * vector.seats]
    vector.ended = np.array(sorted(others + [first + n for n in ended]), np.int64)
    vector._seeded = True
    if isinstance(chain[-1], GameEnv):
        chain[-1]._needs_reset = over
    _put_streams(chain[-1], vector, streams)
    if wrappers is not None:
        foreign.put_levels(chain[:-1], wrappers)


def _identity(vector: GameVectorEnv) -> dict[str, Any]:
    policy = vector._policy
    opponent = None if policy is None else getattr(policy, "__qualname__", type(policy).__qualname__)
    if isinstance(policy, NumpyPolicy):
        opponent = f"policy {policy.sha256}"
    return {
        "format": sealed.FORMAT,
        "kind": "game",
        "env_id": vector.game.id,
        "version": vector.game.version,
        "options": vector.options,
        "opponent": opponent,
    }


# ------------------------------------------------------------------------------------------------------------- arrays


def _games(vector: GameVectorEnv, lane: int | None) -> slice:
    if not vector._seeded:
        raise SnapshotError(f"no match of {vector.game.id} has begun: call reset() first.")
    if lane is None:
        return slice(0, vector.num_games)
    if not 0 <= lane < vector.num_envs:
        raise SnapshotError(f"there is no lane {lane}: give 0 to {vector.num_envs - 1}.")
    game = lane // vector.seats
    return slice(game, game + 1)


def _arrays(vector: GameVectorEnv, games: slice) -> dict[str, NDArray[Any]]:
    """Views of all that makes up these games: their states, and what the last step wrote."""
    batch = vector.batch
    lanes = slice(games.start * batch.learners, games.stop * batch.learners)
    out = {name: getattr(batch.out, name)[lanes] for name in batch.out._fields if getattr(batch.out, name).size}
    return {"state": batch.state.view(np.ndarray)[games], **out}


def _layout(arrays: Mapping[str, NDArray[Any]]) -> Any:
    layout = [[name, np.lib.format.dtype_to_descr(a.dtype), list(a.shape)] for name, a in arrays.items()]
    return json.loads(json.dumps(layout))  # as it is read back: lists for tuples


def _read_arrays(
    header: Mapping[str, Any], live: Mapping[str, NDArray[Any]], payload: memoryview
) -> tuple[dict[str, NDArray[Any]], memoryview]:
    """The arrays of a snapshot that is laid out like the live ones, and the bytes behind them."""
    count = len(live["state"])
    if header.get("games") != count:
        raise SnapshotError(
            f"this snapshot holds {header.get('games')} games, {count} are to be restored: make a batch of as many, "
            "or restore a single one with lane=."
        )
    if header.get("arrays") != _layout(live) or len(payload) < sum(a.nbytes for a in live.values()):
        raise SnapshotError(
            f"this snapshot's games are laid out in another way than {header.get('env_id')} here: use the gymcast "
            "release that wrote it, or begin new episodes."
        )
    found: dict[str, NDArray[Any]] = {}
    at = 0
    for name, array in live.items():
        found[name] = np.frombuffer(payload, array.dtype, array.size, at).reshape(array.shape)
        at += array.nbytes
    return found, payload[at:]


def _check_state(vector: GameVectorEnv, live: NDArray[Any], found: NDArray[Any]) -> None:
    """Compiled kernels index tables without looking: nothing out of range may reach them, whoever wrote it."""
    for name in vector.game.state_fixed:
        if (found[name] != live[name]).any():
            raise SnapshotError(f"this snapshot is damaged: {name} is not what the options make it. Take an older one.")
    for name, (low, high) in vector.game.state_ranges.items():
        if not ((found[name] >= np.asarray(low)) & (found[name] <= np.asarray(high))).all():  # NaN: neither
            raise SnapshotError(f"this snapshot is damaged: {name} of a game is out of range. Take an older one.")


def _read_ends(header: Mapping[str, Any], lanes: int, base: Any) -> tuple[list[int], bool]:
    """Lanes whose match ended with the last step, and whether a single environment waits for its reset."""
    ended, over = header.get("ended"), header.get("over")
    whole = isinstance(ended, list) and all(type(n) is int and 0 <= n < lanes for n in ended)
    if not whole or type(over) is not bool:
        raise SnapshotError("this snapshot is damaged: it does not say which matches are over. Take an older one.")
    if over and not isinstance(base, GameEnv):
        raise SnapshotError("the match of this snapshot is over: a batch plays on at once, begin a new match in it.")
    return list(ended or ()), over


# ------------------------------------------------------------------------------------- streams and wrappers around it


def _streams(base: Any, vector: GameVectorEnv) -> dict[str, tuple[Any, str]]:
    """Random streams beside the games', as (object, attribute): Gymnasium's own, and that of a policy as opponent."""
    found = {"env": (base, "_np_random")}
    found |= {name: (vars(base)[name], "_np_random") for name in _SPACES if name in vars(base)}
    return found | ({"opponent": (vector._policy, "random")} if isinstance(vector._policy, NumpyPolicy) else {})


def _stream_states(base: Any, vector: GameVectorEnv) -> dict[str, Any]:
    states = {}
    for name, (owner, attribute) in _streams(base, vector).items():
        stream = getattr(owner, attribute)
        if stream is not None and isinstance(stream.bit_generator, np.random.PCG64):
            states[name] = stream.bit_generator.state
    return states


def _put_streams(base: Any, vector: GameVectorEnv, then: Mapping[str, np.random.Generator]) -> None:
    for name, (owner, attribute) in _streams(base, vector).items():
        stream = getattr(owner, attribute)
        if name in then and stream is None:
            setattr(owner, attribute, then[name])
        elif name in then:
            stream.bit_generator.state = then[name].bit_generator.state


def _read_streams(header: Mapping[str, Any]) -> dict[str, np.random.Generator]:
    try:
        streams = {}
        for name, state in header.get("streams", {}).items():
            streams[name] = np.random.Generator(np.random.PCG64())
            streams[name].bit_generator.state = state
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise SnapshotError(f"this snapshot is damaged: no random stream ({error}). Take an older one.") from error
    return streams


def _wrapper_states(chain: list[Any]) -> tuple[dict[str, Any], bytes]:
    """Wrappers around a game: in the header when they hold plain values only, otherwise as a pickle."""
    wrappers = chain[:-1]
    plain = [foreign.attributes(level) for level in wrappers]
    names = foreign.level_names(wrappers)
    if all(isinstance(value, _WRAPPER_VALUES) for state in plain for value in state.values()):
        return {"levels": names, "plain": plain}, b""
    return {"levels": names, "plain": None}, foreign.dump_levels(chain, wrappers)


def _read_wrappers(chain: list[Any], seal: sealed.Sealed, rest: memoryview) -> list[foreign.Attributes] | None:
    """Attributes for the wrappers here; None when the snapshot is of a game without any."""
    given = seal.header.get("wrappers")
    levels = given.get("levels") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not levels:
        return None
    names = foreign.level_names(chain[:-1])
    if levels != names:
        raise SnapshotError(f"this snapshot is of a game with wrappers {levels}, here they are {names}: use the same.")
    states = given.get("plain")
    if states is None:
        states = foreign.load(chain, rest, seal)
    if not isinstance(states, list) or len(states) != len(names) or not all(isinstance(s, dict) for s in states):
        raise SnapshotError("this snapshot is damaged: no attributes of wrappers. Take an older one.")
    return states
