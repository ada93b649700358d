"""Replays over REST: footage and logged episodes, listed, fetched and drawn, and refused with the reason."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gymcast.envs import EpisodeLog, Replay, verify_replay
from gymcast.server import RunningServer
from gymcast.training import Trainer, TrainingConfig

from .conftest import NewSession, event, expect_problem

SESSIONS = "/api/training/sessions"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of Archers with its log."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainingConfig.parse(
        {
            "env_id": "gymcast/Archers-v0", "env_kwargs": {"opponent": "beginner", "max_duration_s": 2.0},
            "parallel_episodes": 16, "total_timesteps": 16 * 64, "evaluation_games": 0, "seed": 8,
            "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
        }
    )  # fmt: skip
    Trainer(config, run_dir=folder).run_training_loop()
    return folder


@pytest.fixture
async def session(server: RunningServer, run_dir: Path) -> AsyncIterator[str]:
    """A managed session of that run."""
    record = await server.storage.create_session(
        kind="managed", algorithm="ppo", env_id="gymcast/Archers-v0", resources={"run_dir": str(run_dir)}
    )
    yield record.session_id


async def listing(client: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return dict(await answer.json())


async def test_every_logged_episode_is_listed_and_can_be_had(
    client: aiohttp.ClientSession, session: str, run_dir: Path
) -> None:
    log = EpisodeLog(run_dir / "episodes")
    path = f"{SESSIONS}/{session}/replays?kind=logged&limit=7"
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = await listing(client, path + cursor)
        found += page["replays"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(found) == len(log) == len({item["replay_id"] for item in found}) > 20
    assert [item["timesteps"] for item in found] == [one.end for one in log.select()]
    one = found[5]
    async with client.get(f"/api/replays/{one['replay_id']}") as answer:
        assert answer.status == 200 and answer.content_type == "application/octet-stream"
        replay = Replay.from_bytes(await answer.read())
    assert verify_replay(replay)["check"] == one["summary"]["check"] and len(replay.actions) == one["length"]
    view = await listing(client, one["frames_url"])
    assert view["view"] == "archers" and len(view["frames"]) == one["length"] + 1
    assert (view["decisions"], view["replay_id"]) == ([], one["replay_id"])


async def test_logged_episodes_are_filtered_and_ordered(client: aiohttp.ClientSession, session: str) -> None:
    path = f"/api/replays?kind=logged&session={session}"
    best = (await listing(client, f"{path}&order=best&limit=3"))["replays"]
    worst = (await listing(client, f"{path}&order=worst&limit=1"))["replays"]
    assert best[0]["return"] >= best[1]["return"] >= best[2]["return"] >= worst[0]["return"]
    lane = (await listing(client, f"{path}&lane=5&order=oldest"))["replays"]
    assert {item["lane"] for item in lane} == {5} and [item["episode"] for item in lane] == list(range(len(lane)))
    everything = (await listing(client, f"{path}&limit=1000"))["replays"]
    by_outcome = [(await listing(client, f"{path}&limit=1000&outcome={o}"))["replays"] for o in ("win", "draw", "loss")]
    assert sum(map(len, by_outcome)) == len(everything)
    assert all(
        item["outcome"] == name
        for name, items in zip(("win", "draw", "loss"), by_outcome, strict=True)
        for item in items
    )


async def test_footage_of_all_sessions_is_one_list(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    for number in range(2):
        replay = {
            "replay_id": f"r{number}", "env_id": "gymcast/Archers-v0", "episode": 1, "timesteps": 2, "summary": {},
            "bytes_base64": "cnVi",
        }  # fmt: skip
        session_id = await new_session(training_session_id=f"t{number}")
        body = {"producer": "w", "events": [event(1, "replay", replay)]}
        async with client.post(f"{SESSIONS}/{session_id}/events", json=body) as answer:
            assert answer.status == 201
    page = await listing(client, "/api/replays?limit=1")
    assert [item["replay_id"] for item in page["replays"]] == ["r1"]
    page = await listing(client, f"/api/replays?limit=1&cursor={page['next_cursor']}")
    assert [item["replay_id"] for item in page["replays"]] == ["r0"] and page["next_cursor"] is None
    page = await listing(client, f"/api/replays?session={session_id}")
    assert [item["replay_id"] for item in page["replays"]] == ["r1"]


async def test_wrong_queries_are_refused(client: aiohttp.ClientSession, session: str) -> None:
    for query, status in (
        ("?kind=logged", 422),
        ("?kind=all", 422),
        ("?order=best", 422),
        ("?lane=0", 422),
        (f"?kind=logged&session={session}&order=fastest", 422),
        (f"?kind=logged&session={session}&outcome=victory", 422),
        (f"?kind=logged&session={session}&lane=-1", 422),
        (f"?kind=logged&session={session}&cursor=rubbish", 400),
        ("?session=nobody", 404),
    ):
        async with client.get(f"/api/replays{query}") as answer:
            await expect_problem(answer, status)
    for replay_id in (f"ep_{session}_0_1", "ep_nobody_0_0", f"ep_{session}_0_0_0"):
        async with client.get(f"/api/replays/{replay_id}/frames") as answer:
            await expect_problem(answer, 404, "not-found")


async def test_a_session_without_a_log_has_no_logged_episodes(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer, tmp_path: Path
) -> None:
    gone = await server.storage.create_session(kind="managed", algorithm="ppo", resources={"run_dir": str(tmp_path)})
    for session_id in (await new_session(), gone.session_id):
        page = await listing(client, f"/api/replays?kind=logged&session={session_id}")
        assert page == {"replays": [], "next_cursor": None}


async def store(client: aiohttp.ClientSession, session_id: str, replay_id: str, content: bytes) -> None:
    replay = {
        "replay_id": replay_id, "env_id": "gymcast/Archers-v0", "episode": 1, "timesteps": 2, "summary": {},
        "bytes_base64": base64.b64encode(content).decode(),
    }  # fmt: skip
    body = {"producer": replay_id, "events": [event(1, "replay", replay)]}
    async with client.post(f"{SESSIONS}/{session_id}/events", json=body) as answer:
        assert answer.status == 201, await answer.text()


async def test_what_cannot_be_played_is_refused_with_the_reason(
    client: aiohttp.ClientSession, new_session: NewSession, run_dir: Path
) -> None:
    log = EpisodeLog(run_dir / "episodes")
    replay = log.replay(log.select(limit=1)[0])
    session_id = await new_session()
    cases = {
        "version": (dataclasses.replace(replay, version=9).to_bytes(), "version 9, the game here is version 0"),
        "rubbish": (b"rubbish", "not a gymcast replay"),
        "foreign": (dataclasses.replace(replay, env_id="CartPole-v1").to_bytes(), "that this server runs"),
        "module": (dataclasses.replace(replay, env_id="antigravity:Env-v0").to_bytes(), "that this server runs"),
    }
    for name, (content, reason) in cases.items():
        await store(client, session_id, name, content)
        async with client.get(f"/api/replays/{name}/frames") as answer:
            problem = await expect_problem(answer, 409, "conflict")
        assert reason in problem["detail"], problem


def players() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "gymcast.server.replay_worker" in child.cmdline()]


async def test_replays_are_played_in_a_process_of_their_own_that_may_die(
    client: aiohttp.ClientSession, session: str
) -> None:
    found = (await listing(client, f"/api/replays?kind=logged&session={session}&limit=3"))["replays"]
    assert players() == [], "none before it is needed"
    await listing(client, found[0]["frames_url"])
    (first,) = players()
    await listing(client, found[1]["frames_url"])
    assert players() == [first]
    first.kill()
    first.wait(10)
    await listing(client, found[0]["frames_url"])
    assert players() == [], "what was drawn is kept"
    await listing(client, found[2]["frames_url"])
    assert len(players()) == 1


async def test_the_process_is_there_before_a_viewer_of_a_training_asks_for_pictures(
    client: aiohttp.ClientSession, session: str, new_session: NewSession
) -> None:
    async with client.ws_connect(f"/ws/{await new_session()}"):  # of somebody else's training nothing may ever be drawn
        pass
    assert players() == []
    async with client.ws_connect(f"/ws/{session}"):
        for _ in range(1000):
            if players():
                break
            await asyncio.sleep(0.02)
    assert len(players()) == 1


async def test_equal_requests_share_one_play(client: aiohttp.ClientSession, session: str) -> None:
    (one,) = (await listing(client, f"/api/replays?kind=logged&session={session}&limit=1&order=longest"))["replays"]
    views = await asyncio.gather(*(listing(client, one["frames_url"]) for _ in range(8)))
    assert all(view == views[0] for view in views) and json.dumps(views[0])
    assert len(players()) == 1


def test_no_process_outlives_its_server() -> None:
    """Runs after the servers of the tests above are closed."""
    assert players() == []
