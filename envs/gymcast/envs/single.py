"""`GameEnv`: one game as a Gymnasium environment, lane 0 of a batch of one."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymcast.envs.errors import ActionError, OptionValueError
from gymcast.envs.registry import ARCHERS, GameSpec
from gymcast.envs.vector import OUTCOMES, GameVectorEnv


class GameEnv(gymnasium.Env[Any, Any]):
    """One game, one learner's seat: a `GameVectorEnv` of one lane without autoreset, and no second copy of a rule."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012 - as Gymnasium declares it
    game: ClassVar[GameSpec]

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        if options.get("opponent") == "self":
            raise OptionValueError(
                "option opponent='self' makes every seat a lane, which one environment does not have: "
                "use gymcast.envs.GameVectorEnv, or another opponent."
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise OptionValueError(f"render_mode={render_mode!r} is not allowed: choose None, 'rgb_array' or 'ansi'.")
        self._vector = GameVectorEnv(self.game.id, 1, threads=1, render_mode=render_mode, **options)
        batch = self._vector.batch
        batch.rules = batch.rules._replace(autoreset=0)
        self.options = self._vector.options
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "render_fps": self._vector.metadata["render_fps"]}
        self.action_space = self._vector.single_action_space
        self.observation_space = self._vector.single_observation_space
        self._needs_reset = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a match: with a seed the first one of that seed, otherwise the next one."""
        super().reset(seed=seed)
        observation, infos = self._vector.reset(seed=seed)
        self._needs_reset = False
        return observation[0].copy(), {"action_mask": infos["action_mask"][0].copy()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play one decision.

        Raises:
            ActionError: an action outside the space, or a step after the end without a reset.
        """
        if self._needs_reset:
            raise ActionError("the match is over or has not begun: call reset() before step().")
        observation, reward, terminated, truncated, infos = self._vector.step([action])
        info: dict[str, Any] = {"action_mask": infos["action_mask"][0].copy()}
        if terminated[0] or truncated[0]:
            self._needs_reset = True
            info["outcome"] = OUTCOMES[int(self._vector.outcome[0])]
            info["is_success"] = info["outcome"] == "win"
            info["kills"] = int(self._vector.kills[0])
            info["deaths"] = int(self._vector.deaths[0])
        return observation[0].copy(), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions now, bool (K,), in the form sb3-contrib's maskable algorithms take."""
        mask: NDArray[np.bool_] = self._vector.action_masks()[0].copy()
        return mask

    def render(self) -> Any:
        """An image uint8 (600, 800, 3), or text, after `render_mode`; None without one."""
        return self._vector.render()

    def close(self) -> None:
        """Release what the game holds."""
        self._vector.close()


class ArchersEnv(GameEnv):
    """
    ## Description
    A platform duel for two to four archers in an arena of 800 x 600 px (20 px = 1 m, y down) that wraps around on all
    sides. Run (15 m/s), jump (20 m/s, twice), dive, hold the bow to charge it, aim, let go. Arrows fall (20 m/s^2),
    stick in blocks and can be picked up; another player's flying arrow kills. 50 ticks a second, a decision every
    `frame_skip` ticks. All rules: docs/archers.md.

    ## Action Space
    `MultiDiscrete([3, 3, 2, 16])`; an illegal entry (`info["action_mask"]`, bool (24,)) acts as entry 0 of its group.

    | Num | Group    | Entries                                    | Legal                            |
    |-----|----------|--------------------------------------------|----------------------------------|
    | 0   | move     | 0 stay, 1 left, 2 right                    | while alive                      |
    | 1   | vertical | 0 none, 1 jump, 2 dive                     | with a jump left; in the air     |
    | 2   | bow      | 0 release, 1 hold                          | bow drawn or an arrow left       |
    | 3   | aim      | 0 E, clockwise in steps of 22.5 deg, 15 ENE | while the bow is drawn           |

    `action="discrete"`: `Discrete(288)`, `((move * 3 + vertical) * 2 + bow) * 16 + aim`. `action="box"`:
    `Box(-1, 1, (5,))` [move, vertical (up < 0), bow, aim x, aim y].

    ## Observation Space
    `Box(-1, 1, (93,), float32)` for two players, 11 entries more for each further one; the same from every seat.

    | Num   | Observation                                                              | Min | Max |
    |-------|--------------------------------------------------------------------------|-----|-----|
    | 0-1   | own place: x / 400 px - 1, y / 300 px - 1                                | -1  | 1   |
    | 2-3   | own velocity / 600 px/s                                                  | -1  | 1   |
    | 4     | jumps left - 1                                                           | -1  | 1   |
    | 5     | on the ground                                                            | 0   | 1   |
    | 6     | alive                                                                    | -1  | 1   |
    | 7     | time until the return / 5 s                                              | 0   | 1   |
    | 8     | arrows carried / 2 - 1                                                   | -1  | 1   |
    | 9-10  | bow drawn; charge / 2 s                                                  | 0   | 1   |
    | 11-12 | kills / `kills_to_win`; deaths / (deaths + 3)                            | 0   | 1   |
    | 13    | 1 - 2 x time played / `max_duration_s`                                   | -1  | 1   |
    | 14-17 | map: open, tower, gauntlet, pit                                          | 0   | 1   |
    | 18-25 | free blocks E, SE, S, SW, W, NW, N, NE, at most 20, / 10 - 1             | -1  | 1   |
    | 26-36 | foe: alive, dx / 400, dy / 300, vx / 600, vy / 600, arrows / 2 - 1,      | -1  | 1   |
    |       | charge, time until its return, kills, on the ground, in sight            |     |     |
    | 37-92 | 8 nearest arrows: there, dx / 400, dy / 300, vx / 600, vy / 600, deadly, | -1  | 1   |
    |       | can be picked up                                                         |     |     |

    `observation="grid"`: uint8 (7, 60, 80); `observation="pixels"`: uint8 (120, 160, 3).

    ## Rewards
    - `reward="shaped"` (default): a kill, a death, the match won or lost, and small terms for arrows that come into or
      leave the quiver and for near misses (the values: docs/archers.md).
    - `reward="kills"`: +1 a kill, -1 a death.
    - `reward="sparse"`: +1 a match won, -1 a match lost.

    ## Starting State
    Everyone stands on one of the map's eight places, four arrows each, drawn by the seed and the index of the match.

    ## Episode End
    1. Termination: someone has `kills_to_win` kills.
    2. Truncation: `max_duration_s` of game time are over.

    The last `info` holds `outcome` ("win", "draw", "loss"), `is_success`, `kills` and `deaths`.

    ## Arguments
    `opponent="intermediate"`, `players=2`, `map="open"`, `frame_skip=4`, `kills_to_win=3`, `max_duration_s=60.0`,
    `reward="shaped"`, `observation="vector"`, `action="multidiscrete"`; `gymcast envs show archers` and docs/archers.md
    say what each may be.

    ## Version History
    - v0: first version.
    """

    game = ARCHERS
