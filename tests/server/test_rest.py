"""Sessions and reports over REST, as the reference and the contract have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer, running_server
from gymcast.training.limits import ResourceLimits
from gymcast.training.sessions import SESSION_METRICS, SessionManager

from ..managed import until
from ..reference_examples import DECISION, GRAPH
from .conftest import NewSession, event, expect_problem, external, metrics, server_config

SESSIONS = "/api/training/sessions"


@pytest.mark.usefixtures("database_url")
async def test_create_read_list_update_delete(client: aiohttp.ClientSession) -> None:
    async with client.post(SESSIONS, json=external(room_code="TR123456")) as answer:
        assert answer.status == 201
        made = await answer.json()
        assert answer.headers["Location"] == f"{SESSIONS}/{made['session_id']}"
        assert answer.headers["ETag"] == '"1"'
    assert made["kind"] == "external"
    assert made["status"] == "running"
    assert made["room_code"] == "TR123456"
    assert made["spectator_count"] == 0
    assert made["start_time"].endswith("Z")
    assert made["end_time"] is None
    one = f"{SESSIONS}/{made['session_id']}"

    async with client.get(one) as answer:
        assert await answer.json() == made
    async with client.get(SESSIONS) as answer:
        assert await answer.json() == {"sessions": [made], "next_cursor": None}

    async with client.put(one, json={"status": "paused", "current_episode": 250}) as answer:
        changed = await answer.json()
    assert (changed["status"], changed["current_episode"], changed["progress"]) == ("paused", 250, 0.25)
    async with client.put(one, json={"status": "completed"}) as answer:
        assert answer.status == 200, await answer.text()
        changed = await answer.json()
    assert changed["status"] == "completed" and changed["end_time"] is not None
    async with client.put(one, json={"status": "running"}) as answer:
        await expect_problem(answer, 409, "conflict")
    async with client.get(f"{one}/transitions") as answer:
        moves = [(move["from_status"], move["to_status"]) for move in (await answer.json())["transitions"]]
    assert moves == [(None, "running"), ("running", "paused"), ("paused", "completed")]

    async with client.delete(one) as answer:
        assert answer.status == 204
    async with client.get(one) as answer:
        await expect_problem(answer, 404, "not-found")
    async with client.delete(one) as answer:
        await expect_problem(answer, 404, "not-found")


@pytest.mark.usefixtures("database_url")
async def test_list_is_newest_first_and_pages_without_gaps(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    made = [await new_session(training_session_id=f"t{number}") for number in range(7)]
    async with client.put(f"{SESSIONS}/{made[3]}", json={"status": "completed"}) as answer:
        assert answer.status == 200
    found: list[str] = []
    cursor = ""
    while True:
        async with client.get(f"{SESSIONS}?limit=3{cursor}") as answer:
            page = await answer.json()
        found += [session["session_id"] for session in page["sessions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == made[::-1]
    async with client.get(f"{SESSIONS}?active=true") as answer:
        active = [session["session_id"] for session in (await answer.json())["sessions"]]
    assert active == [session_id for session_id in made[::-1] if session_id != made[3]]
    async with client.get(f"{SESSIONS}?status=completed,failed") as answer:
        assert [session["session_id"] for session in (await answer.json())["sessions"]] == [made[3]]


async def test_etag_and_preconditions(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.get(one) as answer:
        tag = answer.headers["ETag"]
    async with client.get(one, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304
        assert await answer.read() == b""
    async with client.put(one, json={"current_episode": 1}, headers={"If-Match": tag}) as answer:
        assert answer.status == 200
        newer = answer.headers["ETag"]
    assert newer != tag
    for stale in (tag, '"999"', "nonsense", 'W/"2"'):
        async with client.put(one, json={"current_episode": 2}, headers={"If-Match": stale}) as answer:
            await expect_problem(answer, 412, "version-mismatch")
    async with client.delete(one, headers={"If-Match": tag}) as answer:
        await expect_problem(answer, 412, "version-mismatch")
    async with client.get(one, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 200
        assert (await answer.json())["current_episode"] == 1
    async with client.delete(one, headers={"If-Match": newer}) as answer:
        assert answer.status == 204


@pytest.mark.usefixtures("database_url")
async def test_idempotency_key(client: aiohttp.ClientSession) -> None:
    headers = {"Idempotency-Key": "k-1"}
    ids = set()
    for _ in range(2):
        async with client.post(SESSIONS, json=external(), headers=headers) as answer:
            assert answer.status == 201
            ids.add((await answer.json())["session_id"])
    assert len(ids) == 1
    async with client.post(SESSIONS, json=external(algorithm="PPO"), headers=headers) as answer:
        await expect_problem(answer, 422, "idempotency-key-reused")
    # A request that was refused does not use its key up.
    async with client.post(SESSIONS, json=external(algorithm=""), headers={"Idempotency-Key": "k-2"}) as answer:
        await expect_problem(answer, 422)
    async with client.post(SESSIONS, json=external(), headers={"Idempotency-Key": "k-2"}) as answer:
        assert answer.status == 201
    async with client.get(SESSIONS) as answer:
        assert len((await answer.json())["sessions"]) == 2


async def test_metrics_take_one_or_a_list(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.post(f"{one}/metrics", json=metrics(1)) as answer:
        assert answer.status == 201
        assert await answer.json() == {
            "accepted": 1,
            "duplicates": 0,
            "last_seq": 1,
            "desired": "running",
            "watchers": 0,
        }
    readings = [metrics(number, timestamp=f"2026-01-01T12:00:{number:02}Z") for number in range(2, 12)]
    async with client.post(f"{one}/metrics", json=readings) as answer:
        assert (await answer.json())["accepted"] == 10
    async with client.get(f"{one}/history") as answer:
        history = await answer.json()
    assert [reading["episode"] for reading in history["metrics_data"]] == list(range(1, 12))
    assert history["total_points"] == 11
    async with client.get(one) as answer:
        info = await answer.json()
    assert info["current_episode"] == 11
    assert info["progress"] == pytest.approx(0.011)
    for bad, pointer in (([], ""), ([metrics()] * 501, ""), ([metrics(1), metrics(-1)], "/1/episode")):
        async with client.post(f"{one}/metrics", json=bad) as answer:
            document = await expect_problem(answer, 422)
        assert document["errors"][0]["pointer"] == pointer


@pytest.mark.usefixtures("database_url")
async def test_numbered_posts_are_stored_once(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    for accepted in (2, 0):
        async with client.post(f"{one}/metrics?producer=p&seq=1", json=[metrics(1), metrics(2)]) as answer:
            assert answer.status == 201
            receipt = await answer.json()
        assert (receipt["accepted"], receipt["duplicates"], receipt["last_seq"]) == (accepted, 2 - accepted, 2)
    for query in ("producer=p", "seq=1", "producer=a%20b&seq=1", "producer=p&seq=0"):
        async with client.post(f"{one}/metrics?{query}", json=metrics()) as answer:
            await expect_problem(answer, 422)


async def test_decisions_and_graphs(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.post(f"{one}/bot_decision", json=DECISION) as answer:
        assert answer.status == 201
    async with client.post(f"{one}/bot_decision", json={**DECISION, "action_probabilities": {"a": 0.9}}) as answer:
        document = await expect_problem(answer, 422)
    assert document["errors"][0]["pointer"] == "/action_probabilities"
    later = {"timestamp": "2026-01-01T12:02:00Z", "value": 14.0}
    for points in (GRAPH["data_points"]["current_reward"], [GRAPH["data_points"]["current_reward"][1], later]):
        async with client.post(
            f"{one}/graph_update", json={**GRAPH, "data_points": {"current_reward": points}}
        ) as answer:
            assert answer.status == 201
    async with client.get(f"{one}/history?type=graph_update,bot_decision") as answer:
        history = await answer.json()
    (graph,) = history["graph_data"]
    assert graph["title"] == "Reward Progress"
    assert [point["value"] for point in graph["data_points"]["current_reward"]] == [10.0, 12.5, 14.0]
    (decision,) = history["decision_data"]
    assert decision["selected_action"] == "shoot"
    assert history["metrics_data"] == []


@pytest.mark.usefixtures("database_url")
async def test_events_report_everything_and_carry_the_wish_back(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    checkpoint = {"path": "c1", "timesteps": 9, "episodes": 3, "bytes": 7, "sha256": "a" * 64, "reason": "interval"}
    evaluation = {
        "opponent": "expert",
        "games": 10,
        "wins": 5,
        "losses": 4,
        "draws": 1,
        "win_rate": 50.0,
        "ci_low": 20.0,
        "ci_high": 80.0,
        "mean_return": 1.5,
        "mean_length": 30.0,
    }
    status = {"status": "running", "phase": "evaluating", "timesteps": 9, "total_timesteps": 90, "progress": 0.1}
    events = [
        event(1, "training_status", status),
        event(2, "checkpoint", checkpoint),
        event(3, "evaluation", evaluation),
        event(4, "error", {"code": "low_disk", "message": "no room"}),
        event(5, "training_metrics", metrics(4)),
    ]
    async with client.post(f"{one}/events", json={"producer": "w1", "events": events}) as answer:
        assert answer.status == 201, await answer.text()
        assert await answer.json() == {
            "accepted": 5,
            "duplicates": 0,
            "last_seq": 5,
            "desired": "running",
            "watchers": 0,
        }
    async with client.post(f"{one}/stop") as answer:
        assert (await answer.json())["desired"] == "stopping"
    async with client.post(f"{one}/events", json={"producer": "w1", "events": []}) as answer:
        assert answer.status == 200
        assert await answer.json() == {
            "accepted": 0,
            "duplicates": 0,
            "last_seq": 5,
            "desired": "stopping",
            "watchers": 0,
        }
    async with client.get(one) as answer:
        info = await answer.json()
    assert (info["phase"], info["timesteps"], info["total_timesteps"]) == ("evaluating", 9, 90)
    async with client.get(f"{one}/checkpoints") as answer:
        (kept,) = (await answer.json())["checkpoints"]
    assert checkpoint.items() <= kept.items()
    async with client.get(f"{one}/evaluations") as answer:
        (kept,) = (await answer.json())["evaluations"]
    assert evaluation.items() <= kept.items()
    async with client.get(f"{one}/errors") as answer:
        (kept,) = (await answer.json())["errors"]
    assert {"code": "low_disk", "message": "no room", "detail": None}.items() <= kept.items()


async def test_pause_and_resume_reach_the_producer(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"

    async def desired() -> str:
        async with client.post(f"{one}/events", json={"producer": "w1"}) as answer:
            return str((await answer.json())["desired"])

    for action, wish in (("pause", "paused"), ("resume", "running")):
        if action == "resume":
            body = {"producer": "w1", "events": [event(1, "training_status", {"status": "paused"})]}
            async with client.post(f"{one}/events", json=body) as answer:
                assert answer.status == 201
        async with client.post(f"{one}/{action}") as answer:
            assert answer.status == 200, await answer.text()
        assert await desired() == wish
    async with client.put(one, json={"status": "cancelled"}) as answer:
        assert answer.status == 200
    assert await desired() == "cancelled"
    async with client.post(f"{one}/pause") as answer:
        await expect_problem(answer, 409)


async def test_late_status_does_not_undo_an_end(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.put(one, json={"status": "cancelled"}) as answer:
        assert answer.status == 200
    late = [event(1, "training_status", {"status": "running", "phase": "training", "timesteps": 5, "eta_seconds": 3.0})]
    async with client.post(f"{one}/events", json={"producer": "w", "events": late}) as answer:
        assert answer.status == 201
    async with client.get(one) as answer:
        info = await answer.json()
    assert (info["status"], info["phase"], info["timesteps"], info["eta_seconds"]) == ("cancelled", "", 5, None)


@pytest.mark.usefixtures("database_url")
async def test_history_in_buckets_and_raw_pages(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    readings = [
        metrics(number, current_reward=float(number), timestamp=f"2026-01-01T12:{number // 60:02}:{number % 60:02}Z")
        for number in range(100)
    ]
    async with client.post(f"{one}/metrics", json=readings) as answer:
        assert answer.status == 201
    async with client.get(f"{one}/history?points=10&metrics=current_reward,episode") as answer:
        history = await answer.json()
    buckets = history["metrics_data"]
    assert len(buckets) == 10 and history["total_points"] == 100
    assert sum(bucket["count"] for bucket in buckets) == 100
    for bucket in buckets:
        assert set(bucket["metrics"]) == {"current_reward", "episode"}
        values = bucket["metrics"]["current_reward"]
        assert values["mean"] == pytest.approx((values["min"] + values["max"]) / 2)
        assert values["count"] == bucket["count"] == values["max"] - values["min"] + 1

    seen: list[int] = []
    cursor = ""
    while True:
        async with client.get(f"{one}/history?resolution=raw&limit=33{cursor}") as answer:
            page = await answer.json()
        seen += [reading["episode"] for reading in page["metrics_data"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == list(range(100))

    part = "start_time=2026-01-01T12:00:10Z&end_time=2026-01-01T12:00:19%2B00:00"
    async with client.get(f"{one}/history?{part}") as answer:
        assert [reading["episode"] for reading in (await answer.json())["metrics_data"]] == list(range(10, 20))
    async with client.get(f"{one}/history?first_episode=95") as answer:
        assert (await answer.json())["total_points"] == 5


@pytest.mark.parametrize(
    "query",
    [
        "points=0",
        "points=2001",
        "points=x",
        "points=1&points=2",
        "points=" + "9" * 5000,
        "max_points=-1",
        "limit=0",
        "limit=1001",
        "start_time=yesterday",
        "start_time=2026-01-01T00:00:00",
        "end_time=%ff",
        "resolution=5",
        "type=nothing",
        "metrics=%00",
        "metrics=" + "a" * 5000,
        "first_episode=-1",
    ],
)
async def test_bad_queries_are_422(client: aiohttp.ClientSession, new_session: NewSession, query: str) -> None:
    async with client.get(f"{SESSIONS}/{await new_session()}/history?{query}") as answer:
        await expect_problem(answer, 422, "invalid-values")


@pytest.mark.parametrize("cursor", ["x", "%ff", "W10", "WyJzZXNzaW9ucyIsIDFd", "a" * 600, "W1tbW1tb"])
@pytest.mark.parametrize("path", ["", "/{id}/history", "/{id}/replays", "/{id}/checkpoints"])
async def test_bad_cursors_are_400(
    client: aiohttp.ClientSession, new_session: NewSession, path: str, cursor: str
) -> None:
    path = path.format(id=await new_session())
    async with client.get(f"{SESSIONS}{path}?cursor={cursor}") as answer:
        if len(cursor) > 512 or cursor == "%ff":
            assert answer.status in (400, 422)
        else:
            await expect_problem(answer, 400, "bad-cursor")


@pytest.mark.parametrize("action", ["", "/metrics", "/bot_decision", "/graph_update", "/events", "/history", "/pause"])
async def test_unknown_session_is_404(client: aiohttp.ClientSession, action: str) -> None:
    bodies: dict[str, Any] = {"/metrics": metrics(), "/bot_decision": DECISION, "/graph_update": GRAPH}
    bodies["/events"] = {"producer": "p", "events": []}
    method = "GET" if action in ("", "/history") else "POST"
    async with client.request(method, f"{SESSIONS}/nobody{action}", json=bodies.get(action)) as answer:
        await expect_problem(answer, 404, "not-found")


@asynccontextmanager
async def with_manager(server: RunningServer, folder: Path) -> AsyncIterator[SessionManager]:
    """A server that runs trainings."""
    limits = ResourceLimits(max_parallel_episodes_per_session=1000, max_workers_per_session=4)
    async with SessionManager(resource_limits=limits, storage=server.storage, runs_dir=folder / "runs") as manager:
        server.manager = manager
        yield manager
        server.manager = None


async def test_managed_session_goes_to_the_manager(
    server: RunningServer, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    body = {"config": {"envId": "CartPole-v1", "totalTimesteps": 10**12, "parallelEpisodes": 2}, "priority": 3}
    async with client.post(SESSIONS, json=body) as answer:
        document = await expect_problem(answer, 503, "not-managed")
    assert "gymcast serve" in document["detail"]
    async with with_manager(server, tmp_path) as manager:
        async with client.post(SESSIONS, json=body) as answer:
            assert answer.status == 201, await answer.text()
            made = await answer.json()
        assert (made["kind"], made["priority"], made["config"]["total_timesteps"]) == ("managed", 3, 10**12)
        one = f"{SESSIONS}/{made['session_id']}"
        async with client.delete(one) as answer:
            assert "stop it first" in (await expect_problem(answer, 409))["detail"]
        await until(manager, made["session_id"], "running")
        async with client.put(one, json={"status": "paused", "priority": 9}) as answer:
            assert (await answer.json())["priority"] == 9
        await until(manager, made["session_id"], "paused")
        async with client.put(one, json={"status": "queued"}) as answer:
            await expect_problem(answer, 409)
        async with client.post(f"{one}/resume") as answer:
            assert answer.status == 200
        await until(manager, made["session_id"], "running")
        async with client.get(f"{one}/metrics") as answer:
            assert set((await answer.json())["metrics"]) == set(SESSION_METRICS)
        async with client.get("/api/system/status") as answer:
            status = await answer.json()
        assert (status["metrics"]["active_sessions"], status["queue_length"]) == (1, 0)
        assert status["limits"]["max_parallel_episodes_per_session"] == 1000
        async with client.post(f"{one}/stop") as answer:
            assert (await answer.json())["status"] == "stopping"
        assert (await manager.wait(made["session_id"])).status == "cancelled"
        async with client.post(f"{one}/stop") as answer:
            assert "it has ended" in (await expect_problem(answer, 409))["detail"]
        async with client.get(f"{one}/checkpoints") as answer:
            assert len((await answer.json())["checkpoints"]) >= 2  # of the pause and of the stop
        async with client.get(f"{one}/logs?limit=2") as answer:
            newest = await answer.json()
        assert len(newest["logs"]) == 2 and newest["logs"][0]["offset"] > newest["logs"][1]["offset"]
        async with client.get(f"{one}/logs?cursor={newest['next_cursor']}") as answer:
            older = (await answer.json())["logs"]
        assert older[0]["offset"] < newest["logs"][1]["offset"] and older[-1]["message"].startswith("training CartPole")
        async with client.get(f"{one}/logs?cursor=x") as answer:
            await expect_problem(answer, 400, "bad-cursor")


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"env_id": "archerz"}, "/config/env_id"),
        ({"env_id": "archers", "env_kwargs": {"oponent": "expert"}}, "/config/env_kwargs/oponent"),
        ({"env_id": "archers", "env_kwargs": {"opponent": "nobody"}}, "/config/env_kwargs/opponent"),
        ({"env_id": "archers", "workers": 2}, "/config/workers"),
        ({"env_id": "CartPole-v1", "speedMultiplier": 1000}, "/config/speedMultiplier"),
        ({"env_id": "CartPole-v1", "network": {"valueHidden": [0]}}, "/config/network/valueHidden/0"),
        ({"envId": "CartPole-v1", "parallelEpisodes": 2000}, "/config/parallelEpisodes"),
        ({"env_id": "CartPole-v1", "spedMultiplier": 10}, "/config/spedMultiplier"),
        ({"env_id": 5}, "/config/env_id"),
        ({"algorithm": {}}, "/config/algorithm"),
        ({"env_id": "CartPole-v1", "algorithm": ["PPO"]}, "/config/algorithm"),
        ({"env_id": "CartPole-v1", "parallel_episodes": 2000}, "/config/parallel_episodes"),
        ({"env_id": "CartPole-v1", "workers": 5}, "/config/workers"),
        # A request names no code: it would be run.
        ({"env_id": "CartPole-v1", "gymPackages": ["antigravity"]}, "/config/gymPackages"),
        ({"env_id": "antigravity:CartPole-v1"}, "/config/gym_packages"),
        ({"env_id": "CartPole-v1", "wrappers": ["antigravity:fly"]}, "/config/wrappers/0"),
        ({"env_id": "CartPole-v1", "wrappers": ["RecordVideo"]}, "/config/wrappers/0/name"),
        ({"env_id": "archers", "frame_stack": 4}, "/config/frame_stack"),
    ],
)
async def test_bad_training_configs_name_the_field(
    server: RunningServer, client: aiohttp.ClientSession, config: dict[str, Any], pointer: str, tmp_path: Path
) -> None:
    async with with_manager(server, tmp_path), client.post(SESSIONS, json={"config": config}) as answer:
        document = await expect_problem(answer, 422)
    assert pointer in [error["pointer"] for error in document["errors"]], document


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    config = server_config(tmp_path)
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.post(SESSIONS, json=external()) as answer:
            made = await answer.json()
        async with client.post(f"{SESSIONS}/{made['session_id']}/metrics", json=metrics(7)) as answer:
            assert answer.status == 201
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.get(f"{SESSIONS}/{made['session_id']}/history") as answer:
            assert (await answer.json())["metrics_data"][0]["episode"] == 7
        async with client.get(f"{SESSIONS}/{made['session_id']}") as answer:
            assert (await answer.json())["current_episode"] == 7


async def test_many_posts_at_once_are_all_kept(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"

    async def post(number: int) -> int:
        async with client.post(f"{one}/metrics", json=[metrics(number), metrics(number)]) as answer:
            return answer.status

    assert set(await asyncio.gather(*(post(number) for number in range(40)))) == {201}
    async with client.get(f"{one}/history?points=1") as answer:
        history = await answer.json()
    assert history["total_points"] == history["metrics_data"][0]["count"] == 80
