"""``gymcast replay`` on the episode log of a run: listing, one episode, and playing many of them again."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gymcast.server.cli_environment import import_packages_of
from gymcast.server.cli_errors import EXIT_FAILED, UserError
from gymcast.server.cli_plan import find_run

if TYPE_CHECKING:
    from gymcast.envs import EpisodeLog, LoggedEpisode, Replay

_NAMED: Final = ("newest", "oldest", "best", "worst", "longest", "shortest")
_ONE_EPISODE: Final = re.compile(rf"(.+):(?:(\d{{1,6}}):(\d{{1,15}})|({'|'.join(_NAMED)}))")
_TEXT_WIDTH: Final = 42
_FAILURES_SHOWN: Final = 5


@dataclass(frozen=True)
class RunLog:
    """The episode log of a run."""

    run: Path
    log: EpisodeLog

    def name_of(self, episode: LoggedEpisode) -> str:
        """What show, verify and export take."""
        return f"{self.run.name}:{episode.lane}:{episode.start}"


def open_log(run: str, runs_dir: Path) -> RunLog:
    """The log of a run given by its folder, its name or latest. Raises :class:`UserError` without one."""
    from gymcast.envs import EpisodeLog
    from gymcast.envs.episode_log import FOLDER

    folder = find_run(run, runs_dir)
    import_packages_of(folder)
    log = EpisodeLog(folder / FOLDER)
    if not len(log):
        damage = f" ({'; '.join(log.problems)})" if log.problems else ""
        raise UserError(
            f"{folder} has no logged episodes{damage}: none has ended yet, or it was trained with replays_kept=0 or "
            "by an older gymcast",
            EXIT_FAILED,
        )
    return RunLog(folder, log)


def is_logged(wanted: str) -> bool:
    """Whether ``wanted`` has the form RUN:LANE:START or RUN:best and the like."""
    return _ONE_EPISODE.fullmatch(wanted) is not None


def load_logged(wanted: str, runs_dir: Path) -> tuple[dict[str, Any], Replay]:
    """Facts and replay of RUN:LANE:START, or of RUN:newest, RUN:best and the like. Raises :class:`UserError`."""
    from gymcast.envs import ReplayError

    match = _ONE_EPISODE.fullmatch(wanted)
    assert match is not None, "is_logged() was asked before"
    found = open_log(match[1], runs_dir)
    try:
        if match[4]:
            (episode,) = found.log.select(order=match[4], limit=1)  # type: ignore[arg-type]
        else:
            episode = found.log.find(int(match[2]), int(match[3]))
        return {"replay_id": found.name_of(episode), **episode.to_json()}, found.log.replay(episode)
    except (ReplayError, OSError) as error:
        raise UserError(str(error), EXIT_FAILED) from None


def list_logged(
    run: str, runs_dir: Path, *, lane: int | None, outcome: str | None, order: str, limit: int
) -> tuple[RunLog, list[dict[str, Any]]]:
    """Episodes of a run's log as they are listed."""
    found = open_log(run, runs_dir)
    episodes = found.log.select(lane=lane, outcome=outcome, order=order, limit=limit)  # type: ignore[arg-type]
    return found, [{"replay_id": found.name_of(episode), **episode.to_json()} for episode in episodes]


def verify_run(run: str, runs_dir: Path, *, count: int, seed: int | None) -> dict[str, Any]:
    """Play ``count`` random episodes of a run again: how many there are, were played, and what differed.

    Compared are length, return (every bit), outcome and a hash of the last observations.
    """
    from gymcast.envs import ReplayError, verify_replay

    found = open_log(run, runs_dir)
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    everything = found.log.select(order="oldest")
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    failures: list[dict[str, str]] = []
    decisions = 0
    for episode in chosen:
        try:
            result = verify_replay(found.log.replay(episode))
            decisions += result["length"]
            if result["length"] != episode.length:
                raise ReplayError(f"this replay has {episode.length} decisions and ends after {result['length']}.")
        except (ReplayError, OSError) as error:
            failures.append({"replay_id": found.name_of(episode), "reason": str(error)})
    return {
        "run": str(found.run),
        "episodes": len(everything),
        "seed": seed,
        "played": len(chosen),
        "decisions": decisions,
        "same": len(chosen) - len(failures),
        "failures": failures,
    }


def describe_verification(found: dict[str, Any]) -> str:
    """The result of :func:`verify_run` in words."""
    lines = [
        f"{found['run']}: {found['played']:,} of {found['episodes']:,} logged episodes played again "
        f"(chosen by seed {found['seed']}), {found['decisions']:,} decisions",
        f"  {found['same']:,} ended as recorded: length, return to the last bit, outcome, last observations",
    ]
    if found["failures"]:
        lines.append(f"  {len(found['failures']):,} DIFFER or cannot be played:")
        lines += [f"    {one['replay_id']}: {one['reason']}" for one in found["failures"][:_FAILURES_SHOWN]]
        if len(found["failures"]) > _FAILURES_SHOWN:
            lines.append(f"    and {len(found['failures']) - _FAILURES_SHOWN:,} more")
    return "\n".join(lines)


def text_sheet(replay: Replay, count: int) -> str:
    """``count`` moments of an episode as text, side by side as the terminal allows; empty where there is no text."""
    from gymcast.envs import GAMES
    from gymcast.envs.replay_player import frames_per_second, replay_texts
    from gymcast.server.replay_export import moments

    if count == 0 or replay.env_id not in GAMES:
        return ""
    fps = frames_per_second(replay)
    shots = []
    for number, text in replay_texts(replay, set(moments(len(replay.actions), count))):
        shots.append([f"decision {number}, {number / fps:.1f} s", *text.rstrip("\n").split("\n")])
    columns = max(1, shutil.get_terminal_size().columns // _TEXT_WIDTH)
    blocks = []
    for first in range(0, len(shots), columns):
        rows = zip(*shots[first : first + columns], strict=True)
        blocks.append("\n".join("".join(cell.ljust(_TEXT_WIDTH) for cell in row).rstrip() for row in rows))
    return "\n\n".join(blocks)
