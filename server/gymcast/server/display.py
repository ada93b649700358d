"""The terminal's picture of a training run: a live panel, plain lines, JSON lines, and the summary at the end."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gymcast.server.cli_view import RunView, clock, sparkline
from gymcast.training.events import EvaluationData

log = logging.getLogger(__name__)

_PLAIN_SECONDS: Final = 10.0
_PIPE_WIDTH: Final = 200
_REFRESH_SECONDS: Final = 0.25
_BAR_WIDTH: Final = 32
_SPARK_WIDTH: Final = 32
_FACT_COLUMNS: Final = 3
_STYLES: Final = {"completed": "green", "failed": "bold red", "cancelled": "yellow", "stopping": "yellow"}


class Display(Protocol):
    """One way to show a run. ``start`` prints the page's address before anything else."""

    def start(self, view: RunView) -> None:
        """Show where the page and the run are, and begin."""

    def update(self) -> None:
        """The view has changed, or time has passed."""

    def note(self, text: str) -> None:
        """Show one line that stays."""

    def finish(self) -> None:
        """Show the summary."""

    def close(self) -> None:
        """Leave the terminal as it was found; may be called at any time, and twice."""


def make_display(kind: str) -> Display:
    """``live`` for a terminal, ``plain``, ``json``, or ``quiet`` (address and summary only)."""
    if kind == "live":
        return GuardedDisplay(LiveDisplay(), _drop_output)
    if kind == "json":
        return GuardedDisplay(JsonDisplay(), _drop_output)
    return GuardedDisplay(PlainDisplay(progress=kind != "quiet"), _drop_output)


def _drop_output() -> None:
    """Send standard output nowhere: what is still buffered must not fail again when the interpreter flushes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class GuardedDisplay:
    """A display that may fail: then the reason goes to the log, nothing more is shown, and the training goes on."""

    def __init__(self, display: Display, given_up: Callable[[], None] | None = None) -> None:
        self._display: Display | None = display
        self._given_up = given_up

    def start(self, view: RunView) -> None:
        """As the display does."""
        self._try(lambda display: display.start(view))

    def update(self) -> None:
        """As the display does."""
        self._try(lambda display: display.update())

    def note(self, text: str) -> None:
        """As the display does."""
        self._try(lambda display: display.note(text))

    def finish(self) -> None:
        """As the display does."""
        self._try(lambda display: display.finish())

    def close(self) -> None:
        """As the display does."""
        self._try(lambda display: display.close())

    def _try(self, action: Callable[[Display], None]) -> None:
        display = self._display
        if display is None:
            return
        try:
            action(display)
        except Exception as error:  # noqa: BLE001 - whatever a terminal, a pipe or a drawing fault brings up
            self._display = None
            log.warning("nothing more is shown, the training goes on: %s: %s", type(error).__name__, error)
            if isinstance(error, OSError) and self._given_up is not None:
                self._given_up()


class _Terminal(Console):
    """Rich's console, which by itself ends the process when the reader of its output has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the reader of the output has gone")


class LiveDisplay:
    """A panel that redraws itself in place."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else _Terminal(highlight=False)
        self._view: RunView | None = None
        self._live: Live | None = None
        self._next = 0.0
        self._warnings_shown = 0

    def start(self, view: RunView) -> None:
        """Print the address, then draw until :meth:`finish`."""
        self._view = view
        print_start(self.console, view)
        self._live = Live(
            get_renderable=lambda: render(view, self.console),
            console=self.console,
            # Drawn by update() and not by a thread, in which a broken terminal would raise unseen.
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)

    def update(self) -> None:
        """Print warnings above the panel and draw it again, a few times a second at most."""
        if self._view is not None:
            for text in self._view.warnings[self._warnings_shown :]:
                self.console.print(Text(f"warning: {text}", style="yellow"))
            self._warnings_shown = len(self._view.warnings)
        if self._live is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _REFRESH_SECONDS
            self._live.refresh()

    def note(self, text: str) -> None:
        """A line above the panel."""
        self.console.print(Text(text, style="bold"))

    def finish(self) -> None:
        """Take the panel away and print the summary."""
        self.close()
        if self._view is not None:
            self.update()
            print_summary(self.console, self._view)

    def close(self) -> None:
        """Take the panel away and show the cursor again."""
        if self._live is not None:
            self._live.stop()


class PlainDisplay:
    """Lines for a log file: one about every ten seconds, and one whenever the activity changes."""

    def __init__(self, *, progress: bool = True, console: Console | None = None) -> None:
        self.console = console if console is not None else _Terminal(highlight=False, soft_wrap=True)
        self._progress = progress
        self._view: RunView | None = None
        self._next = 0.0
        self._state = ("", False)
        self._warnings_shown = 0
        self._evaluations_shown: set[str] = set()

    def start(self, view: RunView) -> None:
        """Print the address."""
        self._view = view
        print_start(self.console, view)
        self._flush()

    def update(self) -> None:
        """Print what is new."""
        view = self._view
        if view is None:
            return
        for text in view.warnings[self._warnings_shown :]:
            self.note(f"warning: {text}")
        self._warnings_shown = len(view.warnings)
        if not self._progress:
            return
        for opponent, found in view.evaluations.items():
            if opponent not in self._evaluations_shown:
                self._evaluations_shown.add(opponent)
                self.note(f"{clock(view.elapsed)}  {evaluation_text(found)}")
        # The first numbers are worth a line of their own: until they come nobody knows whether it runs.
        state = (view.activity, view.learning and view.metrics is not None)
        if state != self._state or time.monotonic() >= self._next:
            self._state = state
            self._next = time.monotonic() + _PLAIN_SECONDS
            self.note(view.plain_line())

    def note(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)
        self._flush()

    def finish(self) -> None:
        """Print the summary."""
        if self._view is not None:
            self.update()
            print_summary(self.console, self._view)
            self._flush()

    def close(self) -> None:
        """Nothing to put back."""

    def _flush(self) -> None:
        self.console.file.flush()


class JsonDisplay:
    """One JSON object per line: ``started``, ``progress`` every ten seconds, ``evaluation``, ``note``, ``summary``."""

    def __init__(self) -> None:
        self._view: RunView | None = None
        self._next = 0.0
        self._evaluations_shown: set[str] = set()
        self._warnings_shown = 0

    def start(self, view: RunView) -> None:
        """``started`` with the page's address."""
        self._view = view
        self._print("started", {"page": view.page_url, "session_id": view.session_id, "run_dir": view.run_dir})

    def update(self) -> None:
        """``warning``, ``evaluation`` and ``progress`` lines."""
        view = self._view
        if view is None:
            return
        for text in view.warnings[self._warnings_shown :]:
            self._print("warning", {"message": text})
        self._warnings_shown = len(view.warnings)
        for opponent, found in view.evaluations.items():
            if opponent not in self._evaluations_shown:
                self._evaluations_shown.add(opponent)
                self._print("evaluation", found.to_json())
        if time.monotonic() >= self._next and view.metrics is not None:
            self._next = time.monotonic() + _PLAIN_SECONDS
            position = {"status": view.status, "phase": view.phase, "progress": view.progress}
            self._print("progress", {**position, "metrics": view.metrics.to_json()})

    def note(self, text: str) -> None:
        """A ``note`` line."""
        self._print("note", {"message": text})

    def finish(self) -> None:
        """The ``summary`` line."""
        if self._view is not None:
            self.update()
            self._print("summary", self._view.summary())

    def close(self) -> None:
        """Nothing to put back."""

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        print(json.dumps({"event": event, **fields}), file=sys.stdout, flush=True)


def make_table(*headings: str) -> Table:
    """A table without lines whose cells are never broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print to standard output; into a pipe or a file every line in full."""
    wide = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, width=wide).print(table)


def print_start(console: Console, view: RunView) -> None:
    """The page's address first, then what is trained and where its files are."""
    for label, value, style in (
        ("Watch", view.page_url, "bold cyan"),
        ("Train", view.title, ""),
        ("Files", view.run_dir, ""),
    ):
        console.print(Text.assemble((f"{label}  ", "dim"), (value, style)), soft_wrap=True)


def render(view: RunView, console: Console) -> RenderableType:
    """The live panel. The page's address stays in it, so that it is in view however long the run takes."""
    ascii_only = console.options.ascii_only
    head = Table.grid(padding=(0, 2))
    counting = view.learning and view.eta_seconds is not None
    left = f"{clock(view.eta_seconds or 0)} left" if counting else f"{clock(view.elapsed)} so far"
    head.add_row(
        ProgressBar(
            total=1.0, completed=view.progress, width=_BAR_WIDTH, pulse=view.progress == 0.0 and not view.ended
        ),
        Text(f"{view.progress:4.0%}"),
        Text(left, style="bold"),
    )
    rows: list[RenderableType] = [Text(view.activity, style=_STYLES.get(view.status, "bold")), head]
    if facts := view.facts():
        rows.append(_fact_grid(facts))
    if len(view.rewards) > 1:
        line = sparkline(list(view.rewards), _SPARK_WIDTH, ascii_only=ascii_only)
        rows.append(Text.assemble(("reward over time    ", "dim"), (line, "cyan")))
    if len(view.win_rates) > 1:
        line = sparkline(list(view.win_rates), _SPARK_WIDTH, 0.0, 100.0, ascii_only=ascii_only)
        rows.append(Text.assemble(("win rate over time  ", "dim"), (line, "green")))
    rows.extend(Text(evaluation_text(found)) for found in view.evaluations.values())
    rows.append(Text.assemble(("Watch  ", "dim"), (view.page_url, "bold cyan")))
    rows.append(Text("Ctrl-C saves a checkpoint and stops", style="dim"))
    return Padding(Group(*rows), (1, 0, 0, 0))


def _fact_grid(facts: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for start in range(0, len(facts), _FACT_COLUMNS):
        cells: list[Text] = []
        for label, value in facts[start : start + _FACT_COLUMNS]:
            cells += [Text(label, style="dim"), Text(value, style="bold", justify="right")]
        grid.add_row(*cells)
    return grid


def evaluation_text(found: EvaluationData) -> str:
    """``beat intermediate in 93.1 % of 1,000 games (95 % interval 91.4 to 94.5)``."""
    if found.win_rate is None:
        return f"mean return {found.mean_return:.3f} over {found.games:,} episodes"
    interval = (
        f" (95 % interval {found.ci_low:.1f} to {found.ci_high:.1f})"
        if found.ci_low is not None and found.ci_high is not None
        else ""
    )
    against = f" against {found.opponent}" if found.opponent else ""
    return f"won {found.win_rate:.1f} % of {found.games:,} games{against}{interval}"


def evaluation_table(evaluations: list[EvaluationData]) -> Table:
    """Win rates with their intervals, one row per opponent."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("opponent", "win rate", "95 % interval", "wins", "losses", "draws", "games", "mean return"):
        table.add_column(name, justify="left" if name == "opponent" else "right", no_wrap=True)
    for found in evaluations:
        known = found.win_rate is not None and found.ci_low is not None and found.ci_high is not None
        table.add_row(
            found.opponent or "(none)",
            f"{found.win_rate:.1f} %" if found.win_rate is not None else "-",
            f"{found.ci_low:.1f} - {found.ci_high:.1f} %" if known else "-",
            *((f"{count:,}" if known else "-") for count in (found.wins, found.losses, found.draws)),
            f"{found.games:,}",
            f"{found.mean_return:.3f}",
        )
    return table


def print_summary(console: Console, view: RunView) -> None:
    """How it ended, what the bot can do, where everything is, and how to go on."""
    console.print()
    outcome = Text(view.activity[:1].upper() + view.activity[1:], style=_STYLES.get(view.status, "bold"))
    outcome.append(
        f"  {view.episodes:,} episodes, {view.timesteps:,} decisions in {clock(view.elapsed)}", style="default"
    )
    console.print(outcome, soft_wrap=True)
    if view.reason and view.status != "completed":
        console.print(Text.assemble((f"{'Reason':<11}", "dim"), view.reason), soft_wrap=True)
    if view.evaluations:
        console.print(evaluation_table(list(view.evaluations.values())))
    lines = []
    if restarts := view.extra("worker_restarts"):
        failed = view.extra("episodes_failed") or 0
        lines.append(("Restarts", f"{restarts:,.0f} of workers; {failed:,.0f} episodes cut short count in no average"))
    if view.checkpoint is not None:
        lines.append(("Checkpoint", f"{view.run_dir}/{view.checkpoint.path}"))
    if view.replay_id is not None:
        lines.append(("Replay", f"{view.replay_id}   (gymcast replay show {view.replay_id})"))
    if view.status == "failed":
        lines.append(("Log", f"{view.run_dir}/worker.log"))
    lines.append(("Page", view.page_url))
    if view.checkpoint is not None or view.status == "cancelled":
        lines.append(("Go on", view.go_on_command()))
    if view.checkpoint is not None:
        lines.append(("Measure", f"gymcast evaluate {view.run_dir}"))
    for label, value in lines:
        console.print(Text.assemble((f"{label:<11}", "dim"), value), soft_wrap=True)
