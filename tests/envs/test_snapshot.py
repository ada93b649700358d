"""Snapshots: after `restore` an environment goes on bit for bit, and what does not fit is refused."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gymcast.envs import (
    EpisodeRecorder,
    GameVectorEnv,
    NumpyPolicy,
    SnapshotError,
    TrajectoryHash,
    game_spec,
    restore,
    sealed,
    snapshot,
    snapshot_header,
)

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Box2D's import warns, and crashes when that is an error
        import Box2D  # noqa: F401
    BOX2D = True
except ImportError:
    BOX2D = False
needs_box2d = pytest.mark.skipif(not BOX2D, reason="there is no wheel of Box2D for this platform")
LUNAR = pytest.param("LunarLander-v3", True, marks=needs_box2d)


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def play(env: Any, steps: int, *, sample: bool = True, seed: int = 5) -> str:
    """Play on and hash all that comes back, actions too (drawn from the environment's own stream when `sample`)."""
    found = TrajectoryHash()
    random = np.random.default_rng(seed)
    vector = isinstance(env, GameVectorEnv)
    for _ in range(steps):
        action = env.action_space.sample() if sample else random.integers(env.single_action_space.nvec, size=(4, 4))
        observation, reward, terminated, truncated, info = env.step(action)
        found.update(action)
        if vector:
            found.update((observation, reward, terminated, truncated, _values(info)))
        else:
            found.update((observation, _values(info)), reward, terminated, truncated, info)
            if terminated or truncated:
                found.update(env.reset()[0])
    return found.hexdigest()


def _values(info: dict[str, Any]) -> Any:
    return {key: _values(value) if isinstance(value, dict) else value for key, value in info.items()}


GAME_OPTIONS: list[dict[str, Any]] = [
    {},
    {"observation": "grid", "map": "tower", "opponent": "expert", "frame_skip": 1},
    {"observation": "pixels", "action": "discrete", "map": "random"},
    {"action": "box", "players": 3, "opponent": "mixed", "reward": "kills", "map": "pit"},
    {"players": 4, "opponent": "self", "reward": "sparse", "map": "gauntlet"},
    {"opponent": "self", "action": "discrete"},
]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_options_at_any_moment(data: st.DataObject) -> None:
    spec = game_spec("archers").options
    names = ("opponent", "players", "map", "reward", "observation", "action")
    options = {name: data.draw(st.sampled_from(spec[name].choices), name) for name in names}
    options |= {"frame_skip": data.draw(st.integers(1, 8)), "max_duration_s": 2.0, "kills_to_win": 1}
    env, other = (GameVectorEnv("archers", options["players"], threads=1, **options) for _ in range(2))
    env.reset(seed=data.draw(st.integers(0, 2**31)))
    env.action_space.seed(0)
    play(env, data.draw(st.integers(0, 40)))
    taken = snapshot(env)
    expected = play(env, 30)
    restore(other, taken)
    assert play(other, 30) == expected


@pytest.mark.parametrize("options", GAME_OPTIONS, ids=str)
def test_batches_go_on_bit_for_bit(options: dict[str, Any]) -> None:
    options = {"max_duration_s": 3.0, **options}
    env = GameVectorEnv("archers", 12, **options)
    env.reset(seed=3)
    env.action_space.seed(1)
    play(env, 30)
    taken = snapshot(env)
    expected = play(env, 60)
    other = GameVectorEnv("archers", 12, **options)  # never reset
    for again in (env, other):
        restore(again, taken)
        assert snapshot(again) == taken
        assert play(again, 60) == expected


def test_a_snapshot_between_end_and_next_step_keeps_what_ended() -> None:
    env = GameVectorEnv("archers", 4, max_duration_s=0.1)
    env.reset(seed=0)
    while not env.ended.size:
        env.step(np.zeros((4, 4), int))
    ended, taken = env.ended.copy(), snapshot(env)
    returns = env.episode_return[ended].copy()
    env.step(np.zeros((4, 4), int))
    restore(env, taken)
    assert (env.ended == ended).all() and (env.episode_return[ended] == returns).all()


@pytest.mark.parametrize("options", [{}, {"opponent": "self"}, {"players": 3, "opponent": "self"}], ids=str)
def test_a_game_of_one_lane_goes_on_in_another_lane_of_another_batch(options: dict[str, Any]) -> None:
    seats = options.get("players", 2) if options else 1
    source, target = (GameVectorEnv("archers", n * seats, map="random", **options) for n in (3, 5))
    source.reset(seed=1)
    target.reset(seed=100)
    random = np.random.default_rng(0)
    for _ in range(40):
        source.step(random.integers((3, 3, 2, 16), size=(source.num_envs, 4)))
        target.step(random.integers((3, 3, 2, 16), size=(target.num_envs, 4)))
    untouched = target.batch.observation[: 3 * seats].copy()
    restore(target, snapshot(source, lane=seats), lane=4 * seats - 1)  # game 1 into game 3
    assert (target.batch.observation[: 3 * seats] == untouched).all()
    mine, there = slice(seats, 2 * seats), slice(3 * seats, 4 * seats)
    for _ in range(100):
        actions = random.integers((3, 3, 2, 16), size=(target.num_envs, 4))
        left = source.step(np.roll(actions, -2 * seats, axis=0)[: source.num_envs])
        right = target.step(actions)
        for a, b in zip(left[:4], right[:4], strict=True):
            assert (a[mine] == b[there]).all()
        assert (left[4]["action_mask"][mine] == right[4]["action_mask"][there]).all()


def test_a_single_env_takes_over_the_game_of_a_lane() -> None:
    batch = GameVectorEnv("archers", 3)
    single = gym.make("gymcast/Archers-v0")
    batch.reset(seed=7)
    single.reset(seed=99)
    for _ in range(25):
        batch.step(np.full((3, 4), 1))
    restore(single, snapshot(batch, lane=2))
    for _ in range(60):
        there = batch.step(np.full((3, 4), (1, 1, 0, 3)))
        here = single.step(np.array((1, 1, 0, 3)))
        assert (here[0] == there[0][2]).all() and here[1] == there[1][2]
    with pytest.raises(SnapshotError, match="no match"):
        restore(GameVectorEnv("archers", 2), snapshot(batch, lane=2), lane=0)


class Drift(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper with a memory that is no plain value."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.total = np.zeros(())

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += reward
        return observation + self.total.astype(np.float32), reward, terminated, truncated, info


FOREIGN = ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1", "Blackjack-v1", "Taxi-v4", "MountainCarContinuous-v0"]


def make(env_id: str, wrapped: bool) -> gym.Env[Any, Any]:
    env: gym.Env[Any, Any] = gym.make(env_id, max_episode_steps=17)
    if not wrapped:
        return env
    env = gym.wrappers.RecordEpisodeStatistics(env)
    return EpisodeRecorder(Drift(gym.wrappers.NormalizeReward(env)))


@pytest.mark.parametrize(("env_id", "wrapped"), [("gymcast/Archers-v0", False), ("gymcast/Archers-v0", True)]
    + [(name, False) for name in FOREIGN] + [("CartPole-v1", True), LUNAR])  # fmt: skip
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_single_envs_go_on_bit_for_bit_with_their_wrappers(env_id: str, wrapped: bool, steps: int) -> None:
    env = make(env_id, wrapped)
    env.reset(seed=3)
    env.action_space.seed(1)
    play_single(env, steps)
    taken = snapshot(env)
    expected = play_single(env, 50)
    fresh = make(env_id, wrapped)  # never reset
    used = make(env_id, wrapped)
    used.reset(seed=77)
    play_single(used, 33)
    for again in (env, fresh, used):
        restore(again, taken)
        assert play_single(again, 50) == expected


def play_single(env: gym.Env[Any, Any], steps: int) -> str:
    found = TrajectoryHash()
    for _ in range(steps):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        info.get("episode", {}).pop("t", None)  # a wall-clock time
        found.update((action, observation, _values(info)), reward, terminated, truncated, info)
        if terminated or truncated:
            found.update(env.reset()[0])
    return found.hexdigest()


def test_streams_are_put_back_into_the_spaces_others_hold() -> None:
    for env in (gym.make("CartPole-v1"), GameVectorEnv("archers", 2)):
        env.reset(seed=0)
        held = env.action_space
        held.seed(4)
        taken = snapshot(env)
        drawn = [held.sample() for _ in range(10)]
        restore(env, taken)
        assert env.action_space is held
        assert np.array_equal([held.sample() for _ in range(10)], drawn)


def policy(seed: int) -> NumpyPolicy:
    weights = np.random.default_rng(seed)
    heads = {"action": (24, 93), "value": (1, 93)}
    arrays = {f"{name}.weight": weights.normal(size=shape) for name, shape in heads.items()}
    arrays |= {f"{name}.bias": np.zeros(shape[0]) for name, shape in heads.items()}
    return NumpyPolicy(arrays, {"env_id": "gymcast/Archers-v0", "activation": "tanh", "nvec": [3, 3, 2, 16]})


def test_a_policy_as_opponent_goes_on_with_its_stream() -> None:
    env = GameVectorEnv("archers", 3, opponent=policy(0))
    env.reset(seed=0)
    env.action_space.seed(1)
    play(env, 20)
    taken = snapshot(env)
    expected = play(env, 50)
    other = GameVectorEnv("archers", 3, opponent=policy(0))
    restore(other, taken)
    assert play(other, 50) == expected
    with pytest.raises(SnapshotError, match="opponent"):
        restore(GameVectorEnv("archers", 3, opponent=policy(1)), taken)


def test_a_vector_env_of_gymnasium_goes_on() -> None:
    def build() -> gym.vector.VectorEnv[Any, Any, Any]:
        return gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")

    env = build()
    env.reset(seed=1)
    actions = np.random.default_rng(0).integers(2, size=(80, 3))
    for row in actions[:30]:
        env.step(row)
    taken = snapshot(env)
    expected = [env.step(row)[0].copy() for row in actions[30:]]
    again = build()
    restore(again, taken)
    assert all((again.step(row)[0] == then).all() for row, then in zip(actions[30:], expected, strict=True))


def test_restored_in_another_process(tmp_path: Path) -> None:
    """As resume does it: nothing of the first process is left but the bytes."""
    code = """
import sys, warnings
warnings.simplefilter("ignore")
import gymnasium as gym, gymcast.envs
from pathlib import Path
def build(name):
    return gymcast.envs.EpisodeRecorder(gym.make(name))
name, path, take = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "take"
env = build(name)
if take:
    env.reset(seed=3)
    env.action_space.seed(1)
    for _ in range(60):
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()
    path.write_bytes(env.snapshot())
else:
    env.restore(path.read_bytes())
found = gymcast.envs.TrajectoryHash()
for _ in range(150):
    result = env.step(env.action_space.sample())
    found.update(*result)
    if result[2] or result[3]:
        found.update(env.reset()[0])
print(found.hexdigest())
"""
    for name in ("CartPole-v1", *(["LunarLander-v3"] if BOX2D else [])):
        hashes = []
        for what in ("take", "restore"):
            command = [sys.executable, "-c", code, name, str(tmp_path / name), what]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            hashes.append(done.stdout.splitlines()[-1])
        assert hashes[0] == hashes[1], name


# ------------------------------------------------------------------------------------------------------------ refusals


def batch(**options: Any) -> GameVectorEnv:
    env = GameVectorEnv("archers", 2, **options)
    env.reset(seed=0)
    return env


def cartpole(**options: Any) -> gym.Env[Any, Any]:
    env: gym.Env[Any, Any] = gym.make("CartPole-v1", **options)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("make_env", [batch, cartpole])
def test_every_changed_byte_is_noticed(make_env: Any) -> None:
    env = make_env()
    taken = snapshot(env)
    for at in {*range(0, len(taken), 97), *range(120), len(taken) - 1}:
        changed = taken[:at] + bytes([taken[at] ^ 1]) + taken[at + 1 :]
        with pytest.raises(SnapshotError):
            restore(env, changed)
    for cut in (b"", taken[:3], taken[:60], taken[:-1], taken + b"x"):
        with pytest.raises(SnapshotError):
            restore(env, cut)
    restore(env, taken)


def test_what_differs_is_said() -> None:
    taken = snapshot(batch(map="tower"))
    with pytest.raises(SnapshotError, match=r"option map 'tower', here 'pit'; option players 2, here 3"):
        restore(batch(map="pit", players=3), taken)
    with pytest.raises(SnapshotError, match="2 games"):
        restore(GameVectorEnv("archers", 3, map="tower"), taken)
    with pytest.raises(SnapshotError, match=r"gymcast/Archers-v0, the environment here is CartPole-v1"):
        restore(cartpole(), taken)
    with pytest.raises(SnapshotError, match=r"environment 'CartPole-v1', here 'Acrobot-v1'"):
        restore(gym.make("Acrobot-v1"), snapshot(cartpole()))
    with pytest.raises(SnapshotError, match=r"option sutton_barto_reward 'True', here None"):
        restore(cartpole(), snapshot(cartpole(sutton_barto_reward=True)))
    with pytest.raises(SnapshotError, match="wrappers"):
        restore(cartpole(max_episode_steps=None, disable_env_checker=True), snapshot(cartpole()))
    with pytest.raises(SnapshotError, match=r"no lane 2: give 0 to 1"):
        snapshot(batch(), lane=2)
    with pytest.raises(SnapshotError, match="call reset"):
        snapshot(GameVectorEnv("archers", 2))
    with pytest.raises(SnapshotError, match="no GameVectorEnv"):
        snapshot(cartpole(), lane=0)


def repacked(taken: bytes, signed: bool, **changes: Any) -> bytes:
    seal = sealed.unpack(taken)
    return sealed.pack({**seal.header, **changes}, seal.payload, signed=signed)


def test_another_version_of_game_or_format_is_refused() -> None:
    env = batch()
    with pytest.raises(SnapshotError, match="version 7, here 0"):
        restore(env, repacked(snapshot(env), False, version=7))
    with pytest.raises(SnapshotError, match="format '2'"):
        restore(env, repacked(snapshot(env), False, format=2))
    layout = snapshot_header(snapshot(env))["arrays"]
    layout[0][1][0][0] = "another_field"
    with pytest.raises(SnapshotError, match="laid out"):
        restore(env, repacked(snapshot(env), False, arrays=layout))


@pytest.mark.parametrize("field", [*game_spec("archers").state_ranges, *game_spec("archers").state_fixed])
def test_a_state_no_kernel_must_see_is_refused(field: str) -> None:
    env = batch(players=3)
    taken = snapshot(env)
    seal = sealed.unpack(taken)
    states = np.frombuffer(seal.payload, env.batch.state.dtype, env.num_games).copy()
    rest = seal.payload[states.nbytes :]
    bad: list[Any] = [np.iinfo(np.int32).max, -2] if states[field].dtype.kind == "i" else [np.nan, np.inf, -1e9]
    for value in bad:
        worse = states.copy()
        worse[field][1, ...] = value
        with pytest.raises(SnapshotError, match=field):
            restore(env, sealed.pack(seal.header, worse.tobytes(), rest, signed=False))
    assert snapshot(env) == taken


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["env", "episode", "game"])
def test_a_pickle_without_the_users_signature_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fired = tmp_path / "fired"
    env = gym.make("gymcast/Archers-v0") if kind == "game" else EpisodeRecorder(gym.make("CartPole-v1"))
    env.reset(seed=0)
    seal = sealed.unpack(snapshot(env))
    header, payload = seal.header, seal.payload
    rest = pickle.dumps(Bomb(fired))
    if kind == "game":
        size = sum(int(np.prod(shape)) * np.lib.format.descr_to_dtype(d).itemsize for _, d, shape in header["arrays"])
        payload = bytes(payload[:size]) + rest
        header["wrappers"]["plain"] = None
    else:
        payload, header["kind"], header["outer"] = rest, kind, len(rest)
    with pytest.raises(SnapshotError, match="without a signature"):
        restore(env, sealed.pack(header, payload, signed=False))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "stranger"))
    foreign = sealed.pack(header, payload, signed=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(SnapshotError, match="another user or on another machine"):
        restore(env, foreign)
    assert not fired.exists()


def test_the_key_is_the_users_own() -> None:
    taken = snapshot(cartpole())
    path = sealed.key_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_bytes()) == 32
    assert os.listdir(path.parent) == [path.name]
    path.chmod(0o644)
    with pytest.raises(SnapshotError, match="chmod 600"):
        restore(cartpole(), taken)


def test_workers_that_begin_at_once_share_one_key() -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: sealed._key(), range(64)))
    assert len(keys) == 1 and os.listdir(sealed.key_path().parent) == [sealed.key_path().name]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(SnapshotError, match="set XDG_STATE_HOME"):
        snapshot(cartpole())


@needs_box2d
def test_what_cannot_be_copied_is_said_with_the_remedy() -> None:
    env = gym.make("LunarLander-v3")
    env.reset(seed=0)
    with pytest.raises(SnapshotError, match=r"LunarLander-v3: LunarLander\.\w+: .*EpisodeRecorder"):
        snapshot(env)


class Moody(gym.Env[Any, Any]):
    """Cannot be copied and is not deterministic under its seed."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.handle = (n for n in range(3))  # generators cannot be pickled
        self.chance = np.random.default_rng()

    def reset(self, **_: Any) -> Any:
        self.chance = np.random.default_rng()
        return self.chance.random(1), {}

    def step(self, action: Any) -> Any:
        return self.chance.random(1), 0.0, False, False, {}


def test_an_env_that_plays_another_way_again_is_refused() -> None:
    env = EpisodeRecorder(Moody())
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(SnapshotError, match="not deterministic"):
        env.restore(env.snapshot())
