"""Worker processes that die, hang or break their contract, and a parent that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces

from gymcast.envs.subproc import WorkerError, WorkerRestart
from gymcast.training.subproc import GymcastSubprocVecEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])
LANES = 4


class Walk(gym.Env[Any, Any]):
    """A random walk; when `trigger` exists, the next step removes it and does `trouble`."""

    def __init__(self, trigger: Path | None = None, trouble: Callable[[Any], Any] | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.trigger, self.trouble = trigger, trouble
        self.length = 20
        self.begun = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal(size=3).astype(np.float32)
        self.begun += 1
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.place += self.np_random.normal(size=3).astype(np.float32) * (1 + action)
        result = self.place.copy(), float(self.place[0]), self.steps >= self.length, False, {}
        if self.trigger is not None and self.trigger.exists():
            self.trigger.unlink()
            return self.trouble(self) or result  # type: ignore[misc]
        return result


def die(env: Walk) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(env: Walk) -> None:
    ctypes.string_at(0)


def leave(env: Walk) -> None:
    sys.exit(3)


def leave_at_once(env: Walk) -> None:
    os._exit(5)


def interrupt_itself(env: Walk) -> None:
    raise KeyboardInterrupt


def close_descriptors(env: Walk) -> None:
    os.closerange(3, 200)


def raise_error(env: Walk) -> None:
    raise ZeroDivisionError("the game fell over")


def hang(env: Walk) -> None:
    time.sleep(1000)


def hang_with_the_interpreter(env: Walk) -> None:
    ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock; a signal wakes it


def stop(env: Walk) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fork_and_die(env: Walk) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    assert env.trigger is not None
    env.trigger.with_suffix(".child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def flood_a_pipe_nobody_reads(env: Walk) -> None:
    _, write = os.pipe()
    os.dup2(write, 1)
    while True:
        os.write(1, b"noise " * 1000)


def envs(trigger: Path | None = None, trouble: Any = None, lane: int = 1, **more: Any) -> GymcastSubprocVecEnv:
    """Four lanes in two workers; lane 1 is the one that has trouble."""
    functions = [
        (lambda: Walk(trigger, trouble)) if number == lane and trigger is not None else Walk for number in range(LANES)
    ]
    return GymcastSubprocVecEnv(functions, n_workers=2, **more)


def play(env: GymcastSubprocVecEnv, steps: int, trigger: Path | None = None) -> list[Any]:
    """Step with actions that are always the same; the trigger is set before the eighth."""
    rng = np.random.default_rng(0)
    env.seed(7)
    seen = [(env.reset(), None, None, None)]
    for number in range(steps):
        if trigger is not None and number == 7:
            trigger.touch()
        seen.append(env.step(rng.integers(0, 2, LANES)))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize(
    ("trouble", "concerned", "said", "traced"),
    [
        (die, (0, 1), "SIGKILL", ""),
        (segfault, (0, 1), "SIGSEGV", "segfault"),
        (leave_at_once, (0, 1), "its process ended by itself with exit code 5", ""),
        (close_descriptors, (0, 1), "an environment closed the file descriptors of its process", ""),
        (leave, (1,), "SystemExit: 3", "sys.exit(3)"),
        (interrupt_itself, (1,), "KeyboardInterrupt", "in interrupt_itself"),
        (raise_error, (1,), "ZeroDivisionError: the game fell over", "raise_error"),
        (hang, (0, 1), "hangs: a step took longer than 1 s", "in hang"),
        (hang_with_the_interpreter, (0, 1), "hangs: a step took longer than 1 s", "in hang_with_the_interpreter"),
        (stop, (0, 1), "its process was stopped", ""),
        (fork_and_die, (0, 1), "SIGKILL", ""),
        (flood_a_pipe_nobody_reads, (0, 1), "hangs: a step took longer than 1 s", "flood"),
    ],
)
def test_what_fails_begins_anew_and_other_lanes_are_as_if_nothing_was(
    tmp_path: Path, trouble: Any, concerned: tuple[int, ...], said: str, traced: str
) -> None:
    trigger = tmp_path / "now"
    told: list[WorkerRestart] = []
    others = set(psutil.Process().children(recursive=True))  # of tests before this one
    limit = 1.0 if said.startswith("hangs") else None  # nobody else may be late on a busy machine
    calm, shaken = envs(), envs(trigger, trouble, step_timeout=limit, on_restart=told.append)
    try:
        expected, found = play(calm, 30), play(shaken, 30, trigger)
        # Direct children are the fork server and the resource tracker of multiprocessing, which outlive workers.
        born = set(psutil.Process().children(recursive=True)) - others
        family = [one.pid for one in born if one.ppid() != os.getpid()]
    finally:
        calm.close()
        shaken.close()
    healthy = [lane for lane in range(LANES) if lane not in concerned]
    for (obs, rewards, dones, infos), (obs2, rewards2, dones2, infos2) in zip(expected[1:], found[1:], strict=True):
        assert np.array_equal(obs[healthy], obs2[healthy])
        assert np.array_equal(rewards[healthy], rewards2[healthy]) and np.array_equal(dones[healthy], dones2[healthy])
        assert all(infos[lane].keys() == infos2[lane].keys() for lane in healthy)
    obs, rewards, dones, infos = found[8]
    last = found[7][0]
    for lane in concerned:
        assert dones[lane] and rewards[lane] == 0.0
        assert infos[lane]["worker_restarted"] and infos[lane]["TimeLimit.truncated"]
        assert np.array_equal(infos[lane]["terminal_observation"], last[lane])
        assert said in infos[lane]["worker_failure"]
        assert not np.array_equal(obs[lane], found[0][0][lane]), "the new episode has another seed than the first"
    assert not any("worker_restarted" in info for step in (*found[1:8], *found[9:]) for info in step[3])
    assert [restart.lanes for restart in told] == [concerned] and shaken.n_restarts == 1
    # A worker that has lost its connection finishes its step and cannot say which of its lanes did it.
    assert ("lane 1: " in told[0].reason) == (trouble is not close_descriptors)
    assert traced in told[0].traceback
    family += [int(file.read_text()) for file in tmp_path.glob("*.child")]
    assert len(family) >= 4 and not any(_alive(pid) for pid in family)


def test_a_worker_killed_between_steps_is_noticed_by_the_next_step_or_reset() -> None:
    env = envs()
    play(env, 3)
    os.kill(env.processes[1].pid, signal.SIGKILL)
    _, _, dones, infos = env.step(np.zeros(LANES, np.int64))
    assert dones.tolist() == [False, False, True, True] and infos[3]["worker_restarted"]
    os.kill(env.processes[0].pid, signal.SIGKILL)
    assert np.isfinite(env.reset()).all()  # type: ignore[arg-type]
    assert env.n_restarts == 2 and len(env.processes) == 2
    env.close()


def test_attributes_that_were_set_are_set_again_after_a_restart() -> None:
    env = envs()
    play(env, 2)
    env.set_attr("length", 3, indices=1)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    env.step(np.zeros(LANES, np.int64))
    assert env.get_attr("length") == [20, 3, 20, 20]
    env.close()


def test_a_worker_that_dies_in_a_call_is_an_error_of_that_call_and_healed_by_the_next_step() -> None:
    class Fragile(Walk):
        def crash(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    env = GymcastSubprocVecEnv([Fragile] * 2, n_workers=2)
    env.reset()
    with pytest.raises(WorkerError, match=r"worker 1 \(lane 1\).*SIGKILL"):
        env.env_method("crash", indices=[1])
    assert env.step(np.zeros(2, np.int64))[2].tolist() == [False, True]
    env.close()


def test_over_budget_the_error_has_the_lane_the_limit_and_the_worker_s_own_traceback() -> None:
    class Broken(Walk):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError("no step ever works")

    env = GymcastSubprocVecEnv([Walk, Walk, Broken], n_workers=3, max_restarts=2)
    env.reset()
    with pytest.raises(WorkerError) as caught:
        for _ in range(10):
            env.step(np.zeros(3, np.int64))
    text = str(caught.value)
    assert "worker 2, lane 2: ZeroDivisionError: no step ever works" in text
    assert "the 2 restarts allowed (max_restarts) are spent" in text and "in step\n    raise Zero" in text
    env.close()
    assert env.processes == []


def test_restarts_in_a_row_and_within_a_minute_are_limited(tmp_path: Path) -> None:
    class Fails(Walk):
        def reset(self, **more: Any) -> Any:
            raise OSError("no game")

    env = GymcastSubprocVecEnv([Fails], max_restarts=None, max_restarts_per_minute=2)
    with pytest.raises(WorkerError, match=r"(?s)OSError: no game.*again 2 times within a minute"):
        env.reset()
    env.close()


def make_nothing() -> gym.Env[Any, Any]:
    raise FileNotFoundError("game.bin is missing")


class WrongShape(Walk):
    def step(self, action: Any) -> Any:
        return np.zeros(5, np.float32), 0.0, False, False, {}


class WrongType(Walk):
    def step(self, action: Any) -> Any:
        return np.zeros(3, np.complex128), 0.0, False, False, {}


class Nan(Walk):
    def step(self, action: Any) -> Any:
        return np.array([0, np.nan, 0], np.float32), 0.0, False, False, {}


class NanReward(Walk):
    def step(self, action: Any) -> Any:
        return self.place, float("nan"), False, False, {}


class Infinite(Walk):
    def step(self, action: Any) -> Any:
        return np.array([0, -np.inf, 0], np.float32), 0.0, False, False, {}


class InfiniteReward(Walk):
    def step(self, action: Any) -> Any:
        return self.place, float("inf"), False, False, {}


class WordReward(Walk):
    def step(self, action: Any) -> Any:
        return self.place, "much", False, False, {}


class FourValues(Walk):
    def step(self, action: Any) -> Any:
        return self.place, 0.0, False, {}


class Unpicklable(Walk):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"fine": 1, "lock": threading.Lock()}


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


class UnreadableInfo(Walk):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"odd": Unreadable()}


class HugeInfo(Walk):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"video": bytes(65 << 20)}


class NanAtTheEnd(Walk):
    def step(self, action: Any) -> Any:
        return np.full(3, np.nan, np.float32), 0.0, True, False, {}


class Changing(Walk):
    def reset(self, **more: Any) -> Any:
        result = super().reset(**more)
        if self.begun > 1:
            self.observation_space = spaces.Box(-1, 1, (7,), np.float32)
        return result


class OtherSpaces(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(9)


@pytest.mark.parametrize("workers", [2])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (make_nothing, r"FileNotFoundError: game.bin is missing(?s:.)*make_nothing"),
        (OtherSpaces, r"Discrete\(9\)"),
        (dict, "not a gymnasium.Env"),
        (WrongShape, r"shape \(5,\), the observation space says \(3,\)"),
        (WrongType, "dtype complex128, the observation space says float32"),
        (Nan, "its observation has NaN"),
        (Infinite, "its observation has inf"),
        (InfiniteReward, "its reward has inf"),
        (WordReward, r"its reward is 'much' \(str\), not one number"),
        (FourValues, "its step returned tuple of 4, not"),
        (Unpicklable, r"its info cannot be pickled \('lock' is lock\)"),
        (UnreadableInfo, "its info cannot be read in this process: ValueError"),
        (HugeInfo, r"its info takes 68,\d+,\d+ bytes \('video' takes 68,"),
        (NanReward, "its reward has NaN"),
        (NanAtTheEnd, "its observation has NaN"),
        (Changing, "its spaces changed from"),
    ],
)
def test_an_environment_that_breaks_its_contract_is_named_with_its_lane(bad: Any, said: str, workers: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerError, match=rf"(?s)lane 2\b.*{said}"):
        env = GymcastSubprocVecEnv([Walk, Walk, bad, Walk], n_workers=workers)
        try:
            env.reset()
            for _ in range(25):
                env.step(np.zeros(4, np.int64))
        finally:
            env.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "the fork server's own descriptors aside, none may be left"


def test_spaces_that_are_others_after_a_restart_are_an_error(tmp_path: Path) -> None:
    """Another game version is installed while the training runs; a lane and a whole worker meet it."""
    changed = tmp_path / "changed"

    class Updated(Walk):
        def __init__(self) -> None:
            super().__init__()
            if changed.exists():
                self.action_space = spaces.Discrete(3)

        def fail(self) -> None:
            self.step = None  # type: ignore[assignment]

    for method, said in (("fail", r"lane 1: its spaces changed .*Discrete\(3\)"), ("", r"lane 0: .*Discrete\(3\)")):
        changed.unlink(missing_ok=True)
        env = GymcastSubprocVecEnv([Updated] * 2, n_workers=1)
        env.reset()
        changed.touch()
        if method:
            env.env_method(method, indices=[1])
        else:
            os.kill(env.processes[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=said):
            env.step(np.zeros(2, np.int64))
        env.close()


def test_floods_of_output_are_kept_within_bounds_and_out_of_sight(capfd: pytest.CaptureFixture[str]) -> None:
    class Floods(Walk):
        def step(self, action: Any) -> Any:
            os.write(2, b"noise from compiled code\n" * 100_000)
            print("a" * 2000, "\033[31mthe end", end="")
            if self.steps == 2:
                raise ZeroDivisionError("enough")
            return super().step(action)

    env = GymcastSubprocVecEnv([Walk, Floods], n_workers=2, max_restarts=0)
    env.reset()
    with pytest.raises(WorkerError) as caught:
        for _ in range(9):
            env.step(np.zeros(2, np.int64))
            time.sleep(0.6)  # it is looked at twice a second, by the next step
            kept = os.stat(f"/proc/{env.processes[1].pid}/fd/1").st_size
    text = str(caught.value)
    assert "lane 1: ZeroDivisionError: enough" in text and len(text) < 20_000
    assert "The last lines it printed:\nnoise from compiled code\n" in text and text.endswith("the end")
    assert kept < 4_000_000, "two steps have printed 5,000,000 bytes"
    quiet, loud = env.last_output()
    assert quiet == "" and loud in text and "\033" not in text
    assert capfd.readouterr() == ("", "")
    env.close()


def test_output_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    class Talks(Walk):
        def step(self, action: Any) -> Any:
            print("arrow", flush=True)
            return super().step(action)

    env = GymcastSubprocVecEnv([Talks], capture_output=False, start_method="spawn")
    env.reset()
    env.step(np.zeros(1, np.int64))
    assert env.last_output() == [""] and "arrow" in capfd.readouterr().out
    env.close()


def test_children_and_threads_of_environments_change_nothing(tmp_path: Path) -> None:
    class Multiplies(Walk):
        def step(self, action: Any) -> Any:
            threading.Thread(target=time.sleep, args=(1000,)).start()
            if os.fork() == 0:
                self.place += 100.0  # and goes on as if it were the worker
                (tmp_path / str(os.getpid())).touch()
            return super().step(action)

    calm, busy = envs(), GymcastSubprocVecEnv([Walk, Multiplies, Multiplies, Walk], n_workers=2)
    expected, found = play(calm, 6), play(busy, 6)
    calm.close()
    busy.close()
    for step, other in zip(expected[1:], found[1:], strict=True):
        assert np.array_equal(step[0], other[0]) and np.array_equal(step[1], other[1])
    children = [int(file.name) for file in tmp_path.iterdir()]
    assert len(children) == 12 and not any(_alive(pid) for pid in children)
    assert busy.n_restarts == 0


def test_a_worker_that_dies_drawing_is_an_error_of_get_images(tmp_path: Path) -> None:
    class Draws(Walk):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it
        render_mode = "rgb_array"

        def render(self) -> Any:
            if self.trigger is not None:
                os.kill(os.getpid(), signal.SIGSEGV)
            return np.zeros((2, 2, 3), np.uint8)

    env = GymcastSubprocVecEnv([Draws, lambda: Draws(tmp_path)], n_workers=2)
    env.reset()
    with pytest.raises(WorkerError, match=r"(?s)worker 1 \(lane 1\).*SIGSEGV.*in render"):
        env.get_images()
    assert env.env_method("render", indices=[0])[0].shape == (2, 2, 3)
    assert env.step(np.zeros(2, np.int64))[2].tolist() == [False, True]
    env.close()


def test_restarts_out_of_the_process_in_reserve_leave_no_process() -> None:
    others = set(psutil.Process().children(recursive=True))  # of tests before this one
    env = envs()
    play(env, 2)
    for count in (1, 2, 3):
        os.kill(env.processes[0].pid, signal.SIGKILL)
        assert env.step(np.zeros(LANES, np.int64))[2].tolist() == [True, True, False, False]
        assert env.n_restarts == count
        env.step(np.zeros(LANES, np.int64))
    born = set(psutil.Process().children(recursive=True)) - others
    family = [one.pid for one in born if one.ppid() != os.getpid()]
    env.close()
    assert len(family) == 3, "two workers, and one process in reserve"
    assert not any(_alive(pid) for pid in family)


def test_an_episode_that_lasts_too_long_is_truncated_without_a_restart() -> None:
    class Endless(Walk):
        def step(self, action: Any) -> Any:
            time.sleep(0.02)
            return *super().step(action)[:2], False, False, {}

    env = GymcastSubprocVecEnv([Endless], episode_timeout=0.1)
    env.reset()
    for _ in range(50):
        _, _, dones, infos = env.step(np.zeros(1, np.int64))
        if dones[0]:
            break
    assert infos[0]["episode_timeout"] and infos[0]["TimeLimit.truncated"] and env.n_restarts == 0
    env.close()


def test_ctrl_c_during_a_step_leaves_an_environment_that_can_be_reset() -> None:
    class Slow(Walk):
        def step(self, action: Any) -> Any:
            time.sleep(0.3)
            return super().step(action)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    env = GymcastSubprocVecEnv([Walk, Slow, Walk], n_workers=3)
    play_three = np.zeros(3, np.int64)
    env.reset()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            env.step(play_three)
    finally:
        signal.signal(signal.SIGALRM, before)
    first = env.reset()
    obs, _, dones, _ = env.step(play_three)
    assert not dones.any() and not np.array_equal(first, obs) and env.n_restarts == 0  # type: ignore[arg-type]
    assert env.get_attr("steps") == [1, 1, 1]
    env.close()


def test_closing_ends_a_worker_that_hangs_and_can_be_repeated(tmp_path: Path) -> None:
    class Clings(Walk):
        def close(self) -> None:
            while True:
                time.sleep(1)

    env = GymcastSubprocVecEnv([Clings, Walk], n_workers=2)
    env.reset()
    pids = [process.pid for process in env.processes]
    env.close()
    env.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_started_by_a_thread_that_ended_go_on() -> None:
    made: list[GymcastSubprocVecEnv] = []
    thread = threading.Thread(target=lambda: made.append(envs(start_method="spawn")))
    thread.start()
    thread.join()
    play(made[0], 5)
    assert made[0].n_restarts == 0
    made[0].close()


PARENT = """
import ctypes, sys, threading, gymnasium

class Stuck(gymnasium.Wrapper):
    "Steps do not return, with (PyDLL) and without (CDLL) the interpreter's lock; a file says that one has begun."
    def __init__(self, env, library, file):
        super().__init__(env)
        self.library, self.file = library, file

    def step(self, action):
        open(self.file, "w").close()
        getattr(ctypes, self.library)(None).sleep(1000)

if __name__ == "__main__":
    from gymcast.training.subproc import GymcastSubprocVecEnv
    made = []
    for kind in sys.argv[2:]:
        method, library = kind.split()
        lanes = [lambda l=library, f=f"{kind} {n}": Stuck(gymnasium.make("CartPole-v1"), l, f) for n in range(4)]
        made.append(GymcastSubprocVecEnv(lanes, method, n_workers=2))
        made[-1].reset()
    print(*[process.pid for env in made for process in env.processes], flush=True)
    if sys.argv[1] == "leave":
        sys.exit()
    for env in made:
        threading.Thread(target=env.step, args=([0, 0, 0, 0],)).start()
"""


@pytest.mark.parametrize(
    ("ending", "kinds"),
    [
        ("kill", ("fork PyDLL", "spawn PyDLL", "forkserver PyDLL", "forkserver CDLL")),
        ("leave", ("fork CDLL",)),
    ],
)
def test_a_parent_that_is_gone_leaves_no_process_and_no_shared_memory(
    tmp_path: Path, ending: str, kinds: tuple[str, ...]
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shared = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen(
        [sys.executable, str(script), ending, *kinds], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 * len(kinds)
    deadline = time.monotonic() + 60
    if ending == "kill":
        stuck = {f"{kind} {lane}" for kind in kinds for lane in (0, 2)}  # the first lane of each worker
        while not stuck <= set(os.listdir(tmp_path)):
            assert time.monotonic() < deadline, "no step has begun"
            time.sleep(0.02)
        parent.kill()
    parent.wait(30)
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive := [kinds[number // 2] for number, pid in enumerate(pids) if _alive(pid)]:
        assert time.monotonic() < deadline, f"workers outlive their parent: {alive}"
        time.sleep(0.02)
    # What Python and gymcast name there; tests beside this one have some at times, and databases for long.
    while left := {n for n in set(os.listdir("/dev/shm")) - shared if n.startswith(("psm_", "sem.")) or "gymcast" in n}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
