"""`VaultEnv`: a game that needs a memory and legal-action masks at once, small enough to be solved on paper."""

from __future__ import annotations

from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymcast.envs.errors import ActionError, OptionValueError

_CELL: Final = 40
"""Pixels of a door's side."""
_COLOURS: Final = np.array(
    [(214, 69, 65), (65, 131, 215), (38, 166, 91), (244, 208, 63), (155, 89, 182), (245, 143, 41), (78, 205, 196),
     (236, 112, 160)], np.uint8,
)  # fmt: skip
_NAMES: Final = ("red", "blue", "green", "yellow", "violet", "orange", "cyan", "pink")
_DARK, _LOCKED, _PLAIN, _HERE = (
    np.array(colour, np.uint8) for colour in ((24, 26, 32), (58, 62, 72), (176, 181, 190), (255, 255, 255))
)


class VaultEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """
    ## Description
    A burglar reads a note with a colour, walks through dark rooms and stands before the vault, whose doors have colours
    again: the one of the note leads to the money. In every room before it some doors are locked, others each time. It
    is too dark to see which; a hand on the handle tells, and that is the legal-action mask. Forcing a locked door sets
    off the alarm.

    The note is out of sight after the first room, and locks are in the mask alone. So the best policy of a kind gets

    | policy                        | best mean return           | with the defaults |
    |-------------------------------|----------------------------|-------------------|
    | masks and memory              | 1                          | 1                 |
    | masks, no memory              | 1 / doors                  | 0.25              |
    | memory, no masks              | (unlocked / doors)^rooms   | 0.03125           |
    | neither                       | the product of the two     | 0.0078125         |

    ## Action Space
    `Discrete(doors)`: the door to open. `info["action_mask"]` and `action_masks()`, bool (doors,), tell which are not
    locked: `unlocked` of them in a room, all of them before the vault.

    ## Observation Space
    `Box(0, 1, (doors + 1,), float32)`

    | Num          | Observation                                                           | Min | Max |
    |--------------|-----------------------------------------------------------------------|-----|-----|
    | 0..doors - 1 | 1 for the colour of the note, in the first room only; 0 everywhere else | 0   | 1   |
    | doors        | rooms passed / `rooms`; 1 before the vault                            | 0   | 1   |

    ## Rewards
    1 for opening the vault's door of the note's colour; 0 for everything else.

    ## Starting State
    The first room. The colour of the note is drawn evenly; the unlocked doors of each room are drawn evenly and
    independently of everything else.

    ## Episode End
    1. Termination: a door of the vault is opened, or a locked door is tried.
    2. Truncation: none; an episode has at most `rooms + 1` steps.

    The last `info` holds `is_success`.

    ## Arguments
    - `rooms=5`: rooms before the vault, 1 to 100.
    - `doors=4`: doors in each room and of the vault, 2 to 8.
    - `unlocked=2`: doors in a room that are not locked, 1 to `doors`.

    ## Version History
    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012 - as Gymnasium's

    def __init__(self, *, rooms: int = 5, doors: int = 4, unlocked: int = 2, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise OptionValueError(f"render_mode={render_mode!r} is not allowed: choose None, 'rgb_array' or 'ansi'.")
        self.rooms = _whole("rooms", rooms, 1, 100)
        self.doors = _whole("doors", doors, 2, len(_COLOURS))
        self.unlocked = _whole("unlocked", unlocked, 1, self.doors)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(self.doors)
        self.observation_space = spaces.Box(0.0, 1.0, (self.doors + 1,), np.float32)
        self.note = 0
        """The colour of the vault's right door, 0 .. doors - 1."""
        self.room = 0
        """Rooms passed; `rooms` before the vault."""
        self.legal: NDArray[np.bool_] = np.ones(self.doors, np.bool_)
        """bool (doors,): what is not locked here."""
        self.ended = ""
        """"" while it goes on, else "opened", "empty" or "alarm"."""
        self._begun = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin in the first room, with a new note."""
        super().reset(seed=seed)
        self.note = int(self.np_random.integers(self.doors))
        self.room, self.ended, self._begun = 0, "", True
        self._enter()
        return self._observe(), {"action_mask": self.action_masks()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Try a door.

        Raises:
            ActionError: an action outside the space, or a step after the end without a reset.
        """
        if not self._begun or self.ended:
            raise ActionError("the episode is over or has not begun: call reset() before step().")
        door = _door(action, self.doors)
        if not self.legal[door]:
            self.ended = "alarm"
        elif self.room < self.rooms:
            self.room += 1
            self._enter()
        else:
            self.ended = "opened" if door == self.note else "empty"
        info: dict[str, Any] = {"action_mask": self.action_masks()}
        if self.ended:
            info["is_success"] = self.ended == "opened"
        return self._observe(), float(self.ended == "opened"), bool(self.ended), False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (doors,): the doors that are not locked, in the form sb3-contrib's maskable algorithms take."""
        return self.legal.copy()

    def render(self) -> Any:
        """An image uint8 (H, W, 3) or text, after `render_mode`; None without one. It shows more than a policy sees."""
        if self.render_mode == "rgb_array":
            return self._image()
        return self._text() if self.render_mode == "ansi" else None

    def _enter(self) -> None:
        self.legal = np.ones(self.doors, np.bool_)
        if self.room < self.rooms:
            self.legal[self.np_random.permutation(self.doors)[self.unlocked :]] = False

    def _observe(self) -> NDArray[np.float32]:
        seen = np.zeros(self.doors + 1, np.float32)
        if self.room == 0:
            seen[self.note] = 1.0
        seen[-1] = self.room / self.rooms
        return seen

    def _text(self) -> str:
        path = "".join("." if room < self.room else "@" if room == self.room else "_" for room in range(self.rooms))
        vault = "@" if self.room == self.rooms else "$"
        handles = " ".join("locked" if not free else _NAMES[door] for door, free in enumerate(self.legal))
        if self.room < self.rooms:
            handles = " ".join("open" if free else "locked" for free in self.legal)
        note = f"note: {_NAMES[self.note]}" + (" (out of sight)" if self.room else "")
        return f"[{path}]{vault}  {note}\ndoors: {handles}\n{self.ended or 'dark'}\n"

    def _image(self) -> NDArray[np.uint8]:
        """The note on top; below a column for every room, and the vault's at the right."""
        image = np.empty(((self.doors + 2) * _CELL, (self.rooms + 2) * _CELL, 3), np.uint8)
        image[:] = _DARK
        _fill(image, 0, 0, _COLOURS[self.note] if self.room == 0 else _LOCKED)
        for column in range(self.rooms + 1):
            here = column == self.room
            for door in range(self.doors):
                colour = _COLOURS[door] if column == self.rooms else _PLAIN if here else _LOCKED
                _fill(image, door + 1, column + 1, colour if not here or self.legal[door] else _LOCKED)
        colour = {"": _HERE, "opened": _COLOURS[2], "empty": _LOCKED, "alarm": _COLOURS[0]}[self.ended]
        _fill(image, self.doors + 1, self.room + 1, colour)
        return image


def _fill(image: NDArray[np.uint8], row: int, column: int, colour: NDArray[np.uint8]) -> None:
    gap = _CELL // 8
    top, left = row * _CELL + gap, column * _CELL + gap
    image[top : top + _CELL - 2 * gap, left : left + _CELL - 2 * gap] = colour


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise OptionValueError(f"option {name}={value!r} is not allowed: give a whole number, {low} to {high}.")
    return int(value)


def _door(action: Any, doors: int) -> int:
    array = np.asarray(action)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.reshape(())) < doors:
        raise ActionError(f"action {action!r} is no door: give a whole number in the range 0 to {doors - 1}.")
    return int(array.reshape(()))
