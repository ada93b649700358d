"""What the log of every episode costs: samples/s of PPO on Archers with and without it, and bytes on the disk.

    python benchmarks/replays.py [--repeats 5] [--rollouts 6] [--lanes 1024 2048]

The archers preset's network, batch size, epochs and samples per rollout; only the lanes differ. Every case runs in a
process of its own, with and without the log in turn, `--repeats` times. Samples/s is collecting and training together,
over whole rollouts after one that is not counted. The ratio is that of the two runs of a repeat, the table shows the
median and the range of the repeats. CPU is the processor time of recording and of the writing thread, as a share of
the training process's: a figure that stays when the machine is busy with other things. Bytes are those of the files
(blocks, index and headers), over all decisions, and that times the mean length of the whole episodes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import interleave, machine, median, table


def measure(lanes: int, rollouts: int, folder: str) -> dict[str, float]:
    """Train for `rollouts` rollouts after a first one, logging into `folder` unless it is empty; figures as JSON."""
    import torch as th

    from _rollouts import RolloutClock
    from gymcast.envs import EpisodeLog
    from gymcast.training import EpisodeLogCallback, TrainingConfig
    from gymcast.training.models import build_model, torch_threads
    from gymcast.training.vec_env import make_training_vec_env

    config = TrainingConfig.preset("archers")
    samples = config.parallel_episodes * int(str(config.hyperparameters["n_steps"]))
    config = config.model_copy(update={"hyperparameters": {**config.hyperparameters, "n_steps": samples // lanes}})
    env = make_training_vec_env(config.env_id, lanes, 0, options=config.env_kwargs)
    model = build_model(config, env, 0)
    th.set_num_threads(torch_threads(config, model))

    class TimedLog(EpisodeLogCallback):
        """The log, and the processor time it took."""

        recording = 0.0
        writing = 0.0

        def _on_training_start(self) -> None:
            super()._on_training_start()
            tap: Any = self._tap
            record = tap.after_step

            def timed() -> None:
                begin = time.thread_time()
                record()
                self.recording += time.thread_time() - begin

            tap.after_step = timed

        def _on_training_end(self) -> None:
            assert self._writer is not None and self._writer._thread.ident is not None
            self.flush()
            self.writing = time.clock_gettime(time.pthread_getcpuclockid(self._writer._thread.ident))
            super()._on_training_end()

    clock = RolloutClock()
    log_of_all = TimedLog(folder)
    before = time.process_time()
    model.learn(samples * (rollouts + 2), callback=[clock, log_of_all] if folder else [clock])
    spent = time.process_time() - before
    env.close()
    found: dict[str, float] = {"rate": samples * rollouts / clock.spent(rollouts)}
    if folder:
        log = EpisodeLog(folder)
        lengths = [episode.length for episode in log.select()]
        found |= {"bytes": log.bytes, "decisions": log.decisions, "length": sum(lengths) / max(1, len(lengths))}
        found["cpu"] = 100 * (log_of_all.recording + log_of_all.writing) / spent
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements per case")
    parser.add_argument("--rollouts", type=int, default=6, help="rollouts per measurement, after one not counted")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--one", nargs=2, metavar=("LANES", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.rollouts, arguments.one[1])))
        return
    print(machine())
    facts: dict[int, dict[str, Any]] = {}

    def run(lanes: int, logged: bool) -> float:
        with tempfile.TemporaryDirectory(prefix="gymcast-") as folder:
            log = str(Path(folder) / "episodes") if logged else ""
            command = [sys.executable, __file__, "--one", str(lanes), log, "--rollouts", str(arguments.rollouts)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        answer = json.loads(text.splitlines()[-1])
        if logged:
            facts[lanes] = answer
        return float(answer["rate"])

    rows = []
    for lanes in arguments.lanes:
        cases = {"log": lambda n=lanes: run(n, True), "none": lambda n=lanes: run(n, False)}
        figures = interleave(cases, arguments.repeats)
        ratios = [a / b for a, b in zip(figures["log"], figures["none"], strict=True)]
        one = facts[lanes]
        per_decision = one["bytes"] / one["decisions"]
        rows.append(
            [
                f"{lanes:,}",
                f"{median(figures['none']):,.0f}",
                f"{median(figures['log']):,.0f}",
                f"{median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
                f"{one['cpu']:.2f} %",
                f"{per_decision:.2f}",
                f"{per_decision * one['length']:,.0f}" if one["length"] else "-",  # no whole episode in the time
                f"{one['length']:,.0f}" if one["length"] else "-",
            ]
        )
    head = ["lanes", "without", "with", "ratio", "range", "CPU", "bytes/decision", "bytes/episode", "decisions/episode"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
