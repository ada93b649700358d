"""Write the golden trajectories: `python tests/golden/make_golden.py`.

Each JSON file holds options, seed, the actions of every lane (index among the 3 x 3 x 2 x 16 combinations) and hashes
of what was played up to every 25th decision. They hold the behaviour of a version of a game: when a test says that one
is not met, either something broke, or the behaviour was meant to change. Then raise the game's version and run this.
As long as the version has not been released, running this is enough. The shaped scheme is left to the twin in
`tests/naive`: its terms are settings of training more than rules of the game.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gymcast.envs import GameVectorEnv

HERE = Path(__file__).parent
DECISIONS, EVERY = 150, 25
CASES: dict[str, dict[str, Any]] = {
    "archers_open_intermediate": {"opponent": "intermediate", "reward": "kills"},
    "archers_tower_expert_every_tick": {"map": "tower", "opponent": "expert", "frame_skip": 1, "reward": "kills"},
    "archers_gauntlet_four_mixed": {
        "map": "gauntlet",
        "opponent": "mixed",
        "players": 4,
        "max_duration_s": 5,
        "reward": "sparse",
    },
    "archers_pit_self_play": {"map": "pit", "opponent": "self", "players": 4, "kills_to_win": 1, "reward": "sparse"},
    "archers_random_three_advanced": {
        "map": "random",
        "opponent": "advanced",
        "players": 3,
        "kills_to_win": 2,
        "reward": "kills",
    },
}
FIELDS = ("x", "y", "vx", "vy", "quiver", "charge", "respawn", "kills", "arrow_x", "arrow_y", "arrow_state", "streams")


def play(options: dict[str, Any], seed: int, actions: list[list[int]]) -> list[str]:
    """Hashes after every 25th decision of all that can be seen of a batch, and of where everything is."""
    told = np.array(actions).T
    env = GameVectorEnv("archers", len(actions), threads=1, **options)
    digest = hashlib.sha256()
    found: list[str] = []
    observations, infos = env.reset(seed=seed)
    digest.update(observations.tobytes() + infos["action_mask"].tobytes())
    for decision, row in enumerate(told):
        step = env.step(np.stack(np.unravel_index(row, (3, 3, 2, 16)), axis=1))
        for array in (*step[:4], step[4]["action_mask"], *(env.batch.state[name] for name in FIELDS)):
            digest.update(np.ascontiguousarray(array).tobytes())
        if env.ended.size:
            digest.update(step[4]["final_obs"][env.ended].tobytes() + env.outcome[env.ended].tobytes())
        if (decision + 1) % EVERY == 0:
            found.append(digest.hexdigest())
    return found


def draw_actions(seed: int, lanes: int) -> list[list[int]]:
    """Random actions with the bow held for a while and then let go."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, (3, 3, 2, 16), (lanes, DECISIONS, 4))
    drawn[..., 1] = np.where(random.random((lanes, DECISIONS)) < 0.7, 0, drawn[..., 1])
    drawn[..., 2] = random.random((lanes, DECISIONS)) < 0.85
    return [[int(i) for i in np.ravel_multi_index(tuple(lane.T), (3, 3, 2, 16))] for lane in drawn]


def main() -> None:
    for number, (name, options) in enumerate(CASES.items()):
        seed = 1000 + number
        lanes = options["players"] if options["opponent"] == "self" else 2
        env = GameVectorEnv("archers", lanes, threads=1, **options)
        actions = draw_actions(seed, lanes)
        golden = {
            "env_id": env.game.id,
            "version": env.game.version,
            "options": env.options,
            "seed": seed,
            "every": EVERY,
            "hashes": play(options, seed, actions),
            "actions": actions,
        }
        text = json.dumps(golden, indent=1)
        for lane in actions:  # a lane on a line
            spread = json.dumps(lane, indent=1).replace("\n", "\n  ")
            text = text.replace(spread, json.dumps(lane, separators=(",", ":")))
        (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
