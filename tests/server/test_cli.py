"""The command line without a training: help, versions, and every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gymcast.server import cli
from gymcast.server.cli_app import app
from gymcast.server.cli_browser import open_browser
from gymcast.server.cli_errors import UserError
from gymcast.server.cli_plan import TrainPlan, find_run, make_plan, merge, nest, parse_assignments, parse_port


def refused(*arguments: str) -> str:
    """The text of the error that a command line ends with; its exit code is 2."""
    with pytest.raises(UserError) as caught:
        cli.run(list(arguments))
    assert caught.value.exit_code == 2
    return str(caught.value)


def plan_of(folder: Path, game: str | None = "CartPole-v1", **more: object) -> TrainPlan:
    given: dict[str, object] = {"config_file": None, "resume": None, "run_dir": None, **more}
    values = given.pop("values", {})
    return make_plan(game, values, runs_dir=folder, port=None, stay=False, output="plain", **given)  # type: ignore[arg-type]


def test_the_module_runs_as_a_process(tmp_path: Path) -> None:
    """One real process for what every command shares: exit code 2, one line of text, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "gymcast.server.cli", "train", "arcers"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert 'Did you mean "archers"?' in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gymcast.server.cli", "sessions", "list", "--server", "nonsense", "--debug"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gymcast.server.cli envs show archers --json | head -n 1; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_what_an_environment_can_be_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["envs", "show", "Pendulum-v1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "preset pendulum, 4 lanes, until a mean return of -200 algorithm sac: the preset names it" in text
    assert "others that fit ppo, recurrent_ppo, a2c, trpo, td3, ars" in text
    assert "not dqn, qrdqn: actions would have to be Discrete" in text
    assert cli.run(["envs", "show", "Blackjack-v1", "--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["preset"] == "blackjack" and training["wrappers"] == ["FlattenObservation"]
    assert "ars" in training["algorithms"] and training["not"]["maskable_ppo"] == "needs action_masks()"


@pytest.mark.parametrize("command", ["", "train", "serve", "watch", "evaluate", "replay", "sessions", "envs"])
def test_help_names_every_option_and_ends_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: gymcast" in text
    if command == "train":
        assert all(name in text for name in ("--minutes", "--resume", "--opponent", "--set", "gymcast train archers"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gymcast 0.")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("train gymcast/Archer-v0", ['Did you mean "gymcast/Archers-v0"?']),
        ("train CartPole-v9", ["CartPole-v9", 'Did you mean "CartPole-v1"?']),
        ("train", ["which game?", "gymcast train archers"]),
        ("train archers --minuts 3", ["--minuts", "Did you mean '--minutes'?", "gymcast train --help"]),
        ("trian archers", ["'trian'", "'train'"]),
        ("train archers --minutes soon", ["--minutes"]),
        ("train archers --port 70000", ["'70000'", "1 to 65535"]),
        ("train archers --quiet --json", ["--quiet", "--json"]),
        ("train archers --force-cpu --device cuda", ["--force-cpu", "cuda"]),
        ("train archers --set lanes", ["'lanes'", "name=value"]),
        ("train archers --config nowhere.yaml", ["cannot read nowhere.yaml"]),
        ("train archers --opponent intermediat", ["intermediat", 'Did you mean "intermediate"?']),
        ("train archers --option playrs=3", ['Did you mean "players"?']),
        ("train archers --algorithm pp", ["'ppo'", "got 'pp'"]),
        ("train archers extra", ["extra"]),
        ("train --resume nowhere", ["no run 'nowhere'"]),
        ("evaluate nowhere", ["no run 'nowhere'"]),
        ("replay show", ["replay"]),
        ("replay list --runs-dir nowhere", ["nowhere/gymcast.db"]),
        ("envs show arcers", ['Did you mean "archers"?']),
        ("sessions list --server nonsense", ["'nonsense'", "http://127.0.0.1:8000"]),
        ("serve --host 0.0.0.0", ["host", "127.0.0.1"]),
        ("serve --max-concurrent-sessions 0", ["--max-concurrent-sessions"]),
    ],
)
def test_bad_input_is_explained(
    arguments: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(*arguments.split())
    for part in parts:
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused(
        "train", "archers", "--minutes", "-1", "--lanes", "0", "--map", "towr", "--set", "evaluation_gmes=3",
        "--set", "evaluation_opponents=[\"exprt\"]",
    )  # fmt: skip
    assert "max_minutes: input should be greater than 0, got -1.0" in text
    assert "parallel_episodes: input should be greater than or equal to 1, got 0" in text
    assert 'Did you mean "tower"?' in text
    assert "evaluation_gmes: unknown field; did you mean 'evaluation_games'?" in text
    assert "'exprt'; did you mean 'expert'?" in text


def test_a_server_that_is_not_there_is_exit_code_1(free_port: int) -> None:
    with pytest.raises(UserError) as caught:
        cli.run(["sessions", "list", "--server", f"http://127.0.0.1:{free_port}"])
    assert caught.value.exit_code == 1
    assert "gymcast serve" in str(caught.value)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_underscores_and_hyphens_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hyphens = refused("train", "archers", "--total-timesteps", "0", "--learning-rate", "-1", "--evaluation-games", "-1")
    underscores = refused(
        "train", "archers", "--total_timesteps", "0", "--learning_rate", "-1", "--evaluation_games", "-1"
    )
    assert "total_timesteps" in hyphens
    assert hyphens == underscores


def test_envs_that_are_no_batches_are_listed_and_tell_of_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["envs", "list"]) == 0
    assert "gymcast/Vault-v0" in capsys.readouterr().out
    assert cli.run(["envs", "show", "vault"]) == 0
    shown = capsys.readouterr().out
    assert "Discrete(4)" in shown and "## Rewards" in shown and "gymcast train gymcast/Vault-v0" in shown
    assert cli.run(["envs", "show", "CartPole-v1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["action_space"] == "Discrete(2)" and "pole" in facts["description"]


def test_envs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["envs", "list", "--json"]) == 0
    (archers,) = [game for game in json.loads(capsys.readouterr().out) if game["name"] == "archers"]
    assert archers["id"] == "gymcast/Archers-v0"
    assert "tower" in archers["options"]["map"]["choices"]


def test_values_become_settings(tmp_path: Path) -> None:
    values = nest(parse_assignments("--set", ["hyperparameters.n-steps=64", "network.hidden=[32, 16]", "seed=none"]))
    assert values == {"hyperparameters": {"n_steps": 64}, "network": {"hidden": [32, 16]}, "seed": None}
    plan = plan_of(tmp_path / "runs", values={**values, "max_minutes": 2.0})
    assert plan.config.hyperparameters["n_steps"] == 64
    assert plan.config.hyperparameters["gamma"] == 0.98  # of the preset
    assert plan.config.network.hidden == (32, 16)
    assert plan.config.max_minutes == 2.0
    assert plan.config.total_timesteps is None  # naming one limit replaces the preset's
    assert plan.run_dir.parent == tmp_path / "runs"
    assert plan.run_dir.name.startswith("cartpole-")
    assert not plan.resume


def test_options_win_over_a_file_and_a_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "env_id": "archers",
                "total_timesteps": 1000,
                "parallel_episodes": 64,
                "env_kwargs": {"map": "pit", "players": 3},
            }
        )
    )
    plan = plan_of(tmp_path, None, config_file=file, values={"max_episodes": 5, "env_kwargs": {"map": "tower"}})
    assert plan.config.env_id == "gymcast/Archers-v0"
    assert plan.config.env_kwargs == {"opponent": "intermediate", "reward": "shaped", "map": "tower", "players": 3}
    assert plan.config.parallel_episodes == 64
    assert (plan.config.max_episodes, plan.config.total_timesteps, plan.config.max_minutes) == (5, None, None)


def test_merging_replaces_values_and_joins_mappings() -> None:
    assert merge({"a": 1, "network": {"x": 1}}, {"a": 2, "network": {"y": 2}}) == {"a": 2, "network": {"x": 1, "y": 2}}


@pytest.mark.parametrize(("text", "value"), [("auto", None), ("8000", 8000), ("1", 1), ("65535", 65535)])
def test_ports(text: str, value: int | None) -> None:
    assert parse_port(text) == value


@pytest.mark.parametrize("text", ["0", "65536", "-1", "eighty", "", "8000.0", "８０００"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(UserError, match="1 to 65535"):
        parse_port(text)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("env_id: CartPole-v1\n")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        plan_of(tmp_path, run_dir=tmp_path / "mine")


def test_runs_are_found_by_path_name_and_age(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(["newest", "middle", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("env_id: CartPole-v1\n")
        os.utime(tmp_path / name / "config.yaml", (1_000_000 - age, 1_000_000 - age))
    assert find_run("latest", tmp_path) == tmp_path / "newest"
    assert find_run("middle", tmp_path) == tmp_path / "middle"
    assert find_run(str(tmp_path / "oldest"), tmp_path / "elsewhere") == tmp_path / "oldest"
    with pytest.raises(UserError, match="did you mean 'middle'"):
        find_run("midle", tmp_path)


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("env_id: CartPole-v1\ntotal_timesteps: 100\n")
    plan = plan_of(tmp_path, None, resume="run", values={"evaluation_games": 7})
    assert plan.run_dir == tmp_path / "run"
    assert not plan.resume
    assert (plan.config.total_timesteps, plan.config.evaluation_games) == (100, 7)


@pytest.mark.parametrize(
    ("game", "more", "text"),
    [
        ("archers", {}, "trains CartPole-v1, not archers"),
        (None, {"values": {"seed": 3}}, "keeps seed as it is"),
        (None, {"run_dir": Path("elsewhere")}, "leave out --config and --run-dir"),
    ],
)
def test_what_a_resumed_run_does_not_take(game: str | None, more: dict[str, object], text: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("env_id: CartPole-v1\n")
    with pytest.raises(UserError, match=text):
        plan_of(tmp_path, game, resume="run", **more)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--lr-schedule", "cosine"), "need --learning-rate"),
        (("--lr-warmup", "0.1"), "need --learning-rate"),
        (("--learning-rate", "0.1", "--lr-schedule", "cubic"), "allowed: constant, linear, cosine, step"),
        (
            ("--learning-rate", "0.1", "--lr-schedule", "step", "--lr-end", "0"),
            "'end' does not belong to a step schedule",
        ),
        (("--gamma", "7", "--batch-size", "0"), "hyperparameters.batch_size: got 0, allowed: an integer >= 2"),
        (("--device", "gpu"), "auto, cpu, cuda, cuda:N or mps"),
        (("--set", "checkpont=3"), "did you mean 'checkpoints_kept'"),
        (("--set", "metricsHzz=3"), "did you mean 'metricsHz'"),
    ],
)
def test_values_that_cannot_be_used_are_refused_before_anything_starts(arguments: tuple[str, ...], text: str) -> None:
    assert text in refused("train", "CartPole-v1", *arguments)


def options_of_train() -> list[Any]:
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


@pytest.mark.parametrize("option", options_of_train(), ids=lambda option: option.opts[0])
def test_every_option_may_be_written_with_hyphens_or_underscores(option: Any, tmp_path: Path) -> None:
    for name in [*option.opts, *option.secondary_opts]:
        if not name.startswith("--") or name == "--help":
            continue
        value = [] if option.is_flag else ["1"]
        for spelling in {name, "--" + name[2:].replace("-", "_")}:
            text = refused("train", "NoSuchGame", spelling, *value)
            assert "no such option" not in text.lower(), spelling


def test_what_a_checkpoint_folder_must_not_be(tmp_path: Path) -> None:
    (tmp_path / "used" / "step-00000000000001").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, text in (("used", "checkpoints of another run"), ("file", "is a file")):
        assert text in refused("train", "CartPole-v1", "--checkpoint-dir", str(tmp_path / name))
    text = refused("train", "--resume", "latest", "--checkpoint-dir", str(tmp_path / "new"))
    assert "leave out --checkpoint-dir" in text


def test_a_browser_is_opened_only_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(variable, raising=False)
    assert not open_browser("http://127.0.0.1:8000/#/session/x")
    script = "from gymcast.server.cli_browser import open_browser; print(open_browser('http://127.0.0.1:8000/#/x'))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "BROWSER": str(browser)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr
    assert opened.read_text().strip() == "http://127.0.0.1:8000/#/x"
