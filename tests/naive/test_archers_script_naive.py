"""Scripted archers in a learner's place decide as their slow twin does, decision by decision."""

from __future__ import annotations

import numpy as np
import pytest
from archers_naive_bots import Mind, Order, think
from archers_naive_world import Stream

from gymcast.envs import GameVectorEnv, game_spec
from gymcast.envs.games import archers as kernels


class Twin:
    """A scripted archer that is asked once per decision of a learner."""

    def __init__(self, level: int, players: int, seed: int) -> None:
        self.level, self.players = level, players
        self.mind, self.chance = Mind(), Stream(seed, 0)
        self.held = [0, 0, 0, 0]

    def act(self, observation: np.ndarray, now: int) -> list[int]:
        mind = self.mind
        if observation[6] > 0 and now >= mind.next_look:
            mind.next_look = max(now, mind.next_look + int(kernels.DECISION_MS[self.level]))
            order = Order(due=now + int(kernels.REACTION_MS[self.level]))
            think(observation.tolist(), self.players, self.level, mind, order, now, self.chance)
            mind.pending[mind.orders % 4] = order
            mind.orders += 1
        self.held[1] = 0
        for index, due in enumerate(mind.pending):
            if due is not None and due.due <= now:
                mind.pending[index] = None
                self.held = [{0: 0, -1: 1, 1: 2}[due.move], due.vertical, due.bow, due.aim]
        return list(self.held)


@pytest.mark.parametrize(("level", "players", "frame_skip"), [("expert", 2, 4), ("beginner", 3, 1), ("advanced", 4, 7)])
def test_it_decides_as_its_twin(level: str, players: int, frame_skip: int) -> None:
    lanes, number = 3, kernels.LEVELS.index(level)
    env = GameVectorEnv("archers", lanes, threads=1, players=players, frame_skip=frame_skip, max_duration_s=12.0)
    script = game_spec("archers").load_script()(level, lanes, env.options)
    env.reset(seed=5)
    twins, begun = [], [0] * lanes
    for lane in range(lanes):
        script.begin(lane, lane)
        twins.append(Twin(number, players, lane))
    seen = set()
    for step in range(300):
        observation = env.observation.copy()
        actions = script.act(observation)
        for lane in range(lanes):
            now = (step - begun[lane]) * frame_skip * kernels.TICK_MS
            assert actions[lane].tolist() == twins[lane].act(observation[lane], now), (step, lane)
        seen |= set(map(tuple, actions.tolist()))
        env.step(actions)
        for lane in env.ended.tolist():
            begun[lane], twins[lane] = step + 1, Twin(number, players, 100 + step)
            script.begin(lane, 100 + step)
    assert len(seen) > 20


def test_every_form_of_the_actions_plays_the_same_matches() -> None:
    returns = []
    for action in ("multidiscrete", "discrete", "box"):
        env = GameVectorEnv("archers", 2, threads=1, action=action, max_duration_s=4.0)
        env.reset(seed=0)
        script = env.game.load_script()("expert", 2, env.options)
        for lane in range(2):
            script.begin(lane, lane)
        for _ in range(50):
            env.step(script.act(env.observation))
        returns.append(env.batch.state["episode_return"].tolist() + env.episode_return.tolist())
    assert returns[0] == returns[1] == returns[2]
