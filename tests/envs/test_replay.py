"""Replays: bytes and back, played again bit for bit, and damage of every kind."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from archers_stage import lively_actions
from hypothesis import given, settings
from hypothesis import strategies as st

from gymcast.envs import GameVectorEnv, Replay, ReplayError, ReplayRecorder, replay_frames, verify_replay
from gymcast.envs.replay_player import replay_observations

CASES: list[dict[str, Any]] = [
    {"opponent": "intermediate"},
    {"opponent": "expert", "map": "pit", "action": "discrete", "frame_skip": 1, "max_duration_s": 5},
    {"opponent": "advanced", "map": "random", "action": "box", "reward": "kills"},
    {"opponent": "self", "players": 3, "map": "tower"},
    {"opponent": "mixed", "players": 4, "map": "gauntlet", "reward": "sparse", "observation": "grid"},
    {"opponent": lambda observations, masks: np.full((len(observations), 4), (1, 0, 1, 3)), "map": "open"},
]


def actions_for(env: GameVectorEnv, random: np.random.Generator) -> Any:
    if env.options["action"] == "box":
        return random.uniform(-1, 1, (env.num_envs, 5))  # float64: what is played is what is kept
    chosen = lively_actions(random, env.num_envs)
    return np.ravel_multi_index(tuple(chosen.T), (3, 3, 2, 16)) if env.options["action"] == "discrete" else chosen


def record(options: dict[str, Any], episodes: int = 3, seed: int = 9) -> tuple[GameVectorEnv, list[Replay], Any]:
    """Replays of the first matches of the first game, and what lane 0 saw before each decision of the first one."""
    given = {"max_duration_s": 8, **options}
    env = GameVectorEnv("archers", 2 * int(given.get("players", 2)), threads=1, **given)
    seen, _ = env.reset(seed=seed)
    recorder = ReplayRecorder(env, lanes=[0])
    random = np.random.default_rng(seed)
    done: list[Replay] = []
    story = []
    while len(done) < episodes:
        if not done:
            story.append(seen[0].copy())
        actions = actions_for(env, random)
        seen, *_ = env.step(actions)
        done += recorder.finish()
    return env, done, np.stack(story)


@pytest.fixture(scope="module")
def replay() -> Replay:
    return record({"opponent": "expert", "kills_to_win": 1})[1][0]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_replay_plays_as_the_match_did(case: int) -> None:
    env, done, story = record(CASES[case])
    assert [r.episode for r in done] == [0, 1, 2] and {r.seed for r in done} == {9}
    for replay in done:
        again = Replay.from_bytes(replay.to_bytes())
        assert dataclasses.replace(again, actions=0) == dataclasses.replace(replay, actions=0)  # type: ignore[arg-type]
        np.testing.assert_array_equal(again.actions, replay.actions)
        assert again.actions.dtype == replay.actions.dtype and len(again.actions) == again.summary["length"]
        found = verify_replay(again)
        assert found == verify_replay(replay)
        assert {name: replay.summary[name] for name in replay.summary if name != "seconds"}.items() <= found.items()
        assert replay.summary["seconds"] == pytest.approx(replay.summary["length"] * env.decision_seconds)
    observations, masks = replay_observations(done[0])
    np.testing.assert_array_equal(observations, story)
    assert masks.shape == (len(story), 24)


def test_a_replay_is_small(replay: Replay) -> None:
    assert len(replay.to_bytes()) < 700 + replay.actions.nbytes


def test_an_episode_under_way_is_not_recorded() -> None:
    env = GameVectorEnv("archers", 1, threads=1, max_duration_s=1)
    env.reset(seed=0)
    env.step(np.zeros((1, 4), int))
    recorder = ReplayRecorder(env)
    found: list[Replay] = []
    while not found:
        actions = np.zeros((1, 4), int)
        env.step(actions)
        found += recorder.finish()
    assert found[0].episode == 1


def test_recording_several_lanes() -> None:
    env = GameVectorEnv("archers", 5, threads=1, max_duration_s=1, opponent="random")
    env.reset(seed=70)
    recorder = ReplayRecorder(env, lanes=[1, 4])
    random = np.random.default_rng(0)
    found: list[Replay] = []
    for _ in range(14):
        actions = lively_actions(random, 5)
        env.step(actions)
        found += recorder.finish()
    assert {r.seed for r in found} == {71, 74}
    for replay in found:
        verify_replay(replay)


# ------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("case", [0, 3, 5])
def test_frames_are_what_the_page_draws(case: int) -> None:
    env, done, _ = record(CASES[case], episodes=1)
    view = json.loads(json.dumps(replay_frames(done[0]), allow_nan=False))
    assert view["env_id"] == "gymcast/Archers-v0" and view["view"] == "archers"
    assert view["fps"] == 1 / env.decision_seconds
    scene, frames = view["scene"], view["frames"]
    assert (scene["width"], scene["height"], scene["map"]) == (800, 600, env.options["map"])
    assert scene["kills_to_win"] == 3 and scene["max_duration_s"] == 8
    players = env.options["players"]
    assert len(scene["players"]) == players and scene["players"][0] == {"name": "bot", "colour": 0}
    if case == 0:
        assert scene["players"][1] == {"name": "intermediate", "colour": 1}
    assert all(0 <= x < 800 and 0 <= y < 600 and w > 0 and h > 0 for x, y, w, h in scene["blocks"])
    assert len(frames) == len(done[0].actions) + 1
    assert [f["t"] for f in frames[:3]] == [0, 0.08, 0.16] and frames[-1]["t"] == view["summary"]["seconds"]
    assert view["summary"]["outcome"] == done[0].summary["outcome"]
    for frame in frames:
        assert set(frame) == {"t", "p", "a"} and len(frame["p"]) == players
        for x, y, _, _, alive, arrows, charge, aim_x, aim_y, kills, respawn in frame["p"]:
            assert 0 <= x <= 800 and 0 <= y <= 600 and alive in (0, 1) and 0 <= arrows <= 4 and 0 <= charge <= 1
            assert math.hypot(aim_x, aim_y) == pytest.approx(1, abs=0.02) and kills >= 0
            assert (respawn == 0) == (alive == 1) and respawn <= 5
        for x, y, dx, dy, state, owner in frame["a"]:
            assert 0 <= x <= 800 and 0 <= y <= 600 and state in (1, 2, 3) and 0 <= owner < players
            assert math.hypot(dx, dy) == pytest.approx(1, abs=0.02)
        assert len(frame["a"]) + sum(p[5] for p in frame["p"]) == 4 * players
    assert any(frame["a"] for frame in frames)


# ------------------------------------------------------------------------------------------------------------- damage


def packed(header: Any, actions: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return b"GCRP1" + zlib.compress(len(text).to_bytes(4, "big") + text + actions)


def header_of(replay: Replay) -> dict[str, Any]:
    shown = {f.name: getattr(replay, f.name) for f in dataclasses.fields(replay) if f.name not in ("actions", "extras")}
    return {**shown, "dtype": replay.actions.dtype.str, "shape": list(replay.actions.shape)}


def read_and_play(data: bytes) -> None:
    """All that is done with a replay someone sent."""
    replay = Replay.from_bytes(data)
    verify_replay(replay)
    replay_frames(replay)


def test_the_unharmed_replay_is_fine(replay: Replay) -> None:
    read_and_play(replay.to_bytes())
    read_and_play(packed(header_of(replay), replay.actions.tobytes()))


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_replay_is_refused(replay: Replay, cut: float) -> None:
    data = replay.to_bytes()
    with pytest.raises(ReplayError):
        Replay.from_bytes(data[: int(cut * len(data))])


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(replay: Replay, where: float, bit: int) -> None:
    data = bytearray(replay.to_bytes())
    data[int(where * len(data))] ^= 1 << bit
    try:
        found = Replay.from_bytes(bytes(data))
    except ReplayError:
        return
    # zlib's header has bits without meaning; what was packed must then be unharmed
    assert found.summary == replay.summary and found.actions.tobytes() == replay.actions.tobytes()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), with_magic=st.booleans())
def test_random_bytes_are_refused(data: bytes, with_magic: bool) -> None:
    with pytest.raises(ReplayError):
        Replay.from_bytes(b"GCRP1" + data if with_magic else data)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(("env_id", "version", "options", "seed", "episode", "summary", "dtype", "shape")),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=6,
    ),
)
def test_a_header_that_says_anything_raises_nothing_else(replay: Replay, name: str, value: Any) -> None:
    header = {**header_of(replay), name: value}
    try:
        read_and_play(packed(header, replay.actions.tobytes()))
    except ReplayError:
        return
    assert name in ("summary", "options", "seed", "episode"), "anything else must be as it was"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_options_that_say_anything_raise_nothing_else(replay: Replay, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*replay.options, "colour"]))
    value = data.draw(st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers()))
    header = {**header_of(replay), "options": {**replay.options, name: value}, "summary": {}}
    try:
        read_and_play(packed(header, replay.actions.tobytes()))
    except ReplayError:
        assert name not in replay.options or value != replay.options[name]


@pytest.mark.parametrize("header", [5, None, [], "text", {}, {"env_id": "gymcast/Archers-v0"}])
def test_a_header_that_is_none_is_refused(header: Any) -> None:
    with pytest.raises(ReplayError, match="header"):
        Replay.from_bytes(packed(header))


def test_deeply_nested_headers_are_refused() -> None:
    text = b"[" * 200_000
    with pytest.raises(ReplayError):
        Replay.from_bytes(b"GCRP1" + zlib.compress(len(text).to_bytes(4, "big") + text))


def test_bytes_behind_the_end_are_refused(replay: Replay) -> None:
    with pytest.raises(ReplayError):
        Replay.from_bytes(replay.to_bytes() + b"more")


@pytest.mark.parametrize("bad", [255, 16, 3])
def test_actions_out_of_range_never_reach_the_kernels(replay: Replay, bad: int) -> None:
    actions = replay.actions.copy()
    actions[0, 0, 3 if bad != 3 else 0] = bad
    damaged = Replay.from_bytes(dataclasses.replace(replay, actions=actions).to_bytes())
    for use in (verify_replay, replay_frames, replay_observations):
        with pytest.raises(ReplayError, match="out of range"):
            use(damaged)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_box_actions_out_of_range_never_reach_the_kernels(bad: float) -> None:
    replay = record(CASES[2], episodes=1)[1][0]
    actions = replay.actions.copy()
    actions[0, 0, 4] = bad
    with pytest.raises(ReplayError, match="out of range"):
        verify_replay(dataclasses.replace(replay, actions=actions))


@pytest.mark.parametrize(
    "shape", [[0, 1, 4], [-1, 1, 4], [4], [], [1, 1, 1, 4], [2**40, 1, 4], [True, 1, 4], [1.0, 1, 4]]
)
def test_shapes_that_are_none_are_refused(replay: Replay, shape: list[Any]) -> None:
    with pytest.raises(ReplayError, match="shape"):
        Replay.from_bytes(packed({**header_of(replay), "shape": shape}, replay.actions.tobytes()))


def test_actions_of_the_wrong_number_of_seats_are_refused(replay: Replay) -> None:
    doubled = np.repeat(replay.actions, 2, axis=1)
    with pytest.raises(ReplayError, match="seat"):
        verify_replay(dataclasses.replace(replay, actions=doubled))


def test_object_arrays_are_refused(replay: Replay) -> None:
    with pytest.raises(ReplayError, match="type"):
        Replay.from_bytes(packed({**header_of(replay), "dtype": "|O"}, pickle.dumps([1])))


def test_a_zip_bomb_stops_at_the_bound() -> None:
    """200 MB of zeros in 200 KB: no more than the bound is ever unpacked."""
    bomb = zlib.compressobj(9)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
    tracemalloc.start()
    with pytest.raises(ReplayError):
        Replay.from_bytes(b"GCRP1" + data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 << 20


def test_another_version_of_the_rules_is_refused(replay: Replay) -> None:
    newer = dataclasses.replace(replay, version=replay.version + 1)
    for use in (verify_replay, replay_frames):
        with pytest.raises(ReplayError, match=f"version {replay.version + 1}"):
            use(Replay.from_bytes(newer.to_bytes()))


def test_an_unknown_game_is_refused(replay: Replay) -> None:
    with pytest.raises(ReplayError, match="no environment"):
        verify_replay(dataclasses.replace(replay, env_id="gymcast/Chess-v0"))


@pytest.mark.parametrize(("name", "value"), [("return", 99.0), ("outcome", "none"), ("length", 1), ("kills", 77)])
def test_a_summary_that_is_not_true_is_noticed(replay: Replay, name: str, value: Any) -> None:
    with pytest.raises(ReplayError, match=name):
        verify_replay(dataclasses.replace(replay, summary={**replay.summary, name: value}))


def test_other_actions_are_noticed(replay: Replay) -> None:
    with pytest.raises(ReplayError):
        verify_replay(dataclasses.replace(replay, actions=replay.actions[:-2]))
