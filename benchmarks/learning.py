"""Does the README's training command learn? Trains the archers preset from several seeds and plots the curves.

    python benchmarks/learning.py [--seeds 1 2 3] [--minutes 3] [--plot docs/learning-curve.png]

Each seed trains in a process of its own, one after the other, exactly as `gymcast train archers` does it, then plays
1,000 fresh games against each scripted level. The curve is the share of games won during training (the last 1,000
finished games, sampled actions, against the preset's opponent) over wall-clock time; the dots are the final results
against `intermediate`, with 95 % Wilson intervals in the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import machine, median, table


class Recorder:
    """A sink that keeps what the run reports: the same events a server would get."""

    desired = "running"

    def __init__(self) -> None:
        self.curve: list[tuple[float, float]] = []
        self.rates: list[float] = []

    def emit(self, data: Any) -> None:
        if type(data).__name__ == "TrainingMetricsData":
            if data.win_rate is not None:
                self.curve.append((data.training_time_elapsed, data.win_rate))
            rate = data.extra.get("game_seconds_per_second")
            if rate is not None and data.training_time_elapsed > 10:
                self.rates.append(rate)


def train(seed: int, minutes: float) -> dict[str, Any]:
    """One run; its curve, results and peak memory."""
    from gymcast.training import Trainer, TrainingConfig

    recorder = Recorder()
    config = TrainingConfig.preset("archers", seed=seed, max_minutes=minutes)
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(config, run_dir=Path(folder) / "run", sink=recorder).run_training_loop()
    return {
        "seed": seed,
        "opponent": config.env_kwargs["opponent"],
        "minutes": result.training_seconds / 60,
        "timesteps": result.timesteps,
        "episodes": result.episodes,
        "game_seconds_per_second": median(recorder.rates) if recorder.rates else None,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "curve": recorder.curve,
        "results": {
            e.opponent: [e.win_rate, e.ci_low, e.ci_high, e.wins, e.losses, e.draws] for e in result.evaluations
        },
    }


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """The curves of all seeds, and the final results against `intermediate` as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), dpi=150)
    for run, colour in zip(runs, ("#ff8c5a", "#4aa3df", "#46b98c", "#a37fd8", "#999999"), strict=False):
        seconds, wins = zip(*run["curve"], strict=True)
        axes.plot([s / 60 for s in seconds], wins, color=colour, label=f"seed {run['seed']}")
        axes.plot([run["minutes"]], [run["results"]["intermediate"][0]], "o", color=colour)
    axes.axhline(90, color="#888888", linewidth=0.8, linestyle="--")
    axes.set(xlabel="minutes of training", ylabel="games won, %", ylim=(0, 100), xlim=(0, None))
    axes.set_title("Archers: games won in training (lines), 1,000 fresh games against intermediate (dots)", fontsize=9)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each")
    parser.add_argument("--minutes", type=float, default=3.0, help="minutes of training")
    parser.add_argument("--plot", type=Path, help="write the learning curve here (PNG)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train(arguments.one, arguments.minutes)))
        return
    print(machine(), flush=True)
    runs = []
    for seed in arguments.seeds:
        command = [sys.executable, __file__, "--one", str(seed), "--minutes", str(arguments.minutes)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        runs.append(json.loads(output.splitlines()[-1]))
        print(f"seed {seed}: {runs[-1]['results']}", file=sys.stderr, flush=True)
    opponents = list(runs[0]["results"])
    rows = []
    for run in runs:
        cells = [
            f"{run['results'][o][0]:.1f} % ({run['results'][o][1]:.1f} to {run['results'][o][2]:.1f})"
            for o in opponents
        ]
        facts = [
            f"{run['timesteps'] / 1e6:.1f} M",
            f"{run['game_seconds_per_second'] or 0:,.0f}",
            f"{run['peak_mb']:,.0f}",
        ]
        rows.append([str(run["seed"]), f"{run['minutes']:.2f}", *facts, *cells])
    print(table(["seed", "minutes", "samples", "game-s per s", "peak MB", *opponents], rows))
    if arguments.plot:
        plot(runs, arguments.plot)
        print(f"wrote {arguments.plot}")


if __name__ == "__main__":
    main()
