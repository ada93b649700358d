"""Reporting from the same program: in the server's event loop and from another thread's."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

import aiohttp
import pytest
from pydantic import ValidationError

from gymcast.server import (
    MetricsCollector,
    PortTakenError,
    RunningServer,
    ServerNotRunningError,
    SpectatorManagerIntegration,
    TrainingEngineIntegration,
    TrainingMetricsServer,
    UnknownTrainingError,
    running_server,
)
from gymcast.training.storage import HistoryRange, NotFoundError, StorageUnavailableError

from .conftest import server_config


async def readings(server: RunningServer, session_id: str) -> list[dict[str, object]]:
    return (await server.storage.history_raw(session_id, HistoryRange())).items


async def test_averages_and_win_rate_move_with_the_last_episodes(server: RunningServer) -> None:
    integration = TrainingEngineIntegration(server)
    collector = MetricsCollector(integration, recent=3)
    session_id = await integration.register_training_session("t", 1, "PPO", 4)
    for reward, won in ((4.0, True), (1.0, False), (7.0, True), (2.5, True)):
        await collector.record_episode_end("t", reward, episode_length=int(10 * reward), won=won, epsilon=0.5)
    kept = await readings(server, session_id)
    assert [item["episode"] for item in kept] == [1, 2, 3, 4]
    assert [item["average_reward"] for item in kept] == [4.0, 2.5, 4.0, 3.5]  # the last: (1 + 7 + 2.5) / 3
    assert [item["best_reward"] for item in kept] == [4.0, 4.0, 7.0, 7.0]
    assert [item["win_rate"] for item in kept] == pytest.approx([100.0, 50.0, 200 / 3, 200 / 3])
    assert [item["episode_length"] for item in kept] == [40.0, 10.0, 70.0, 25.0]
    assert (kept[-1]["epsilon"], kept[-1]["total_episodes"]) == (0.5, 4)
    graphs = {graph["graph_id"]: graph["data_points"] for graph in await server.storage.graphs(session_id)}
    assert set(graphs) == {"reward_progress", "win_rate", "episode_length"}
    assert [point["value"] for point in graphs["reward_progress"]["average_reward"]] == [4.0, 2.5, 4.0, 3.5]
    assert [point["value"] for point in graphs["reward_progress"]["current_reward"]] == [4.0, 1.0, 7.0, 2.5]


async def test_a_game_without_a_winner_has_no_win_rate(server: RunningServer) -> None:
    integration = TrainingEngineIntegration(server)
    session_id = await integration.register_training_session("t", 1, "PPO", None)
    await MetricsCollector(integration).record_episode_end("t", -1.0, 5)
    (kept,) = await readings(server, session_id)
    assert (kept["win_rate"], kept["total_episodes"]) == (None, None)
    assert [graph["graph_id"] for graph in await server.storage.graphs(session_id)] == [
        "episode_length",
        "reward_progress",
    ]


async def test_viewers_see_what_is_reported(server: RunningServer, client: aiohttp.ClientSession) -> None:
    integration = TrainingEngineIntegration(server)
    session_id = await integration.register_training_session("t", 1, "PPO", 10)
    async with client.ws_connect(f"/ws/{session_id}") as viewer:
        async with asyncio.timeout(10):
            await integration.update_bot_decision("t", {"left": 0.25, "right": 0.75}, selected_action="right")
            while (message := await viewer.receive_json())["type"] != "bot_decision":
                pass
            assert message["data"]["action_probabilities"] == {"left": 0.25, "right": 0.75}
            points = [{"timestamp": "2024-01-01T12:00:00Z", "value": 3.0}]
            await integration.update_performance_graph("t", "g", "Title", "y", ["a"], {"a": points}, max_points=5)
            while (message := await viewer.receive_json())["type"] != "graph_update":
                pass
            assert message["data"]["data_points"]["a"][0]["value"] == 3.0
            await integration.complete_training_session("t")
            while (message := await viewer.receive_json())["type"] != "training_status":
                pass
            assert message["data"]["status"] == "completed"


async def test_ids_that_are_taken_unknown_or_free_again(server: RunningServer) -> None:
    integration = TrainingEngineIntegration(server)
    collector = MetricsCollector(integration)
    first = await integration.register_training_session("t", 1, "PPO", 10)
    await collector.record_episode_end("t", 9.0, 5)
    with pytest.raises(ValueError, match=f"registered already, as session {first}; complete it"):
        await integration.register_training_session("t", 1, "PPO", 10)
    with pytest.raises(UnknownTrainingError, match=r"'u' is not registered here \(known: t\)"):
        await integration.update_training_metrics("u", 1, 1.0)
    await integration.complete_training_session("t", status="failed")
    with pytest.raises(UnknownTrainingError, match="known: none"):
        await collector.record_episode_end("t", 9.0, 5)
    second = await integration.register_training_session("t", 2, "PPO", 10)
    await collector.record_episode_end("t", 1.0, 5)
    assert second != first
    assert [item["best_reward"] for item in await readings(server, second)] == [1.0]
    assert (await server.storage.get_session(first)).status == "failed"


async def test_values_that_cannot_be_kept_are_refused_with_nothing_stored(server: RunningServer) -> None:
    integration = TrainingEngineIntegration(server)
    collector = MetricsCollector(integration)
    session_id = await integration.register_training_session("t", 1, "PPO", 10)
    with pytest.raises(ValueError, match="finite number, got nan"):
        await collector.record_episode_end("t", float("nan"), 5)
    with pytest.raises(ValueError, match="negative, got -1"):
        await collector.record_episode_end("t", 1.0, -1)
    with pytest.raises(ValidationError, match="win_rate"):
        await integration.update_training_metrics("t", 1, 1.0, win_rate=101.0)
    with pytest.raises(ValidationError, match="probabilities sum to"):
        await integration.update_bot_decision("t", {"left": 0.5})
    with pytest.raises(ValidationError, match="training_session_id"):
        await integration.register_training_session("", 1, "PPO", 10)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MetricsCollector(integration, recent=0)
    assert await readings(server, session_id) == []
    await server.storage.delete_session(session_id)
    with pytest.raises(NotFoundError, match=session_id):
        await collector.record_episode_end("t", 1.0, 5)


async def test_a_server_in_a_thread_is_waited_for_and_can_run_again(tmp_path: Path) -> None:
    server = TrainingMetricsServer(server_config(tmp_path))
    for number in (1, 2):
        integration = TrainingEngineIntegration(server)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            collector = MetricsCollector(integration)
            await integration.register_training_session("t", number, "PPO", 10)
            async with asyncio.TaskGroup() as group:
                for reward in range(20):
                    group.create_task(collector.record_episode_end("t", float(reward), 5))
            async with aiohttp.ClientSession(server.url) as client, client.get("/api/training/sessions") as answer:
                assert [item["current_episode"] for item in (await answer.json())["sessions"]] == [20] * number
        finally:
            server.stop()
            await asyncio.to_thread(thread.join, 20)
        with pytest.raises(ServerNotRunningError, match="start it first"):
            _ = server.url


async def test_a_server_that_is_not_there_says_why(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = TrainingMetricsServer(server_config(tmp_path / "b").model_copy(update={"port": server.port}))
    waiting = asyncio.create_task(TrainingEngineIntegration(taken).register_training_session("t", 1, "PPO", 10))
    await asyncio.sleep(0)
    with pytest.raises(PortTakenError):
        await asyncio.to_thread(taken.run)
    with pytest.raises(ServerNotRunningError, match=f"did not start: port {server.port} is taken"):
        await waiting
    monkeypatch.setattr("gymcast.server.training_metrics_server._START_SECONDS", 0.1)
    with pytest.raises(ServerNotRunningError, match="start it first"):
        await TrainingEngineIntegration(taken).register_training_session("t", 1, "PPO", 10)


async def test_a_server_that_has_ended_takes_nothing(tmp_path: Path) -> None:
    server = TrainingMetricsServer(server_config(tmp_path))
    integration = TrainingEngineIntegration(await server.start())
    await integration.register_training_session("t", 1, "PPO", 10)
    with pytest.raises(RuntimeError, match="running already"):
        await server.start()
    await server.close()
    with pytest.raises(StorageUnavailableError):
        await integration.update_training_metrics("t", 1, 1.0)

    found: Future[RunningServer] = Future()
    ended = threading.Event()

    async def serve_until_ended() -> None:
        async with running_server(server_config(tmp_path)) as running:
            found.set_result(running)
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve_until_ended()))
    thread.start()
    integration = TrainingEngineIntegration(await asyncio.wrap_future(found))
    await integration.register_training_session("t", 1, "PPO", 10)
    ended.set()
    await asyncio.to_thread(thread.join)
    with pytest.raises(ServerNotRunningError, match="has ended"):
        await integration.update_training_metrics("t", 1, 1.0)


async def test_a_session_with_a_room_for_it(server: RunningServer) -> None:
    integration = SpectatorManagerIntegration(server)
    about = {"training_session_id": "t", "model_generation": 1, "algorithm": "PPO", "total_episodes": None}
    with pytest.raises(ValidationError, match="max_spectators"):
        await integration.create_integrated_session(**about, max_spectators=0)
    assert (await server.storage.list_sessions())[0] == []
    info = await integration.create_integrated_session(**about, password_protected=False, expires_in=60.0)
    assert (info["room_password"], info["join_path"]) == (None, f"/#/room/{info['room_code']}")
    room = await server.storage.rooms.get(info["room_code"])
    assert (room.password_hash, room.max_spectators, room.to_json()["expires_at"]) == (None, 20, info["expires_at"])
    await integration.trainings.update_training_metrics("t", 3, 1.0)
    assert (await server.storage.get_session(info["session_id"])).current_episode == 3


async def test_a_session_with_a_room_of_another_spectator_system(server: RunningServer) -> None:
    class Lobby:
        """A spectator system with rooms of its own."""

        def __init__(self) -> None:
            self.rooms: dict[str, str] = {}

        async def create_room(
            self, *, training_session_id: str, max_spectators: int, password_protected: bool
        ) -> dict[str, str | None]:
            self.rooms[training_session_id] = f"L-{max_spectators}"
            return {"room_code": self.rooms[training_session_id], "room_password": "pw" if password_protected else None}

    lobby = Lobby()
    integration = SpectatorManagerIntegration(server, lobby)
    info = await integration.create_integrated_session("t", 1, "PPO", 10, max_spectators=7)
    assert lobby.rooms == {"t": "L-7"}
    assert (info["room_code"], info["room_password"], info["join_path"]) == ("L-7", "pw", None)
    assert (await server.storage.get_session(info["session_id"])).room_code == "L-7"
    assert (await server.storage.rooms.page()).items == []
