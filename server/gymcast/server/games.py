"""The built-in games as the API lists them, with their spaces."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium import spaces

    from gymcast.envs import GameSpec


@cache
def games() -> list[dict[str, Any]]:
    """Every game that comes with gymcast: ``models.EnvInfo`` as JSON values. Takes a second the first time."""
    # Loaded on first use: the games bring their compiled kernels along.
    from gymcast.envs import GAMES
    from gymcast.envs.registry import PLAIN_ENVS

    return [*map(_game, GAMES.values()), *(_plain(env_id, title) for env_id, (_, title) in PLAIN_ENVS.items())]


def _game(game: GameSpec) -> dict[str, Any]:
    choices = {kind: game.options[kind].choices for kind in ("action", "observation")}
    return {
        "id": game.id,
        "name": game.name,
        "version": game.version,
        "title": game.title,
        "tick_rate": game.tick_rate,
        "frame_skip_default": game.frame_skip_default,
        "max_seats": game.max_seats,
        "opponents": list(game.opponents),
        "options": {
            name: {"default": option.default, "help": option.help, "choices": list(option.choices)}
            for name, option in game.options.items()
        },
        "spaces": {
            f"{kind}s": {choice: _spaces(game.id, **{kind: choice})[kind] for choice in choices[kind]}
            for kind in choices
        },
        "action_labels": [[group, list(labels)] for group, labels in game.action_labels],
    }


def _plain(env_id: str, title: str) -> dict[str, Any]:
    """An environment that is not one of the compiled games."""
    name, _, version = env_id.rpartition("/")[2].lower().rpartition("-v")
    found = _spaces(env_id)
    return {
        "id": env_id,
        "name": name,
        "version": int(version),
        "title": title,
        "tick_rate": None,
        "frame_skip_default": None,
        "max_seats": 1,
        "opponents": [],
        "options": {},
        "spaces": {f"{kind}s": {"default": space} for kind, space in found.items()},
        "action_labels": [],
    }


def _spaces(env_id: str, **options: Any) -> dict[str, dict[str, Any]]:
    import gymnasium

    env = gymnasium.make(env_id, **options)
    try:
        return {"action": _space(env.action_space), "observation": _space(env.observation_space)}
    finally:
        env.close()


def _space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space by its kind, and what its kind needs."""
    from gymnasium import spaces

    match space:
        case spaces.Discrete():
            facts: dict[str, Any] = {"n": int(space.n)}
        case spaces.MultiDiscrete():
            facts = {"nvec": space.nvec.tolist()}
        case spaces.Box():
            facts = {"low": float(space.low.min()), "high": float(space.high.max()), "dtype": str(space.dtype)}
        case _:
            raise TypeError(f"{space}: a kind of space that no built-in game has")
    return {"kind": type(space).__name__, "shape": list(space.shape or ()), **facts}
