"""What the terminal shows of a run, from the same messages the storage hands to its listeners."""

from __future__ import annotations

import io
import json
import logging
import resource
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from gymcast.server import display as display_module
from gymcast.server.cli_run import StorageTrouble
from gymcast.server.cli_view import RunView, clock, sparkline
from gymcast.server.display import GuardedDisplay, JsonDisplay, LiveDisplay, PlainDisplay, render
from gymcast.training.events import (
    CheckpointData,
    ErrorData,
    EvaluationData,
    Event,
    Message,
    TrainingMetricsData,
    event_type_of,
)
from gymcast.training.storage import Committed, Storage, StorageError

URL = "http://127.0.0.1:8000/#/session/abc"


def tell(view: RunView, *messages: Message) -> None:
    """What the view hears when these messages are committed."""
    events = [
        Event.model_validate({"seq": seq, "ts": datetime.now(UTC), "type": event_type_of(data), "data": data})
        for seq, data in enumerate(messages, 1)
    ]
    view.apply(Committed("abc", None, tuple(events)))


def metrics(win_rate: float | None = 62.5) -> TrainingMetricsData:
    return TrainingMetricsData(
        episode=1234,
        total_episodes=None,
        current_reward=0.5,
        average_reward=0.25,
        best_reward=2.0,
        episode_length=100,
        win_rate=win_rate,
        learning_rate=0.001,
        algorithm="PPO",
        training_time_elapsed=60.0,
        extra={
            "samples_per_second": 81234.4,
            "game_seconds_per_second": 6498.7,
            "value_loss": 0.03125,
            "epoch": 17,
            "wins": 700,
            "losses": 500,
            "draws": 34,
        },
    )


def evaluation(opponent: str) -> EvaluationData:
    return EvaluationData(
        opponent=opponent, games=1000, wins=930, losses=60, draws=10, win_rate=93.0, ci_low=91.25, ci_high=94.5,
        mean_return=2.5, mean_length=120.0,
    )  # fmt: skip


@pytest.fixture
def view() -> RunView:
    found = RunView(title="archers", page_url=URL, run_dir="runs/archers 1", more="--minutes 3")
    found.status, found.phase, found.progress, found.eta_seconds = "running", "training", 0.5, 90.0
    return found


def shown(view: RunView, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render(view, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_sparkline_spans_its_range_and_averages_what_does_not_fit() -> None:
    assert sparkline([0.0, 50.0, 100.0], 8, 0.0, 100.0) == "▁▅█"
    assert sparkline([0.0, 100.0, 100.0, 100.0], 2, 0.0, 100.0) == "▅█"
    assert sparkline([0.0, 100.0], 2, 0.0, 100.0, ascii_only=True) == "_@"
    assert sparkline([], 8, 0.0, 100.0) == ""
    assert sparkline([-5.0, 0.0, 5.0], 8) == "▁▅█"
    assert sparkline([2.0, 2.0], 8) == "▁▁"


def test_the_panel_always_has_the_address_and_every_fact_that_is_known(view: RunView) -> None:
    assert URL in shown(view)
    tell(view, metrics(50.0), metrics(62.5), evaluation("expert"))
    text = shown(view)
    for part in ("reward over time", "win rate over time", "W/L/D", "700 / 500 / 34", "epoch", " 17"):
        assert part in text
    for part in ("50%", "1:30 left", "81,234", "6,499 x real time", "1,234", "0.250", "62.5 %", "0.031", URL):
        assert part in text
    assert "won 93.0 % of 1,000 games against expert (95 % interval 91.2 to 94.5)" in text
    assert "episodes/min" not in text  # not reported, so not shown


def test_losses_of_actor_and_critic_are_shown_where_there_are_such(view: RunView) -> None:
    reading = metrics(None)
    reading.extra.update({"actor_loss": -12.5, "critic_loss": 0.75})
    tell(view, reading)
    assert "actor loss" in shown(view) and "critic loss 0.750" in view.plain_line() and "-12.500" in view.plain_line()


def test_a_game_without_a_winner_shows_no_win_rate(view: RunView) -> None:
    tell(view, metrics(None), metrics(None))
    assert "win rate" not in shown(view)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_panel_fits_any_width(view: RunView, width: int) -> None:
    tell(view, metrics(10.0), metrics(20.0))
    assert all(len(line) <= width for line in shown(view, width).splitlines())


def test_the_same_trouble_is_told_once_a_minute(view: RunView) -> None:
    full = ErrorData(code="checkpoint_failed", message="checkpoint not written: disk full")
    tell(view, full, full, ErrorData(code="events_dropped", message="3 events found no room"), full)
    assert view.warnings == ["checkpoint not written: disk full", "3 events found no room"]


async def test_a_database_that_refuses_to_store_is_told_in_the_terminal(view: RunView, tmp_path: Path) -> None:
    storage = await Storage.open(f"sqlite:///{tmp_path / 'small.db'}")
    trouble = StorageTrouble(view)
    logging.getLogger("gymcast.training.storage").addHandler(trouble)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # what a full disk does to a writer
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StorageError):
            await storage.create_session(kind="managed", session_id="s", algorithm="ppo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
        logging.getLogger("gymcast.training.storage").removeHandler(trouble)
        await storage.close()
    (told,) = view.warnings
    assert told.startswith("the database does not keep what happens now: a group of writes (1) failed: ")
    assert "\n" not in told


def test_plain_lines_and_summary(view: RunView) -> None:
    out = io.StringIO()
    display = PlainDisplay(console=Console(file=out, width=80, soft_wrap=True, highlight=False))
    display.start(view)
    tell(view, metrics())
    display.update()
    display.update()  # nothing new within ten seconds
    tell(view, evaluation("beginner"))
    saved = CheckpointData(path="checkpoints/step-1", timesteps=9, episodes=3, bytes=5, sha256="0" * 64, reason="final")
    tell(view, saved)
    view.status, view.phase = "completed", ""
    display.finish()
    lines = out.getvalue().splitlines()
    assert lines[0] == f"Watch  {URL}"
    progress = [line for line in lines if "training 50%" in line]
    assert len(progress) == 1
    assert "samples/s 81,234  game time 6,499 x real time" in progress[0]
    assert "win rate 62.5 %" in progress[0]
    text = out.getvalue()
    assert "Checkpoint runs/archers 1/checkpoints/step-1" in text
    assert "Go on      gymcast train --resume 'runs/archers 1' --minutes 3" in text
    assert "beginner    93.0 %  91.2 - 94.5 %   930      60     10  1,000        2.500" in text


def test_the_live_display_puts_the_terminal_back(view: RunView) -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=80))
    display.start(view)
    display.close()
    display.close()
    assert out.getvalue().index(URL) < out.getvalue().index("\x1b[?25l")  # the address before the panel
    assert out.getvalue().rstrip().count("\x1b[?25h") == 1  # the cursor is shown again


def test_json_lines(view: RunView, capsys: pytest.CaptureFixture[str]) -> None:
    display = JsonDisplay()
    display.start(view)
    tell(view, metrics(), evaluation("beginner"))
    display.update()
    display.finish()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["event"] for item in found] == ["started", "evaluation", "progress", "summary"]
    assert found[0]["page"] == URL
    assert found[2]["metrics"]["extra"]["value_loss"] == 0.03125
    assert found[3]["evaluations"][0]["wins"] == 930


class Broken(io.StringIO):
    """A terminal that takes so much and then breaks."""

    def __init__(self, error: Exception, writes: int) -> None:
        super().__init__()
        self.error = error
        self.left = writes

    def write(self, text: str) -> int:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "gone"), OSError(5, "hung up"), ValueError("closed file")])
@pytest.mark.parametrize("writes", [0, 1, 4])
@pytest.mark.parametrize("kind", [LiveDisplay, PlainDisplay])
def test_a_display_that_breaks_is_given_up_once_and_raises_nothing(
    kind: type, error: Exception, writes: int, view: RunView, caplog: pytest.LogCaptureFixture
) -> None:
    console = display_module._Terminal(file=Broken(error, writes), force_terminal=kind is LiveDisplay, width=80)
    display = GuardedDisplay(kind(console=console))
    display.start(view)
    for _ in range(5):
        tell(view, metrics(), ErrorData(code="x", message="a warning"))
        display.update()
        display.note("a note")
    display.finish()
    display.close()
    told = [record for record in caplog.records if "the training goes on" in record.message]
    assert len(told) == 1


def test_the_panel_is_drawn_a_few_times_a_second_at_most(view: RunView) -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=80))
    display.start(view)
    length = len(out.getvalue())
    display.update()
    drawn = len(out.getvalue())
    for _ in range(1000):
        tell(view, metrics())
        display.update()
    display.close()
    assert drawn > length  # the first time at once
    assert len(out.getvalue()) - drawn < 20 * (drawn - length)
