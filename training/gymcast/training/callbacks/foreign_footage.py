"""Whole episodes of one lane of an environment that is not gymcast's, with what the policy saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gymcast.envs import Replay
from gymcast.envs.replay_player import to_codec
from gymcast.envs.segments import SegmentHeader
from gymcast.training.episode_taps import FACTS_KEY

if TYPE_CHECKING:
    from gymnasium import spaces
    from numpy.typing import NDArray

MOST_SEEN: Final = 400
"""Observations that are kept of an episode: of longer ones every second, every fourth and so on."""
MOST_ACTIONS: Final = 20_000
"""Decisions of the longest episode that is sent."""


class ForeignRecorder:
    """Records lane 0 as a :class:`~gymcast.training.episode_taps.Tap`.

    ``last_obs`` returns the observations the actions were chosen from. An episode under way at the start is left out,
    as is one that a restarted worker cut short.
    """

    def __init__(self, header: SegmentHeader, space: spaces.Space[Any], last_obs: Callable[[], Any]) -> None:
        self._header, self._space, self._last_obs = header, space, last_obs
        self._actions: list[NDArray[Any]] = []
        self._seen: list[Any] = []
        self._chosen: list[NDArray[Any]] = []
        self._steps: list[int] = []
        self._stride = 1
        self.finished: tuple[Replay, list[int], Any, NDArray[Any]] | None = None
        """The newest episode: its replay, and steps, observations and actions (N, ...) of a part of its decisions."""

    def _begin(self) -> None:
        self._actions, self._seen, self._chosen, self._steps = [], [], [], []
        self._stride = 1

    def stepped(self, actions: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        """One step of all lanes."""
        step = len(self._actions)
        if step < MOST_ACTIONS and step % self._stride == 0:
            self._keep(step, actions[0])
        self._actions.append(to_codec(np.asarray(actions)[:1], self._space))
        if not dones[0]:
            return
        facts = infos[0].get(FACTS_KEY)
        # One that began before the recording is longer than what was recorded.
        if facts is not None and facts["length"] == len(self._actions) <= MOST_ACTIONS:
            self.finished = (self._replay(facts), self._steps, _stacked(self._seen), np.stack(self._chosen))
        self._begin()

    def _keep(self, step: int, action: Any) -> None:
        seen = self._last_obs()
        first = {key: part[0].copy() for key, part in seen.items()} if isinstance(seen, dict) else seen[0].copy()
        self._seen.append(first)
        self._chosen.append(np.array(action))
        self._steps.append(step)
        if len(self._seen) > MOST_SEEN:
            self._seen, self._chosen, self._steps = self._seen[::2], self._chosen[::2], self._steps[::2]
            self._stride *= 2

    def _replay(self, facts: dict[str, Any]) -> Replay:
        header = self._header
        actions = np.stack(self._actions)
        kind = actions.dtype.str if header.codec.floats and actions.dtype == np.float64 else header.codec.dtype
        summary = {"return": round(float(facts["return"]), 6), "length": int(facts["length"])}
        return Replay(
            header.env_id,
            header.version,
            header.options,
            int(facts["seed"]),
            int(facts["index"]),
            actions.astype(kind),
            summary,
            header.extras,
        )


def _stacked(seen: list[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {key: np.stack([one[key] for one in seen]) for key in seen[0]}
    return np.stack(seen)
