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

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "ansi"]}
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
        return self._vector.action_masks()[0].copy()

    def render(self) -> Any:
        """An image uint8 (600, 800, 3), or text, after `render_mode`; None without one."""
        return self._vector.render()

    def close(self) -> None:
        """Release what the game holds."""
        self._vector.close()


class ArchersEnv(GameEnv):
    __doc__ = (ARCHERS.docs or "") + ""
    game = ARCHERS
