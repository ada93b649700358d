"""The episode log: packed and back, cut at a place, damaged, pruned; listings and whole episodes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gymcast.envs import EpisodeLog, ReplayError
from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.episode_log import cut, next_segment_path, prune, segment_paths
from gymcast.envs.segments import Block, SegmentFile, SegmentHeader, episode_dtype, read_segment

LANES = 6
CODEC = ActionCodec.for_groups((3, 3, 2, 16))
LENGTHS = (3, 5, 4, 7, 2, 6)  # of every episode of each lane


def header(first: int = 0, **changes: Any) -> SegmentHeader:
    values: dict[str, Any] = {
        "env_id": "gymcast/Archers-v0", "version": 0, "options": {"map": "pit"}, "lanes": LANES, "games": LANES,
        "seats": 1, "codec": CODEC, "decision_seconds": 0.08, "first": first,
    }  # fmt: skip
    return SegmentHeader(**{**values, **changes})


def actions_of(step: int) -> NDArray[np.uint8]:
    """The actions of all lanes at a step, (lanes, 4)."""
    random = np.random.default_rng(step)
    return np.stack([random.integers(0, n, LANES) for n in CODEC.sizes], axis=1).astype(np.uint8)


def block(first_step: int, steps: int) -> Block:
    """Steps of a made-up run in which every lane's episodes have a length of their own."""
    rows = []
    for step in range(first_step, first_step + steps):
        for lane, length in enumerate(LENGTHS):
            if (step + 1) % length == 0:
                number = (step + 1) // length - 1
                value, outcome = float(np.sin(step * LANES + lane)), (step + lane) % 3 - 1
                end = (step + 1) * LANES
                rows.append((lane, 70 + lane, number, end, length, step, (value,), (outcome,), (1,), (2,)))
    table = np.array(rows, episode_dtype(1)) if rows else np.zeros(0, episode_dtype(1))
    return Block(first_step * LANES, np.stack([actions_of(s) for s in range(first_step, first_step + steps)]), table)


def write(folder: Path, plan: list[list[tuple[int, int]]]) -> list[Path]:
    """One file for each list of (first step, steps)."""
    folder.mkdir(exist_ok=True)
    for blocks in plan:
        file = SegmentFile(next_segment_path(folder), header(blocks[0][0] * LANES))
        for place in blocks:
            file.append(block(*place))
        file.close()
    return segment_paths(folder)


def all_of(log: EpisodeLog) -> list[tuple[int, int]]:
    return sorted((found.lane, found.episode) for found in log.select())


def expected(steps: int, since: int = 0) -> list[tuple[int, int]]:
    """The whole episodes of steps since .. steps - 1."""
    return [
        (lane, number)
        for lane, length in enumerate(LENGTHS)
        for number in range(steps // length)
        if number * length >= since
    ]


def check_actions(log: EpisodeLog) -> None:
    for found in log.select():
        begin = found.start // LANES
        want = np.stack([actions_of(s)[found.lane] for s in range(begin, begin + found.length)])
        np.testing.assert_array_equal(log.replay(found).actions[:, 0], want)


# -------------------------------------------------------------------------------------------------------------- packing


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from((1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 65_536, 65_537)), min_size=1, max_size=5),
    steps=st.integers(0, 9),
    rows=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_discrete_actions_come_back(sizes: list[int], steps: int, rows: int, seed: int) -> None:
    codec = ActionCodec.for_groups(tuple(sizes))
    random = np.random.default_rng(seed)
    actions = np.stack([random.integers(0, n, (steps, rows)) for n in sizes], axis=2).astype(codec.dtype)
    np.testing.assert_array_equal(codec.unpack(codec.pack(actions), steps, rows), actions)
    assert ActionCodec.from_json(json.loads(json.dumps(codec.to_json()))) == codec


def test_actions_take_as_many_bits_as_they_need() -> None:
    random = np.random.default_rng(0)
    actions = np.stack([random.integers(0, n, (64, 512)) for n in CODEC.sizes], axis=2).astype(np.uint8)
    assert len(CODEC.pack(actions)) < 1.14 * 64 * 512, "2 + 2 + 1 + 4 bits, and no more than their entropy"
    assert len(CODEC.pack(np.zeros_like(actions))) < 400


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_numbers_come_back_to_the_last_bit(dtype: str) -> None:
    codec = ActionCodec.for_floats(5, dtype)
    actions = np.random.default_rng(1).normal(size=(7, 3, 5)).astype(dtype)
    actions[0, 0] = [-0.0, np.finfo(dtype).max, np.finfo(dtype).tiny, 1.0, -1.0]
    assert codec.unpack(codec.pack(actions), 7, 3).tobytes() == actions.tobytes()


@pytest.mark.parametrize("data", [b"", b"no zlib", zlib.compress(b"short"), zlib.compress(bytes(1 << 20))])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        CODEC.unpack(data, 10, 6)


def test_spaces_that_cannot_be_stored_are_told() -> None:
    assert ActionCodec.for_space(spaces.Text(5)) is None
    assert ActionCodec.for_space(spaces.Dict({"a": spaces.Discrete(2)})) is None
    assert ActionCodec.for_space(spaces.Discrete(7, start=-3)) == ActionCodec.for_groups((7,))
    assert ActionCodec.for_space(spaces.MultiBinary((2, 2))) == ActionCodec.for_groups((2, 2, 2, 2))


# ----------------------------------------------------------------------------------------------------- what is in a log


def test_every_whole_episode_is_listed_with_its_actions(tmp_path: Path) -> None:
    write(tmp_path, [[(0, 4), (4, 9)], [(13, 1)], [(14, 16), (30, 10)]])
    log = EpisodeLog(tmp_path)
    assert all_of(log) == expected(40) and len(log) == len(expected(40)) and log.problems == []
    assert log.decisions == 40 * LANES and log.bytes == sum(path.stat().st_size for path in segment_paths(tmp_path))
    check_actions(log)
    found = log.find(3, 7 * LANES)
    assert (found.seed, found.episode, found.length, found.seconds) == (73, 1, 7, 0.56)
    replay = log.replay(found)
    assert (replay.env_id, replay.options, replay.seed, replay.episode) == ("gymcast/Archers-v0", {"map": "pit"}, 73, 1)
    assert replay.summary["returns"] == [float(np.sin(13 * LANES + 3))]


def test_listings_are_filtered_and_ordered(tmp_path: Path) -> None:
    write(tmp_path, [[(0, 40)]])
    log = EpisodeLog(tmp_path)
    assert [found.end for found in log.select(lane=4)] == sorted(
        (found.end for found in log.select(lane=4)), reverse=True
    )
    returns = [found.returns[0] for found in log.select(order="best")]
    assert returns == sorted(returns, reverse=True) and len(returns) == len(log)
    assert [found.returns[0] for found in log.select(order="worst", limit=3)] == returns[::-1][:3]
    assert [found.length for found in log.select(order="longest", limit=5)] == [7] * 5
    assert {found.outcomes for found in log.select(outcome="win")} == {("win",)}
    pages = [found.end for at in range(0, len(log), 7) for found in log.select(limit=7, offset=at)]
    assert pages == [found.end for found in log.select()]
    with pytest.raises(ReplayError, match="no whole episode of lane 1 that began at 7"):
        log.find(1, 7)


def test_what_has_a_gap_in_it_is_not_listed(tmp_path: Path) -> None:
    write(tmp_path, [[(0, 10), (12, 8)], [(20, 10)], [(33, 7)]])
    log = EpisodeLog(tmp_path)
    whole = [
        (lane, number)
        for lane, length in enumerate(LENGTHS)
        for number in range(40 // length)
        if any(number * length >= a and (number + 1) * length <= b for a, b in ((0, 10), (12, 30), (33, 40)))
    ]
    assert all_of(log) == whole
    check_actions(log)


def test_self_play_has_every_seat(tmp_path: Path) -> None:
    """Two games of two seats, both played by the learner: four lanes."""
    table = np.zeros(2, episode_dtype(2))
    table["game"], table["end"], table["length"] = (0, 1), (12, 12), (3, 2)
    table["returns"], table["outcomes"] = ((1.5, -1.5), (0.25, 0.5)), ((1, -1), (0, 0))
    actions = np.arange(3 * 4).reshape(3, 4, 1).astype(np.uint8)
    file = SegmentFile(
        tmp_path / "segment-00000001.log", header(lanes=4, games=2, seats=2, codec=ActionCodec.for_groups((12,)))
    )
    file.append(Block(0, actions, table))
    file.close()
    log = EpisodeLog(tmp_path)
    (loser,) = log.select(lane=1)
    assert (loser.lane, loser.seat, loser.to_json()["return"], loser.to_json()["outcome"]) == (1, 1, -1.5, "loss")
    assert log.select(lane=1, outcome="win") == [] and log.select(lane=0, outcome="win")[0].lane == 0
    np.testing.assert_array_equal(log.replay(loser).actions[..., 0], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(log.replay(log.find(3, 4)).actions[..., 0], [[6, 7], [10, 11]])


# -------------------------------------------------------------------------------------------------- damage and resuming


def test_a_file_cut_at_any_byte_keeps_what_was_whole(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [[(0, 10), (10, 10), (20, 10)]])
    data = path.read_bytes()
    ends = [place.offset + place.size for place in read_segment(path).blocks]
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        log = EpisodeLog(tmp_path)
        assert all_of(log) == expected(10 * sum(end <= size for end in ends))


@settings(max_examples=80, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_actions(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    (path,) = write(folder, [[(0, 10), (10, 10)]])
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(bytes(data))
    log = EpisodeLog(folder)
    for found in log.select():
        try:
            actions = log.replay(found).actions
        except ReplayError as error:
            assert "damaged" in str(error)
            continue
        begin = found.start // LANES
        want = np.stack([actions_of(s)[found.lane] for s in range(begin, begin + found.length)])
        np.testing.assert_array_equal(actions[:, 0], want)


def test_files_of_something_else_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, [[(0, 20)]])
    (tmp_path / "segment-00000002.log").write_text("no segment at all")
    log = EpisodeLog(tmp_path)
    assert all_of(log) == expected(20) and "segment-00000002.log" in log.problems[0]


def test_a_later_format_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = json.dumps({**vars(header()), "codec": CODEC.to_json(), "extras": {}, "format": 2}).encode()
    path = tmp_path / "segment-00000001.log"
    path.write_bytes(struct.pack("<4sII", b"GCEL", len(text), zlib.crc32(text)) + text)
    with pytest.raises(ReplayError, match="format 2, this gymcast reads format 1"):
        read_segment(path)


@pytest.mark.parametrize("steps", [0, 1, 10, 13, 14, 17, 20, 33, 39, 40, 99])
def test_cut_leaves_exactly_what_was_before(tmp_path: Path, steps: int) -> None:
    write(tmp_path, [[(0, 10), (10, 4)], [(14, 6)], [(20, 15), (35, 5)]])
    cut(tmp_path, steps * LANES)
    log = EpisodeLog(tmp_path)
    kept = min(steps, 40)
    assert all_of(log) == expected(kept) and log.decisions == kept * LANES
    # The run goes on from there: nothing is missing and nothing is there twice.
    write(tmp_path, [[(kept, 12)]])
    log.refresh()
    assert all_of(log) == expected(kept + 12)
    check_actions(log)


def test_cut_removes_a_torn_end(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [[(0, 10), (10, 10)]])
    whole = path.stat().st_size
    with open(path, "ab") as file:
        file.write(block(20, 5).to_bytes(CODEC)[:-3])
    cut(tmp_path, 20 * LANES)
    assert path.stat().st_size == whole and all_of(EpisodeLog(tmp_path)) == expected(20)


def test_other_lanes_after_a_resume_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, [[(0, 10)]])
    few = header(10 * LANES, lanes=2, games=2)
    file = SegmentFile(next_segment_path(tmp_path), few)
    table = np.zeros(2, episode_dtype(1))
    table["game"], table["end"], table["length"] = (0, 1), (10 * LANES + 8, 10 * LANES + 8), (4, 5)
    file.append(Block(10 * LANES, np.zeros((4, 2, 4), np.uint8), table))
    file.close()
    log = EpisodeLog(tmp_path)
    assert log.select(lane=0, limit=1)[0].length == 4, "begun after the change"
    assert len(log) == len(expected(10)) + 1, "the other one was begun before it, with other lanes"


# ------------------------------------------------------------------------------------------------------------ retention


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    paths = write(tmp_path, [[(i * 10, 10)] for i in range(5)])
    sizes = [path.stat().st_size for path in paths]
    prune(tmp_path, max_bytes=sum(sizes), kept=None)
    assert segment_paths(tmp_path) == paths
    prune(tmp_path, max_bytes=sum(sizes) - 1, kept=None)
    assert segment_paths(tmp_path) == paths[1:]
    assert all_of(EpisodeLog(tmp_path)) == expected(50, since=10)
    prune(tmp_path, max_bytes=1, kept=None)
    assert segment_paths(tmp_path) == paths[-1:], "the newest stays"


def test_as_many_episodes_as_asked_for_are_kept(tmp_path: Path) -> None:
    paths = write(tmp_path, [[(i * 10, 10)] for i in range(5)])
    counts = [len(read_segment(path).episodes) for path in paths]
    prune(tmp_path, max_bytes=None, kept=sum(counts[2:]))
    assert segment_paths(tmp_path) == paths[2:]
    prune(tmp_path, max_bytes=None, kept=sum(counts[2:]) - 1)
    assert segment_paths(tmp_path) == paths[2:], "one less would be too few"
    prune(tmp_path, max_bytes=None, kept=1)
    assert segment_paths(tmp_path) == paths[-1:]


def test_a_file_that_is_read_while_it_grows(tmp_path: Path) -> None:
    file = SegmentFile(next_segment_path(tmp_path), header())
    log = EpisodeLog(tmp_path)
    for number in range(4):
        file.append(block(number * 10, 10))
        log.refresh()
        assert all_of(log) == expected(10 * (number + 1))
    file.close()
    check_actions(log)
