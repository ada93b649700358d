"""``gymcast replay`` on the log of a run: list, show, verify, export."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from gymcast.envs import EpisodeLog, Replay, verify_replay
from gymcast.envs.foreign_make import EnvExtras
from gymcast.server import cli
from gymcast.server.cli_errors import UserError
from gymcast.training import Trainer, TrainingConfig

ARCHERS = {
    "env_id": "gymcast/Archers-v0", "env_kwargs": {"opponent": "beginner", "max_duration_s": 2.0},
    "parallel_episodes": 16, "total_timesteps": 16 * 256, "evaluation_games": 0, "seed": 8,
    "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of Archers and one of CartPole."""
    folder = tmp_path_factory.mktemp("runs")
    Trainer(TrainingConfig.parse(ARCHERS), run_dir=folder / "duel").run_training_loop()
    pole = {**ARCHERS, "env_id": "CartPole-v1", "env_kwargs": {}, "parallel_episodes": 4, "total_timesteps": 1024}
    Trainer(TrainingConfig.parse(pole), run_dir=folder / "pole").run_training_loop()
    return folder


def gymcast(runs: Path, *arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert cli.run(["replay", *arguments, "--runs-dir", str(runs)]) == code
    return capsys.readouterr().out


def test_a_replay_of_a_package_is_played_with_that_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = "import gymnasium\ngymnasium.register('Theirs-v0', 'gymnasium.envs.toy_text:FrozenLakeEnv')\n"
    (tmp_path / "theirs_for_replays.py").write_text(package)
    monkeypatch.syspath_prepend(str(tmp_path))
    actions = np.zeros((1, 1, 1), np.uint8)
    path = tmp_path / "one.replay"
    extras = EnvExtras(("theirs_for_replays",))
    path.write_bytes(Replay("Theirs-v0", 0, {}, 1, 0, actions, {"length": 1, "return": 0.0}, extras).to_bytes())
    with pytest.raises(UserError, match="--gym-packages theirs_for_replays"):
        cli.run(["replay", "verify", str(path)])
    assert cli.run(["replay", "verify", str(path), "--gym-packages", "theirs_for_replays"]) == 0
    assert "1 decisions of Theirs-v0" in capsys.readouterr().out
    gymnasium.registry.pop("Theirs-v0")


def test_list_shows_selects_and_orders(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EpisodeLog(runs / "duel" / "episodes")
    rows = json.loads(gymcast(runs, "list", "--run", "duel", "--json", "--limit", "1000", capsys=capsys))
    assert [(row["lane"], row["start"]) for row in rows] == [(one.lane, one.start) for one in log.select()]
    rows = json.loads(gymcast(runs, "list", "--run", "duel", "--lane", "3", "--order", "best", "--json", capsys=capsys))
    assert {row["lane"] for row in rows} == {3}
    assert [row["return"] for row in rows] == sorted((row["return"] for row in rows), reverse=True)
    text = gymcast(runs, "list", "--run", "latest", "--order", "longest", "--limit", "2", capsys=capsys)
    longest = EpisodeLog(runs / "pole" / "episodes").select(order="longest", limit=1)[0]
    assert (
        f"pole:{longest.lane}:{longest.start}" in text and f"2 of {len(EpisodeLog(runs / 'pole' / 'episodes'))}" in text
    )
    assert "per decision" in text


def test_show_tells_the_facts_and_a_few_moments(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(gymcast(runs, "show", "duel:best", "--json", capsys=capsys))
    assert facts["env_id"] == "gymcast/Archers-v0" and facts["options"]["opponent"] == "beginner"
    text = gymcast(runs, "show", facts["replay_id"], "--moments", "2", capsys=capsys)
    assert f"lane        {facts['lane']}" in text and "decision 0, 0.0 s" in text
    assert f"decision {facts['decisions']}" in text and "########" in text
    text = gymcast(runs, "show", "pole:newest", capsys=capsys)
    assert "CartPole-v1" in text and "decision 0" not in text


@pytest.mark.parametrize("run", ["duel", "pole"])
def test_verify_plays_random_episodes_again(run: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("verify", "--run", run, "--count", "100", "--seed", "5")
    found = json.loads(gymcast(runs, *arguments, "--json", capsys=capsys))
    kept = len(EpisodeLog(runs / run / "episodes"))
    assert found["episodes"] == kept and found["played"] == found["same"] == min(100, kept)
    assert found["failures"] == [] and found["decisions"] > 1000 / 4 and found["seed"] == 5
    text = gymcast(runs, *arguments, capsys=capsys)
    assert f"{min(100, kept)} ended as recorded" in text
    assert "verifies" in gymcast(runs, "verify", f"{run}:worst", capsys=capsys)


def change(path: Path, **changes: Any) -> None:
    """Another header for a segment, with a checksum that fits."""
    data = path.read_bytes()
    size = int.from_bytes(data[4:8], "little")
    text = json.dumps({**json.loads(data[12 : 12 + size]), **changes}).encode()
    path.write_bytes(struct.pack("<4sII", b"GCEL", len(text), zlib.crc32(text)) + text + data[12 + size :])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 3}, "version 3, the game here is version 0: its rules changed"),
        ({"options": {"opponent": "expert", "max_duration_s": 2.0}}, "plays to"),
        ({"options": {"max_duration_s": 0.4}}, "plays to"),
    ],
)
def test_verify_tells_what_differs_and_exits_1(
    changes: dict[str, Any], reason: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "duel", tmp_path / "duel")
    change(tmp_path / "duel" / "episodes" / "segment-00000001.log", **changes)
    text = gymcast(tmp_path, "verify", "--run", "duel", "--count", "20", code=1, capsys=capsys)
    assert "0 ended as recorded" in text and "20 DIFFER" in text and reason in text and "and 15 more" in text


def test_export_writes_what_the_file_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EpisodeLog(runs / "duel" / "episodes")
    length = log.select(order="longest", limit=1)[0].length
    for name in ("a.json", "a.png", "a.gif", "a.replay", "a.mp4"):
        told = gymcast(runs, "export", "duel:longest", "--out", str(tmp_path / name), "--width", "120", capsys=capsys)
        assert f"{(tmp_path / name).stat().st_size:,} bytes" in told
    assert len(json.loads((tmp_path / "a.json").read_text())["frames"]) == length + 1
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (4 * 126 + 6, 3 * (90 + 24) + 6)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.size == (120, 90) and film.info["duration"] == 80
        assert getattr(film, "n_frames", 1) > length // 2
    verify_replay(Replay.from_bytes((tmp_path / "a.replay").read_bytes()))
    assert "verifies" in gymcast(runs, "verify", str(tmp_path / "a.replay"), capsys=capsys)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4"), "-f", "null", "-"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "h264" in told and "120x90" in told and "12.50 fps" in told
    assert re.findall(r"frame= *(\d+)", told)[-1] == str(length + 1)


def test_a_film_that_cannot_be_written_says_why(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory") as caught:
        cli.run(["replay", "export", "duel:best", "-O", str(tmp_path / "no" / "a.mp4"), "--runs-dir", str(runs)])
    assert caught.value.exit_code == 1


def test_a_pole_has_no_page_but_says_so(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no built-in game") as caught:
        cli.run(["replay", "export", "pole:best", "--runs-dir", str(runs)])
    assert caught.value.exit_code == 1


def test_films_without_the_extra_say_what_to_install(runs: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['imageio_ffmpeg'] = None\nfrom gymcast.server import cli\ncli.main()"
    command = [sys.executable, "-c", code, "replay", "export", "duel:best", "-O", "x.mp4", "--runs-dir", str(runs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "gymcast[video]"' in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "needles"),
    [
        ("list --lane 3", ["--run latest"]),
        ("list --run duel --session x", ["exclude each other"]),
        ("list --run duel --order bst", ["'bst'", "newest, oldest, best", "did you mean 'best'"]),
        ("list --run duel --outcome victory", ["win, draw, loss"]),
        ("list --run dual", ["no run 'dual'", "did you mean 'duel'"]),
        ("verify", ["--run latest"]),
        ("verify x --run duel", ["--run"]),
        ("show duel:0:5", ["no whole episode of lane 0 that began at 5"]),
        ("export duel:best --out x.avi", ["'avi'", "json, png, gif, mp4, replay"]),
        ("export duel:best --format gif", ["--out episode.gif"]),
    ],
)
def test_bad_input_says_what_is_allowed(command: str, needles: list[str], runs: Path) -> None:
    with pytest.raises(UserError) as caught:
        cli.run(["replay", *command.split(), "--runs-dir", str(runs)])
    assert all(needle in str(caught.value) for needle in needles), str(caught.value)


def test_a_run_without_a_log_says_why(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("env_id: archers\n")
    with pytest.raises(UserError, match=r"no logged episodes.*replays_kept=0"):
        cli.run(["replay", "list", "--run", "old", "--runs-dir", str(tmp_path)])


def test_frames_to_standard_output(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = json.load(io.StringIO(gymcast(runs, "export", "duel:best", capsys=capsys)))
    assert view["view"] == "archers" and np.isfinite(view["frames"][-1]["t"])
