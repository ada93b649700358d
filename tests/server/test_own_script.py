"""Somebody's own Stable-Baselines3 script reports to a real server, whatever happens to either."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from gymcast.server import cli as command_line
from gymcast.server.auth import issue
from gymcast.training import MetricsBroadcastCallback, SessionCallback

from .own_scripts import KillableServer, Script, wait_for

MakeScript = Callable[..., Script]


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[KillableServer]:
    made = KillableServer(tmp_path, free_port)
    yield made
    made.kill()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[MakeScript]:
    made: list[Script] = []

    def make(text: str, url: str, **more: str) -> Script:
        made.append(Script(tmp_path, text, url, **more))
        return made[-1]

    yield make
    for one in made:
        one.kill()


ALGORITHMS = """
    from sb3_contrib import ARS, TQC, MaskablePPO, RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    class Own(gym.Env):
        "Dict observations with an image, a mask, no id, and it draws itself."
        render_mode = "rgb_array"
        metadata = {"render_modes": ["rgb_array"]}
        observation_space = gym.spaces.Dict(
            image=gym.spaces.Box(0, 255, (36, 36, 3), np.uint8), speed=gym.spaces.Box(-1, 1, (2,))
        )
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.step_number = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            self.step_number += 1
            return self.observation_space.sample(), 1.0, self.step_number == 7, False, {}

        def render(self):
            return np.full((600, 800, 3), self.step_number, np.uint8)

        def action_masks(self):
            return np.array([True, True, False])

    def train(model, steps):
        model.learn(steps, callback=[SessionCallback(url), MetricsBroadcastCallback(url, hz=20, verbose=0)])

    if __name__ == "__main__":
        short = dict(n_steps=32, batch_size=32, n_epochs=1)
        early = dict(learning_starts=20, train_freq=4)
        train(ppo(make_vec_env("CartPole-v1", 8)), 2000)
        train(A2C("MultiInputPolicy", SubprocVecEnv([Own, Own], start_method="fork")), 100)
        train(DQN("MlpPolicy", "CartPole-v1", **early), 400)
        train(SAC("MlpPolicy", "Pendulum-v1", **early), 100)
        train(TD3("MlpPolicy", "Pendulum-v1", **early), 100)
        train(TQC("MlpPolicy", "Pendulum-v1", **early), 60)
        train(MaskablePPO("MultiInputPolicy", Own(), **short), 96)
        train(RecurrentPPO("MlpLstmPolicy", DummyVecEnv([lambda: gym.make("CartPole-v1")]), **short), 128)
        train(ARS("LinearPolicy", "CartPole-v1", n_delta=2), 400)
        print("all trained")
"""


def test_any_algorithm_and_environment(server: KillableServer, script: MakeScript) -> None:
    server.start()
    said = script(ALGORITHMS, server.url).finish()
    assert "all trained" in said and "Traceback" not in said, said
    found = server.sessions()
    told = [(session["algorithm"], session["env_id"], session["status"]) for session in found]
    assert told == [
        ("PPO", "CartPole-v1", "completed"),
        ("A2C", "Own", "completed"),
        ("DQN", "CartPole-v1", "completed"),
        ("SAC", "Pendulum-v1", "completed"),
        ("TD3", "Pendulum-v1", "completed"),
        ("TQC", "Pendulum-v1", "completed"),
        ("MaskablePPO", "Own", "completed"),
        ("RecurrentPPO", "CartPole-v1", "completed"),
        ("ARS", "CartPole-v1", "completed"),
    ]
    server.check_once()
    for session in found:
        where = f"where session_id = '{session['session_id']}'"
        assert server.rows(f"select count(*) from metrics {where}") != [(0,)], session
        silent = session["algorithm"] == "ARS"  # which tells callbacks of no actions
        assert server.rows(f"select count(*) > 0 from decisions {where}") == [(int(not silent),)], session
        assert session["timesteps"] >= session["total_timesteps"] > 0, session
        assert session["current_episode"] > 0 or session["env_id"] == "Pendulum-v1", session
        assert session["progress"] == 1.0
    assert server.rows("select distinct json_extract(data, '$.code') from events where type = 'error'") == []


LONG = """
    callback = MetricsBroadcastCallback(url, hz=20)
    ppo().learn({steps}, callback=[Slow(), callback])
    print("learned; emitted", callback._session.sink.emitted, flush=True)
"""


def emitted(text: str) -> int:
    return int(text.rpartition("emitted ")[2].split()[0])


def test_the_server_is_killed_in_between_and_comes_back(server: KillableServer, script: MakeScript) -> None:
    server.start()
    running = script(LONG.format(steps=1500), server.url)
    running.says("step 400")
    server.kill()
    running.says("server away")
    running.says("step 1000")
    server.start()
    said = running.finish()
    assert server.session()["status"] == "completed" and server.session()["timesteps"] >= 1500
    assert server.rows("select head from producers") == [(emitted(said),)]
    assert server.check_once() > 20
    assert running.folders() == []


def test_without_a_server_training_goes_on_and_everything_is_delivered_later(
    server: KillableServer, script: MakeScript, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = script(LONG.format(steps=800), server.url)
    said = alone.finish()
    assert said.count("server away, events wait in") == 1 and "gymcast sessions deliver" in said
    (folder,) = alone.folders()
    assert len(next(folder.glob("*.jsonl")).read_text().splitlines()) == emitted(said)

    server.start()
    assert command_line.run(["sessions", "deliver", str(alone.spool), "--list"]) == 0
    assert f"{emitted(said)} events for {server.url}" in capsys.readouterr().out
    assert command_line.run(["sessions", "deliver", str(alone.spool)]) == 0
    assert f"{emitted(said)} events delivered: {server.url}/#/session/" in capsys.readouterr().out
    assert server.session()["status"] == "completed"
    assert server.rows("select head from producers") == [(emitted(said),)]
    server.check_once()
    assert alone.folders() == []
    assert command_line.run(["sessions", "deliver", str(alone.spool)]) == 0
    assert "Nothing waits" in capsys.readouterr().out


def test_what_a_killed_script_left_is_delivered(server: KillableServer, script: MakeScript) -> None:
    server.start()
    running = script(LONG.format(steps=10**7), server.url)
    running.says("watch this training")
    running.says("step 300")
    server.kill()
    running.says("step 800")
    assert command_line.run(["sessions", "deliver", str(running.spool)]) == 0  # a living script's are left to it
    (folder,) = running.folders()
    running.kill()
    (spooled,) = folder.glob("script-*.jsonl")
    last = spooled.read_bytes().count(b"\n")
    assert last > 20
    server.start()
    assert command_line.run(["sessions", "deliver", str(running.spool)]) == 0
    session = server.session()
    assert session["status"] == "failed" and "without saying how" in session["reason"]
    assert session["timesteps"] > 500
    server.check_once()
    assert running.folders() == []


def test_a_server_that_never_answers_holds_nothing_up(server: KillableServer, script: MakeScript) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        said = script(LONG.format(steps=300), server.url).finish()
    assert "not all events have reached" in said and "learned" in said


ENDS = """
    class Trouble(BaseCallback):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def _on_step(self):
            if self.n_calls == 100:
                raise self.error
            return True

    # A training that goes on, by the same callback, a copy of it and another one: one session.
    model = ppo()
    first = MetricsBroadcastCallback(url, name="goes on", verbose=0)
    model.learn(128, callback=first)
    model.learn(128, callback=first, reset_num_timesteps=False)
    model.learn(128, callback=copy.deepcopy(first), reset_num_timesteps=False)
    model.save("model.zip")
    model.learn(128, callback=SessionCallback(url, verbose=0))
    try:
        ppo().learn(1000, callback=[MetricsBroadcastCallback(url), Trouble(KeyboardInterrupt())])
    except KeyboardInterrupt:
        time.sleep(1.5)
    try:
        ppo().learn(1000, callback=[SessionCallback(url), Trouble(OverflowError("of the sea"))])
    except OverflowError as error:
        caught = error
    time.sleep(1.5)
    ppo().learn(10**6, callback=[MetricsBroadcastCallback(url), Trouble(ValueError("too blue"))])
"""


def test_how_a_training_ended_is_told(server: KillableServer, script: MakeScript) -> None:
    server.start()
    said = script(ENDS, server.url).finish(code=1)
    assert "ValueError: too blue" in said
    found = server.sessions()
    assert [session["status"] for session in found] == ["completed", "completed", "cancelled", "failed", "failed"]
    assert found[0]["training_session_id"] == "goes on" and found[0]["timesteps"] == 384
    assert found[1]["timesteps"] == 128
    assert found[2]["reason"] == "interrupted (Ctrl-C)"
    assert "the script has gone on" in found[3]["reason"]
    assert found[4]["reason"] == "ValueError: too blue"


def test_ctrl_c(server: KillableServer, script: MakeScript) -> None:
    server.start()
    running = script(LONG.format(steps=10**7), server.url)
    running.says("step 200")
    running.interrupt()
    assert "KeyboardInterrupt" in running.finish(code=-2)
    assert (server.session()["status"], server.session()["reason"]) == ("cancelled", "interrupted (Ctrl-C)")


STEERED = """
    session = SessionCallback(url)
    model = ppo()
    model.learn(10**7, callback=[Slow(), MetricsBroadcastCallback(url), session])
    print("stopped at", model.num_timesteps, session.stopped, flush=True)
    model.learn(10**7, callback=session, reset_num_timesteps=False)
    print("stays stopped", flush=True)
"""


def test_pause_resume_and_stop(server: KillableServer, script: MakeScript) -> None:
    server.start()
    running = script(STEERED, server.url)
    running.says("step 100")
    server.ask("pause")
    wait_for(lambda: server.session()["status"] == "paused")
    stands = running.text
    wait_for(lambda: server.session()["desired"] == "paused")
    time.sleep(1.0)
    assert running.text == stands
    server.ask("resume")
    wait_for(lambda: running.text != stands)
    server.ask("stop")
    said = running.finish()
    assert "True" in said and "stays stopped" in said
    assert (server.session()["status"], server.session()["reason"]) == ("cancelled", "stopped on request")


def test_a_token_that_is_not_taken_and_one_that_is(
    tmp_path: Path, free_port: int, script: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s" * 40
    server = KillableServer(tmp_path, free_port, security={"enable_auth": True, "jwt_secret_key": secret})
    server.start()
    try:
        refused = script(LONG.format(steps=400), server.url, GYMCAST_TOKEN="nonsense")
        said = refused.finish()
        assert said.count("GYMCAST_TOKEN") == 1 and "401" in said and "learned" in said
        token = issue(secret, subject="script", scopes=["ingest"], seconds=600)
        assert command_line.run(["sessions", "deliver", str(refused.spool), "--token", token]) == 0
        assert server.rows("select status from sessions") == [("completed",)]
        assert server.rows("select head from producers") == [(emitted(said),)]
        monkeypatch.setenv("GYMCAST_TOKEN", token)
        monkeypatch.setenv("GYMCAST_SPOOL", str(refused.spool))
        PPO("MlpPolicy", "CartPole-v1", n_steps=64).learn(64, callback=MetricsBroadcastCallback(server.url))
        wait_for(lambda: server.rows("select status from sessions") == [("completed",)] * 2)
    finally:
        server.kill()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://"])
def test_a_url_that_is_none_is_refused_before_training(url: str) -> None:
    made: list[Any] = [MetricsBroadcastCallback, SessionCallback]
    for kind in made:
        with pytest.raises(ValueError, match="http://host:port"):
            kind(url)


DOCS = Path(__file__).parents[2] / "docs" / "your-own-script.md"


def test_the_script_of_the_documentation(server: KillableServer, tmp_path: Path) -> None:
    server.start()
    text = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    assert len(text.splitlines()) <= 15
    assert "model.learn(10_000" in text
    written = text.replace("http://127.0.0.1:8000", server.url).replace("model.learn(10_000", "model.learn(2_000")
    said = Script(tmp_path, "", server.url, prelude=written).finish()
    session = server.session()
    assert f"{server.url}/#/session/{session['session_id']}" in said
    assert (session["status"], session["algorithm"], session["env_id"]) == ("completed", "PPO", "CartPole-v1")
    assert (tmp_path / "cartpole.zip").exists()
    server.check_once()
