"""Who opens the vault (gymcast/Vault-v0)? PPO, MaskablePPO, RecurrentPPO or MaskableRecurrentPPO; and what masks cost.

    python benchmarks/recurrent_masks.py [--seeds 1 2 3] [--steps 40000] [--plot docs/recurrent-masks.png]
    python benchmarks/recurrent_masks.py --speed

Every algorithm gets the same settings, the same number of steps and the same seeds; then it plays 4,000 fresh episodes,
choosing the most probable action. The best mean returns of a policy without a memory, without masks, and with both are
known (tests/envs/test_vault.py counts them out) and drawn as dashed lines.

`--speed` compares samples/s of RecurrentPPO and MaskableRecurrentPPO where masks allow everything: both then see the
same games and compute the same weights, so that masks are the only difference. The third row is `whole_sequences=True`.
Runs are interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed

import gymcast.envs  # noqa: F401 - registers the vault
from _common import interleave, machine, median, table
from gymcast.training import MaskableRecurrentPPO

LANES, GAMES = 16, 4000
SETTINGS: dict[str, Any] = {
    "n_steps": 48, "batch_size": 256, "n_epochs": 4, "learning_rate": 0.003, "ent_coef": 0.01, "device": "cpu",
}  # fmt: skip
NETWORK = {"net_arch": {"pi": [32], "vf": [32]}}
ARMS: dict[str, tuple[Any, str, str]] = {
    "PPO": (PPO, "MlpPolicy", "#999999"),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", "#4aa3df"),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", "#46b98c"),
    "MaskableRecurrentPPO": (MaskableRecurrentPPO, "MlpLstmPolicy", "#ff8c5a"),
}
BOUNDS = {"masks and memory": 1.0, "masks alone": 1 / 4, "memory alone": 1 / 32, "neither": 1 / 128}


def build(name: str, env: Any, seed: int, network: Mapping[str, Any], **changes: Any) -> Any:
    cls, policy, _ = ARMS[name]
    kwargs = {**NETWORK, **({"lstm_hidden_size": 32} if "Lstm" in policy else {}), **network}
    return cls(policy, env, seed=seed, policy_kwargs=kwargs, **{**SETTINGS, **changes})


class Curve(BaseCallback):
    """The mean return of the last 100 episodes after every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        self.points.append((self.num_timesteps, float(np.mean(returns or [0.0]))))

    def _on_step(self) -> bool:
        return True


class MaskedMaskablePPO:
    """MaskablePPO for Stable-Baselines3's evaluation: hands it the masks."""

    def __init__(self, model: Any, env: Any) -> None:
        self._model, self._env = model, env

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        masks = np.stack(self._env.env_method("action_masks"))
        return self._model.predict(obs, deterministic=deterministic, action_masks=masks)


def train(name: str, seed: int, steps: int) -> tuple[list[tuple[int, float]], float, float]:
    """The curve, the mean return of fresh games, and the seconds of training."""
    env = make_vec_env("gymcast/Vault-v0", LANES, seed=seed)
    model, curve = build(name, env, seed, {}), Curve()
    started = time.perf_counter()
    model.learn(steps, curve)
    seconds = time.perf_counter() - started
    fresh = make_vec_env("gymcast/Vault-v0", LANES, seed=10_000 + seed)
    player = model
    if name == "MaskableRecurrentPPO":
        player = model.masked_by(fresh)
    elif name == "MaskablePPO":
        player = MaskedMaskablePPO(model, fresh)
    mean, _ = evaluate_policy(player, fresh, GAMES, deterministic=True)
    return curve.points, float(mean), seconds


def plot(curves: dict[str, list[list[tuple[int, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=150)
    for name, runs in curves.items():
        for number, run in enumerate(runs):
            steps, returns = zip(*run, strict=True)
            axes.plot(steps, returns, color=ARMS[name][2], linewidth=1.2, label=None if number else name)
    for text, bound in list(BOUNDS.items())[:3]:
        axes.axhline(bound, color="#888888", linewidth=0.8, linestyle="--")
        axes.annotate(f"best with {text}", (0, bound), (4, 3), textcoords="offset points", fontsize=7, color="#666666")
    axes.set(xlabel="steps", ylabel="mean return of the last 100 episodes", ylim=(-0.02, 1.08), xlim=(0, None))
    axes.set_title("gymcast/Vault-v0: training returns (sampled actions) of three seeds", fontsize=9)
    axes.legend(frameon=False, loc="center right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def learning(seeds: list[int], steps: int, path: Path | None) -> None:
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    rows = []
    for name in ARMS:
        runs = [train(name, seed, steps) for seed in seeds]
        curves[name] = [points for points, _, _ in runs]
        opened = ", ".join(f"{mean:.3f}" for _, mean, _ in runs)
        rows.append([name, opened, f"{median([seconds for *_, seconds in runs]):.1f}"])
        print(*rows[-1], flush=True)
    print(table(["algorithm", f"mean return of {GAMES} games, by seed", "seconds"], rows))
    print("best possible:", ", ".join(f"{name} {value:g}" for name, value in BOUNDS.items()))
    if path is not None:
        plot(curves, path)
        print(f"wrote {path}")


def all_legal(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return ActionMasker(env, lambda _: np.ones(2, dtype=np.bool_))


def speed(repeats: int, steps: int) -> None:
    arms = {
        "RecurrentPPO": ("RecurrentPPO", {}),
        "MaskableRecurrentPPO": ("MaskableRecurrentPPO", {}),
        "MaskableRecurrentPPO, whole sequences": ("MaskableRecurrentPPO", {"whole_sequences": True}),
    }
    models = {}
    for title, (name, network) in arms.items():
        env = make_vec_env("CartPole-v1", LANES, seed=1, wrapper_class=all_legal)
        models[title] = build(name, env, 1, network, n_steps=128).learn(2048)
    repeat = dict.fromkeys(models, 0)

    def rate(title: str) -> float:
        repeat[title] += 1
        set_random_seed(repeat[title])  # the same games for all, though runs take turns
        started = time.perf_counter()
        models[title].learn(steps, reset_num_timesteps=False)
        return steps / (time.perf_counter() - started)

    figures = interleave({title: partial(rate, title) for title in models}, repeats)
    first = figures["RecurrentPPO"]
    rows = []
    for title, values in figures.items():
        ratio = median([ours / theirs for ours, theirs in zip(values, first, strict=True)])
        rows.append([title, f"{median(values):,.0f}", f"{ratio:.2f}"])
    print(table(["algorithm", "samples/s", "against RecurrentPPO (median of pairs)"], rows))
    vectors = [th.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models.values()]
    print("weights of the first two are the same:", th.equal(vectors[0], vectors[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each algorithm each")
    parser.add_argument("--steps", type=int, default=40_000, help="steps of each run")
    parser.add_argument("--plot", type=Path, help="write the learning curves here (PNG)")
    parser.add_argument("--speed", action="store_true", help="compare samples/s instead")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    print(machine(), flush=True)
    if arguments.speed:
        speed(repeats=15, steps=2048)
    else:
        learning(arguments.seeds, arguments.steps, arguments.plot)


if __name__ == "__main__":
    main()
