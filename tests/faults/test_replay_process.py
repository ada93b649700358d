"""The process that plays replays for a server: it ends with the server, however that ends."""

from __future__ import annotations

import base64
import json
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gymcast.envs import GameVectorEnv, ReplayRecorder


def replay() -> dict[str, Any]:
    """One short match as a trainer sends it."""
    env = GameVectorEnv("archers", 1, seed=5, opponent="random", max_duration_s=2)
    env.reset(seed=5)
    recorder = ReplayRecorder(env)
    found: list[Any] = []
    while not found:
        env.step(np.zeros((1, 4), int))
        found = recorder.finish()
    env.close()
    content = base64.b64encode(found[0].to_bytes()).decode()
    return {
        "replay_id": "r1", "env_id": "gymcast/Archers-v0", "episode": 1, "timesteps": 1, "summary": {},
        "bytes_base64": content,
    }  # fmt: skip


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_does_not_outlive_its_server(cli: Callable[..., Any], free_port: int, number: signal.Signals) -> None:
    server = cli("serve", "--port", str(free_port))
    server.read_until(r"Watch  http")
    api = f"http://127.0.0.1:{free_port}/api"
    external = {"training_session_id": "t", "model_generation": 1, "algorithm": "PPO", "total_episodes": 9}
    session = call(f"{api}/training/sessions", external)["session_id"]
    event = {"seq": 1, "ts": "2026-01-01T12:00:00Z", "type": "replay", "data": replay()}
    call(f"{api}/training/sessions/{session}/events", {"producer": "p", "events": [event]})
    server.remember_children()
    before = server.children_seen
    assert len(call(f"{api}/replays/r1/frames")["frames"]) == 26
    server.remember_children()
    assert server.children_seen == before + 1
    server.process.send_signal(number)
    server.finish()
    assert server.orphans() == []
