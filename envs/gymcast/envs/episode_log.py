"""The log of every episode of a run: a folder of segments, listed quickly and played again one episode at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.envs.replay import Replay, ReplayError
from gymcast.envs.segments import NO_COUNT, PATTERN, Block, BlockPlace, Segment, read_segment
from gymcast.envs.vector import OUTCOMES

FOLDER: Final = "episodes"
"""Name of the log within a run folder."""
Order = Literal["newest", "oldest", "best", "worst", "longest", "shortest"]
ORDERS: Final[dict[Order, tuple[str, bool]]] = {
    "newest": ("end", True),
    "oldest": ("end", False),
    "best": ("return", True),
    "worst": ("return", False),
    "longest": ("length", True),
    "shortest": ("length", False),
}
"""Orders of a listing: the field of the index and whether the largest comes first."""

_INDEX = np.dtype(
    [
        ("segment", "<i4"),
        ("row", "<i4"),
        ("lane", "<i4"),  # first lane of the game
        ("start", "<i8"),
        ("end", "<i8"),
        ("length", "<i4"),
        ("return", "<f8"),
        ("outcome", "i1"),
        ("whole", "?"),
    ]
)


@dataclass(frozen=True)
class LoggedEpisode:
    """One finished episode. Places are counted in decisions since the run began, all lanes together.

    `returns`, `outcomes` ("win", "draw", "loss"), `kills` and `deaths` have an entry for each recorded seat, None where
    the environment knows of no such thing; `seat` is that of `lane`. `check` is a hash of the last observations.
    """

    env_id: str
    version: int
    options: dict[str, Any]
    lane: int
    seat: int
    seed: int
    episode: int
    start: int
    end: int
    length: int
    seconds: float | None
    returns: tuple[float, ...]
    outcomes: tuple[str | None, ...]
    kills: tuple[int | None, ...]
    deaths: tuple[int | None, ...]
    check: str
    extras: EnvExtras = NO_EXTRAS

    def summary(self) -> dict[str, Any]:
        """What it came to for the seat of its lane, and `returns` and `check` to the last bit."""
        found: dict[str, Any] = {
            "return": round(self.returns[0], 6),
            "length": self.length,
            "returns": list(self.returns),
            "check": self.check,
        }
        known = {
            "seconds": self.seconds,
            "outcome": self.outcomes[0],
            "kills": self.kills[0],
            "deaths": self.deaths[0],
        }
        return found | {name: value for name, value in known.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """For a listing."""
        return {
            "lane": self.lane,
            "start": self.start,
            "end": self.end,
            "env_id": self.env_id,
            "seed": self.seed,
            "episode": self.episode,
            "length": self.length,
            "seconds": self.seconds,
            "return": self.returns[self.seat],
            "outcome": self.outcomes[self.seat],
            "kills": self.kills[self.seat],
            "deaths": self.deaths[self.seat],
        }


class EpisodeLog:
    """Reads the log in `folder`, also while it is being written; `refresh` looks for what is new.

    An episode is listed when all its actions are still there: neither begun in a segment that was deleted nor with a
    gap in it. `problems` says which files could not be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._segments: list[Segment] = []
        self._known: dict[Path, tuple[tuple[int, int], Segment]] = {}
        self._index = np.zeros(0, _INDEX)
        self.refresh()

    def refresh(self) -> None:
        """Read what is there now; files that did not change are not read again."""
        self.problems = []
        known: dict[Path, tuple[tuple[int, int], Segment]] = {}
        for path in segment_paths(self.folder):
            try:
                facts = path.stat()
                stamp = (facts.st_size, facts.st_mtime_ns)
                before = self._known.get(path)
                known[path] = before if before and before[0] == stamp else (stamp, read_segment(path))
            except FileNotFoundError:
                continue  # pruned meanwhile
            except (ReplayError, OSError) as error:
                self.problems.append(str(error))
        self._known = known
        self._segments = [segment for _, segment in known.values()]
        self._index = _index_of(self._segments)

    def __len__(self) -> int:
        """Whole episodes."""
        return int(self._index["whole"].sum())

    @property
    def decisions(self) -> int:
        """Decisions in the log."""
        return sum(block.steps * s.header.lanes for s in self._segments for block in s.blocks)

    @property
    def end(self) -> int:
        """Place after the last decision; 0 in an empty log."""
        return self._segments[-1].end if self._segments else 0

    @property
    def bytes(self) -> int:
        """Size of the files, as far as they are whole."""
        return sum(segment.size for segment in self._segments)

    def select(
        self,
        *,
        lane: int | None = None,
        outcome: str | None = None,
        order: Order = "newest",
        limit: int | None = None,
        offset: int = 0,
        until: int | None = None,
    ) -> list[LoggedEpisode]:
        """Whole episodes of one lane or all games, with one outcome ("win", "draw", "loss") or any, in an order.

        `until` leaves out what ended behind a place, so that the pages of a listing fit each other in a growing log.
        """
        per_game = self._segments[-1].header.lanes_per_game if self._segments else 1
        wanted = self._index["whole"].copy()
        if until is not None:
            wanted &= self._index["end"] <= until
        if lane is not None:
            wanted &= self._index["lane"] == lane - lane % per_game
        seat = 0 if lane is None else lane % per_game
        rows = self._index[wanted]
        if seat:  # seen from another seat than the index is
            rows = rows.copy()
            for row in rows:
                facts = self._segments[row["segment"]].episodes[row["row"]]
                row["return"], row["outcome"] = facts["returns"][seat], facts["outcomes"][seat]
        if outcome is not None:
            rows = rows[rows["outcome"] == _OUTCOME_NUMBERS[outcome]]
        name, largest_first = ORDERS[order]
        places = np.lexsort((rows["end"], -rows[name] if largest_first else rows[name]))
        stop = None if limit is None else offset + limit
        return [self._episode(rows[i], seat) for i in places[offset:stop]]

    def find(self, lane: int, start: int) -> LoggedEpisode:
        """The episode that `lane` began at a place of the log; raises ReplayError when it is not there whole."""
        per_game = self._segments[-1].header.lanes_per_game if self._segments else 1
        index = self._index
        found = index[index["whole"] & (index["start"] == start) & (index["lane"] == lane - lane % per_game)]
        if not len(found):
            kept = f"it has {len(self):,} episodes" if len(self) else "it is empty"
            raise ReplayError(
                f"the log in {self.folder} has no whole episode of lane {lane} that began at {start}: it never was, "
                f"has not ended yet, or made room for newer ones ({kept})."
            )
        return self._episode(found[0], lane % per_game)

    def replay(self, episode: LoggedEpisode) -> Replay:
        """The episode with its actions, as they were played; raises ReplayError when they are damaged, OSError."""
        parts: list[NDArray[Any]] = []
        for segment in self._segments:
            header = segment.header
            game = (episode.lane // header.lanes_per_game) * header.seats
            for block in segment.blocks:
                if block.first >= episode.end or segment.end_of(block) <= episode.start:
                    continue
                begin = max(0, (episode.start - block.first) // header.lanes)
                stop = min(block.steps, (episode.end - block.first) // header.lanes)
                parts.append(segment.read_actions(block)[begin:stop, game : game + header.seats])
        actions = np.concatenate(parts)
        if len(actions) != episode.length:
            raise ReplayError(f"the log has {len(actions)} of the {episode.length} decisions of this episode.")
        return Replay(
            episode.env_id,
            episode.version,
            episode.options,
            episode.seed,
            episode.episode,
            actions,
            episode.summary(),
            episode.extras,
        )

    def _episode(self, row: np.void, seat: int) -> LoggedEpisode:
        segment = self._segments[row["segment"]]
        facts, header = segment.episodes[row["row"]], segment.header
        seconds = None if header.decision_seconds is None else round(int(row["length"]) * header.decision_seconds, 3)
        return LoggedEpisode(
            header.env_id,
            header.version,
            header.options,
            int(row["lane"]) + seat,
            seat,
            int(facts["seed"]),
            int(facts["episode"]),
            int(row["start"]),
            int(row["end"]),
            int(row["length"]),
            seconds,
            tuple(float(value) for value in facts["returns"]),
            tuple(OUTCOMES.get(int(value)) for value in facts["outcomes"]),
            _counts(facts["kills"]),
            _counts(facts["deaths"]),
            f"{int(facts['check']):016x}",
            header.extras,
        )


_OUTCOME_NUMBERS: Final = {name: number for number, name in OUTCOMES.items()}


def _counts(column: NDArray[np.int32]) -> tuple[int | None, ...]:
    return tuple(None if value == NO_COUNT else int(value) for value in column)


def _index_of(segments: list[Segment]) -> NDArray[np.void]:
    tables = [np.zeros(0, _INDEX)]
    before: Segment | None = None
    unbroken = 0  # place since which nothing is missing
    for number, segment in enumerate(segments):
        if before is None or before.end != segment.header.first or not _same_games(before, segment):
            unbroken = segment.header.first
        since, unbroken = _unbroken_since(segment, unbroken)
        rows, header = segment.episodes, segment.header
        table = np.zeros(len(rows), _INDEX)
        table["segment"], table["row"] = number, np.arange(len(rows))
        table["lane"] = rows["game"] * header.lanes_per_game
        table["end"], table["length"] = rows["end"], rows["length"]
        table["start"] = rows["end"] - rows["length"].astype(np.int64) * header.lanes
        table["return"], table["outcome"] = rows["returns"][:, 0], rows["outcomes"][:, 0]
        table["whole"] = table["start"] >= since
        tables.append(table)
        before = segment
    return np.concatenate(tables)


def _unbroken_since(segment: Segment, unbroken: int) -> tuple[NDArray[np.int64], int]:
    """For each episode of a segment since which place nothing is missing before its end; the same at the end."""
    since = []
    place = segment.header.first
    for block in segment.blocks:
        if block.first != place:
            unbroken = block.first
        since.append(unbroken)
        place = segment.end_of(block)
    return np.repeat(np.array(since, np.int64), [block.ended for block in segment.blocks]), unbroken


def _same_games(a: Segment, b: Segment) -> bool:
    names = ("env_id", "version", "options", "lanes", "games", "seats", "codec", "extras")
    return all(getattr(a.header, name) == getattr(b.header, name) for name in names)


# ------------------------------------------------------------------------------------------------- what a writer does


def segment_paths(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(folder.glob(PATTERN))


def next_segment_path(folder: Path) -> Path:
    """The name of the next file."""
    paths = segment_paths(folder)
    number = int(paths[-1].stem.rsplit("-", 1)[1]) + 1 if paths else 1
    return folder / f"segment-{number:08d}.log"


def cut(folder: Path, place: int) -> None:
    """Remove everything at and behind a place, newest first, and what is torn or unreadable at the end.

    A run that goes on from a checkpoint plays again what came after it: nothing may be in the log twice. Killed at any
    moment, this leaves a log that is whole up to some place at or behind `place`. Raises OSError.
    """
    for path in reversed(segment_paths(folder)):
        try:
            segment = read_segment(path)
        except ReplayError:
            path.unlink()
            continue
        kept = [block for block in segment.blocks if segment.end_of(block) <= place]
        straddling = next((b for b in segment.blocks if b.first < place < segment.end_of(b)), None)
        if not kept and straddling is None:
            path.unlink()
            continue
        end = kept[-1].offset + kept[-1].size if kept else segment.blocks[0].begin
        begun = _begun(segment, straddling, place) if straddling else None
        os.truncate(path, end)
        if begun is not None:
            with open(path, "ab") as file:
                file.write(begun)
        return


def _begun(segment: Segment, block: BlockPlace, place: int) -> bytes | None:
    """The steps of a block that lie before a place, as a block of their own; None when they are damaged."""
    steps = (place - block.first) // segment.header.lanes
    episodes = segment.episodes[(segment.episodes["end"] > block.first) & (segment.episodes["end"] <= place)]
    try:
        actions = segment.read_actions(block)[:steps]
    except ReplayError:
        return None
    return Block(block.first, actions, episodes).to_bytes(segment.header.codec) if steps else None


def prune(folder: Path, *, max_bytes: int | None, kept: int | None) -> None:
    """Delete whole files, oldest first, while the log takes more than `max_bytes`, or has `kept` episodes without them.

    The newest file always stays. Raises OSError.
    """
    paths = segment_paths(folder)
    sizes = {path: path.stat().st_size for path in paths}
    counts = {path: _count(path) if kept is not None else 0 for path in paths}
    total, episodes = sum(sizes.values()), sum(counts.values())
    for path in paths[:-1]:
        too_large = max_bytes is not None and total > max_bytes
        too_many = kept is not None and episodes - counts[path] >= kept
        if not too_large and not too_many:
            return
        path.unlink()
        total, episodes = total - sizes[path], episodes - counts[path]


def _count(path: Path) -> int:
    try:
        return len(read_segment(path).episodes)
    except ReplayError:
        return 0
