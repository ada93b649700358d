"""The built-in games: their ids, options, spaces and kernels, and their registration with Gymnasium."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gymcast.envs.errors import OptionValueError, UnknownEnvError, UnknownOptionError, did_you_mean
from gymcast.envs.foreign_ids import import_family, import_packages, missing_hint

NAMESPACE = "gymcast"


@dataclass(frozen=True)
class OptionSpec:
    """One option of a game: its default, what it means, and what it may be (choices, or a range low .. high)."""

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    integer: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value in its proper type; raises OptionValueError when it is not allowed."""
        if self.choices:
            if isinstance(value, type(self.choices[0])) and not isinstance(value, bool) and value in self.choices:
                return value
            allowed = ", ".join(map(repr, self.choices))
            hint = did_you_mean(value, [str(c) for c in self.choices]) if isinstance(value, str) else ""
            raise OptionValueError(f"option {name}={value!r} is not allowed: choose one of {allowed}.{hint}")
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        whole = is_number and (not self.integer or float(value).is_integer())
        if not whole or not (self.low is not None and self.high is not None and self.low <= value <= self.high):
            kind = "a whole number" if self.integer else "a number"
            raise OptionValueError(f"option {name}={value!r} is not allowed: give {kind}, {self.low} to {self.high}.")
        return int(value) if self.integer else float(value)


@dataclass(frozen=True)
class GameSpec:
    """Everything about a game that is not its rules."""

    id: str
    name: str
    version: int
    title: str
    tick_rate: int  # ticks per second of game time
    frame_skip_default: int  # ticks per decision
    max_seats: int
    opponents: tuple[str, ...]
    options: Mapping[str, OptionSpec]
    action_labels: tuple[tuple[str, tuple[str, ...]], ...]
    module: str  # where the batch class lives
    batch_class: str
    script_class: str  # scripted levels as policies, in the same module
    draw_module: str
    state_fixed: tuple[str, ...]  # fields of the state that the options determine
    state_ranges: Mapping[str, tuple[Any, Any]]  # bounds (inclusive) of those that kernels index or loop with

    def complete_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with the given ones checked and put in; JSON-able but for a callable opponent.

        Raises:
            UnknownOptionError: an option this game does not have.
            OptionValueError: a value that is not allowed.
        """
        for name in given:
            if name not in self.options:
                known = ", ".join(self.options)
                raise UnknownOptionError(
                    f"{self.id} has no option {name!r}.{did_you_mean(name, self.options)} Options: {known}."
                )
        return {
            name: option.check(name, given[name]) if name in given else option.default
            for name, option in self.options.items()
        }

    def load_batch(self) -> Any:
        """The batch class of the game (imports its kernels)."""
        return getattr(importlib.import_module(self.module), self.batch_class)

    @property
    def levels(self) -> tuple[str, ...]:
        """The scripted levels that can take a learner's place (`load_script`)."""
        return tuple(name for name in self.opponents if name not in ("random", "mixed", "self"))

    def load_script(self) -> Any:
        """The class that plays a scripted level in a learner's place (imports the game's kernels)."""
        return getattr(importlib.import_module(self.module), self.script_class)

    def load_draw(self) -> Any:
        """The module that draws the game."""
        return importlib.import_module(self.draw_module)


_LEVELS = ("random", "beginner", "intermediate", "advanced", "expert")

# A scripted archer's memory: two times, an intent, the next slot; then for each of four slots when a command is due,
# move, vertical, bow and aim.
_BOT_LOW = (0, 0, -1, 0) + (-1, -1, 0, 0, 0) * 4
_BOT_HIGH = (2**31 - 1, 2**31 - 1, 2, 3) + (2**31 - 1, 1, 2, 1, 15) * 4

ARCHERS = GameSpec(
    id="gymcast/Archers-v0",
    name="archers",
    version=0,
    title="Archers: a platform duel",
    tick_rate=50,
    frame_skip_default=4,
    max_seats=4,
    opponents=(*_LEVELS, "mixed", "self"),
    options={
        "opponent": OptionSpec(
            "intermediate",
            "who plays the other seats: a scripted level, mixed (a level drawn for each match and seat), or self "
            "(every seat is a lane of the vector environment)",
            choices=(*_LEVELS, "mixed", "self"),
        ),
        "players": OptionSpec(2, "archers in the arena", choices=(2, 3, 4)),
        "map": OptionSpec(
            "open", "the arena; random draws one for each match", choices=("open", "tower", "gauntlet", "pit", "random")
        ),
        "frame_skip": OptionSpec(4, "ticks of 1/50 s a decision is held", low=1, high=50, integer=True),
        "kills_to_win": OptionSpec(3, "kills that win the match", low=1, high=100, integer=True),
        "max_duration_s": OptionSpec(60.0, "game seconds after which a match is truncated", low=0.1, high=3600.0),
        "reward": OptionSpec("shaped", "reward scheme", choices=("sparse", "kills", "shaped")),
        "observation": OptionSpec("vector", "what a seat sees", choices=("vector", "grid", "pixels")),
        "action": OptionSpec("multidiscrete", "form of the actions", choices=("multidiscrete", "discrete", "box")),
    },
    action_labels=(
        ("move", ("stay", "left", "right")),
        ("vertical", ("none", "jump", "dive")),
        ("bow", ("release", "hold")),
        ("aim", ("E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW", "N", "NNE", "NE", "ENE")),
    ),
    module="gymcast.envs.games.archers_batch",
    batch_class="ArchersBatch",
    script_class="ArchersScript",
    draw_module="gymcast.envs.draw.archers",
    state_fixed=("players", "arrows"),
    state_ranges={
        "arena": (0, 3),
        "level": (-1, 4),
        "x": (0.0, math.nextafter(800.0, 0.0)),
        "y": (0.0, math.nextafter(600.0, 0.0)),
        "vx": (-600.0, 600.0),
        "vy": (-600.0, 600.0),
        "aim_x": (-1.0, 1.0),
        "aim_y": (-1.0, 1.0),
        "move": (-1, 1),
        "charge": (0, 100),
        "jumps": (0, 2),
        "quiver": (0, 4),
        "respawn": (0, 250),
        "kills": (0, 100),
        "arrow_x": (0.0, math.nextafter(800.0, 0.0)),
        "arrow_y": (0.0, math.nextafter(600.0, 0.0)),
        "arrow_vx": (-600.0, 600.0),
        "arrow_vy": (-600.0, 600.0),
        "arrow_state": (0, 3),
        "arrow_owner": (0, 3),
        "bot": (_BOT_LOW, _BOT_HIGH),
    },
)

GAMES: dict[str, GameSpec] = {ARCHERS.id: ARCHERS}


# Environments of ours that are no compiled batches, small ones that show one thing: their class and title.
PLAIN_ENVS: dict[str, tuple[str, str]] = {
    "gymcast/Vault-v0": ("gymcast.envs.vault:VaultEnv", "Vault: needs a memory and masks at once"),
}


def game_spec(name: str) -> GameSpec:
    """The game of an id ("gymcast/Archers-v0") or a name ("archers"); raises UnknownEnvError with the nearest name."""
    for spec in GAMES.values():
        if name in (spec.id, spec.name):
            return spec
    raise UnknownEnvError(_unknown(name, [s.name for s in GAMES.values()] + list(GAMES)))


def resolve_env_id(name: str, packages: Sequence[str] = ()) -> str:
    """A Gymnasium id from a game's name ("archers") or any registered id, `packages` being imported first.

    Raises UnknownEnvError with the nearest name, EnvMakeError for a package that does not import.
    """
    register_all()
    for spec in GAMES.values():
        if name.lower() == spec.name or name == spec.id:
            return spec.id
    for env_id in PLAIN_ENVS:
        if name.lower() == short_name(env_id):
            return env_id
    import_packages(packages)
    if name not in gymnasium.registry:
        import_family(name)
    if name in gymnasium.registry:
        return name
    raise UnknownEnvError(_unknown(name, [s.name for s in GAMES.values()] + list(gymnasium.registry)))


def short_name(env_id: str) -> str:
    """ "vault" of "gymcast/Vault-v0"."""
    return env_id.rsplit("/", 1)[-1].rsplit("-v", 1)[0].lower()


def _unknown(name: str, known: list[str]) -> str:
    by_lower = {k.lower(): k for k in known}
    hint = did_you_mean(name, by_lower)
    for lower, proper in by_lower.items():
        hint = hint.replace(f'"{lower}"', f'"{proper}"')
    games = ", ".join(f"{s.name} ({s.id})" for s in GAMES.values())
    return (
        f"there is no environment {name!r}.{hint} Built-in games: {games}; any registered Gymnasium id works too."
        f"{missing_hint(name)}"
    )


def action_space(spec: GameSpec, options: Mapping[str, Any]) -> spaces.Space[Any]:
    """The action space of one lane."""
    nvec = [len(labels) for _, labels in spec.action_labels]
    if options["action"] == "discrete":
        return spaces.Discrete(int(np.prod(nvec)))
    if options["action"] == "box":
        return spaces.Box(-1.0, 1.0, (5,), np.float32)
    return spaces.MultiDiscrete(nvec)


def register_all() -> None:
    """Register our environments with Gymnasium; doing it again does nothing."""
    for env_id, (entry_point, _) in PLAIN_ENVS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=entry_point)
    for spec in GAMES.values():
        if spec.id not in gymnasium.registry:
            gymnasium.register(
                spec.id,
                entry_point="gymcast.envs.single:ArchersEnv",
                vector_entry_point="gymcast.envs.vector:make_game_vector_env",
                kwargs={},
                disable_env_checker=False,
            )
