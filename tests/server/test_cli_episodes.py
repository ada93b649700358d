"""``gymcast episodes`` as a newcomer runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from gymcast.envs import Replay, verify_replay
from gymcast.server import cli
from gymcast.server.cli_errors import UserError


def run(*arguments: str) -> int:
    """The exit code of the command."""
    try:
        return cli.run(["episodes", *arguments])
    except typer.Exit as left:
        return left.exit_code


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        run(*arguments)
    return str(caught.value)


def test_a_summary_a_file_and_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, replays = tmp_path / "out.jsonl", tmp_path / "replays"
    given = ("archers", "--policy", "expert", "-o", "max_duration_s=10", "--count", "12", "--parallel", "2")
    assert run(*given, "--out", str(out), "--replays", str(replays)) == 0
    text = capsys.readouterr().out
    for part in ("gymcast/Archers-v0 (max_duration_s=10) by expert, seed 0", "12 of 12 completed", "±", "95 %", "won"):
        assert part in text
    lines = {line["episode_id"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert sorted(lines) == [f"ep-{number:02}" for number in range(12)]
    for line in lines.values():
        assert verify_replay(Replay.from_bytes(Path(line["replay"]).read_bytes()))["length"] == line["length"]
    assert run(*given, "--lanes", "1", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["average_reward"] == pytest.approx(sum(line["total_reward"] for line in lines.values()) / 12)
    assert status["state"] == "completed" and status["success_low"] <= status["success_rate"] <= status["success_high"]


def test_episodes_that_fail_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flaky.py").write_text(
        "import gymnasium as gym\n"
        "class Flaky(gym.Env):\n"
        "    observation_space = gym.spaces.Discrete(2)\n"
        "    action_space = gym.spaces.Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        self.bad = seed % 2\n"
        "        print('noise of the game')\n"
        "        return 0, {}\n"
        "    def step(self, action):\n"
        "        if self.bad: raise ValueError('odd seeds are bad')\n"
        "        return 0, 1.0, True, False, {}\n"
        "gym.register('Flaky-v0', Flaky)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run("flaky:Flaky-v0", "--count", "10", "--retries", "0", "--json") == 1
    captured = capsys.readouterr()
    status = json.loads(captured.out)
    assert status["completed"] + status["failed"] == 10 and status["failed"] > 0
    assert run("CartPole-v1", "-o", "gravvity=1", "--count", "3") == 1
    assert "unexpected keyword argument 'gravvity'" in capsys.readouterr().err


def test_bad_input(tmp_path: Path) -> None:
    assert 'Did you mean "archers"?' in refused("arcers")
    assert 'Did you mean "expert"?' in refused("archers", "--policy", "expertt")
    assert 'Did you mean "opponent"?' in refused("archers", "-o", "oponent=expert")
    assert "lanes=4 is for built-in games" in refused("CartPole-v1", "--lanes", "4")
    assert "unknown wrapper 'Nothing'" in refused("CartPole-v1", "--wrapper", "Nothing")
    assert "cannot be wrapped" in refused("archers", "--frame-stack", "4")
    assert "there is no run" in refused("archers", "--policy", "latest", "--runs-dir", str(tmp_path))
    assert "cannot write" in refused("CartPole-v1", "--out", str(tmp_path / "none" / "o.jsonl"))
    assert "Invalid value for '--count'" in refused("CartPole-v1", "--count", "0").replace("invalid", "Invalid")
    assert "there is no module 'nothing_here'" in refused("nothing_here:Game-v0")
