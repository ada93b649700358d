"""Tiny environments with every kind of observation, imported by name: a package that registers environments."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

KINDS: dict[str, spaces.Space[Any]] = {
    "dict": spaces.Dict(
        {
            "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "direction": spaces.Discrete(4),
            "mission": spaces.Text(20),
            "goal": spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32)}),
        }
    ),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float32), spaces.MultiBinary(3))),
    "pixels": spaces.Box(0, 255, (40, 48, 3), np.uint8),
    "small": spaces.Box(0, 255, (9, 7, 3), np.uint8),
    "discrete": spaces.Discrete(6),
    "binary": spaces.MultiBinary(5),
    "sequence": spaces.Sequence(spaces.Discrete(3)),
    "graph": spaces.Graph(spaces.Discrete(2), None),
    "text": spaces.Text(8),
}


class Odd(gym.Env[Any, Any]):
    """Episodes of 12 steps with random observations of one kind; reward 1 for the action that the first number asks."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own way

    def __init__(self, kind: str = "dict", fault: str = "", render_mode: str | None = None) -> None:
        if fault == "constructor":
            raise RuntimeError("no display")
        self.observation_space = copy.deepcopy(KINDS[kind])  # each has a random stream of its own
        self.action_space: spaces.Space[Any] = (
            spaces.Dict(a=spaces.Discrete(2)) if fault == "actions" else spaces.Discrete(2)
        )
        self.render_mode = render_mode
        self._fault = fault
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._steps = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward: Any = float(action)
        broken = self._steps == (2 if self._fault.startswith("early") else 8)
        if broken and self._fault.endswith("reward"):
            reward = None
        seen = self._look()
        if broken and self._fault.endswith("nan"):
            seen = (np.full(3, np.nan, np.float32), seen[1])
        if broken and self._fault.endswith("shape"):
            seen = seen[:-1]
        return seen, reward, self._steps >= 12, False, {}

    def _look(self) -> Any:
        # Copies: a space draws from itself, and what it gives may be kept.
        return self.observation_space.sample()

    def render(self) -> Any:
        self.np_random.random()  # an environment that drawing would disturb
        if self._fault == "render":
            raise RuntimeError("no graphics here")
        return np.full((60, 90, 3), 20 * self._steps, np.uint8)


class Halved(gym.RewardWrapper[Any, Any]):
    """Half of every reward."""

    def reward(self, reward: Any) -> float:
        return float(reward) / 2


class Turns(Odd):
    """Odd and even actions are legal in turn; any other one is an error."""

    def __init__(self) -> None:
        super().__init__("discrete")
        self.action_space = spaces.Discrete(4)

    def action_masks(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Legal actions now: bool (4,)."""
        return np.arange(4) % 2 == self._steps % 2

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.action_masks()[int(action)]:
            raise ValueError(f"action {action} is illegal in step {self._steps}")
        return super().step(action)


gym.register("Odd-v0", Odd)
gym.register("Turns-v0", Turns)
