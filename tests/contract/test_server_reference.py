"""The examples of the metrics server's reference, each as it is written there, against a server that runs.

Only the import path is another one, and the port: 8000 may be taken. The JavaScript example is in
``tests/browser/test_page_reference.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from gymcast.server import ServerConfig, ServerConfigError, TrainingMetricsServer

from ..reference_examples import CONFIG_FILE, DECISION, ENVIRONMENT, GRAPH, METRICS


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is said, the database is in ./data."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def metrics_server() -> AsyncIterator[TrainingMetricsServer]:
    async with TrainingMetricsServer(ServerConfig(host="localhost", port=0)) as server:
        yield server


async def get(server: TrainingMetricsServer, path: str) -> Any:
    async with aiohttp.ClientSession(server.url) as client, client.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_quick_start() -> None:
    # Basic Server Setup
    from gymcast.server import ServerConfig, TrainingMetricsServer

    # Create configuration
    config = ServerConfig(
        host="localhost",
        port=8000,
        cors_origins=["http://localhost:3000"],
        max_connections_per_session=50,
    )
    assert (config.host, config.port) == ("localhost", 8000)
    config = config.model_copy(update={"port": 0})

    # Create and run server
    server = TrainingMetricsServer(config)
    thread = threading.Thread(target=lambda: server.run())
    thread.start()
    try:
        # Training Engine Integration
        from gymcast.server.integration import MetricsCollector, TrainingEngineIntegration

        # Create integration
        integration = TrainingEngineIntegration(server)
        collector = MetricsCollector(integration)

        # Register training session
        session_id = await integration.register_training_session(
            training_id="my_training_001",
            model_generation=2,
            algorithm="DQN",
            total_episodes=1000,
        )

        # Record training episodes
        await collector.record_episode_end(
            training_id="my_training_001",
            reward=15.5,
            episode_length=200,
            won=True,
            total_episodes=1000,
        )

        info = await get(server, f"/api/training/sessions/{session_id}")
        assert (info["training_session_id"], info["model_generation"], info["algorithm"]) == (
            "my_training_001",
            2,
            "DQN",
        )
        assert (info["status"], info["current_episode"], info["total_episodes"]) == ("running", 1, 1000)
        (reading,) = (await get(server, f"/api/training/sessions/{session_id}/history"))["metrics_data"]
        assert (reading["current_reward"], reading["average_reward"], reading["best_reward"]) == (15.5, 15.5, 15.5)
        assert (reading["episode_length"], reading["win_rate"], reading["episode"]) == (200.0, 100.0, 1)
        origin = "http://localhost:3000"
        async with aiohttp.request("GET", f"{server.url}/health", headers={"Origin": origin}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == origin
    finally:
        server.stop()
        await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


async def test_training_engine_example(metrics_server: TrainingMetricsServer) -> None:
    from gymcast.server.integration import TrainingEngineIntegration

    class MyTrainingEngine:
        def __init__(self) -> None:
            self.metrics_integration = TrainingEngineIntegration(metrics_server)

        async def start_training(self, config: Any) -> None:
            # Register training session
            session_id = await self.metrics_integration.register_training_session(
                training_id=config.training_id,
                model_generation=config.generation,
                algorithm=config.algorithm,
                total_episodes=config.episodes,
            )

            for episode in range(config.episodes):
                # Train episode
                reward, length, won = await self.train_episode()

                # Update metrics
                await self.metrics_integration.update_training_metrics(
                    training_id=config.training_id,
                    episode=episode,
                    current_reward=reward,
                    episode_length=length,
                    # ... other metrics
                )
            self.session_id, self.won = session_id, won

        async def train_episode(self) -> tuple[float, int, bool]:
            return 2.5, 40, True

    engine = MyTrainingEngine()
    await engine.start_training(SimpleNamespace(training_id="t", generation=3, algorithm="PPO", episodes=4))
    history = await get(metrics_server, f"/api/training/sessions/{engine.session_id}/history")
    assert [reading["episode"] for reading in history["metrics_data"]] == [0, 1, 2, 3]
    last = history["metrics_data"][-1]
    assert (last["total_episodes"], last["model_generation"], last["algorithm"]) == (4, 3, "PPO")
    assert (last["episode_length"], last["average_reward"], last["win_rate"]) == (40.0, None, None)


async def test_spectator_manager_integration(
    metrics_server: TrainingMetricsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    from gymcast.server.integration import SpectatorManagerIntegration

    # Rooms are this server's own: there is no other spectator system to be a bridge to.
    spectator_manager = None

    # Create integrated session
    integration = SpectatorManagerIntegration(metrics_server, spectator_manager)

    session_info = await integration.create_integrated_session(
        training_session_id="training_001",
        model_generation=2,
        algorithm="PPO",
        total_episodes=1000,
        # Spectator-specific options
        max_spectators=20,
        password_protected=True,
    )

    print(f"Room code: {session_info['room_code']}")
    print(f"Password: {session_info['room_password']}")

    code, password = re.findall(r": (.+)", capsys.readouterr().out)
    session = await get(metrics_server, f"/api/training/sessions/{session_info['session_id']}")
    assert (session["training_session_id"], session["room_code"]) == ("training_001", code)
    room = await get(metrics_server, f"/api/rooms/{code}")
    assert (room["max_spectators"], room["password_protected"], room["expires_at"]) == (20, True, None)
    async with aiohttp.ClientSession(metrics_server.url) as client:
        async with client.post(f"/api/rooms/{code}/join", json={"password": password}) as answer:
            token = (await answer.json())["token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with client.ws_connect(f"/ws/{session_info['session_id']}", headers=headers) as spectator:
            assert (await spectator.receive_json(timeout=5))["type"] == "connection_status"
            assert (await get(metrics_server, f"/api/rooms/{code}"))["spectator_count"] == 1


async def test_data_models(metrics_server: TrainingMetricsServer) -> None:
    from gymcast.server import (
        BotDecisionData,
        PerformanceGraphData,
        TrainingEngineIntegration,
        TrainingMetricsData,
    )

    integration = TrainingEngineIntegration(metrics_server)
    session_id = await integration.register_training_session("t", 2, "DQN", 1000)
    receipt = await integration.report(
        "t", TrainingMetricsData(**METRICS), BotDecisionData(**DECISION), PerformanceGraphData(**GRAPH)
    )
    assert receipt.accepted == 3
    history = await get(
        metrics_server,
        f"/api/training/sessions/{session_id}/history?type=training_metrics,graph_update,bot_decision",
    )
    (reading,), (graph,), (decision,) = history["metrics_data"], history["graph_data"], history["decision_data"]
    for sent, kept in ((METRICS, reading), (DECISION, decision)):
        assert {name: kept[name] for name in sent} == sent
    assert (graph["graph_id"], graph["title"], graph["y_label"], graph["metrics"], graph["max_points"]) == (
        *("reward_progress", "Reward Progress", "Reward"),
        *(["current_reward", "average_reward"], 1000),
    )
    assert [point["value"] for point in graph["data_points"]["current_reward"]] == [10.0, 12.5]


async def test_every_endpoint(metrics_server: TrainingMetricsServer) -> None:
    async with aiohttp.ClientSession(metrics_server.url) as client:

        async def ask(method: str, path: str, body: Any = None) -> Any:
            async with client.request(method, path, json=body) as answer:
                assert answer.status in (200, 201, 204), (method, path, await answer.text())
                return None if answer.status == 204 else await answer.json()

        new = {"training_session_id": "t", "model_generation": 1, "algorithm": "PPO", "total_episodes": 10}
        session_id = (await ask("POST", "/api/training/sessions", new))["session_id"]
        one = f"/api/training/sessions/{session_id}"
        assert [item["session_id"] for item in (await ask("GET", "/api/training/sessions"))["sessions"]] == [session_id]
        for path, body in (("metrics", METRICS), ("bot_decision", DECISION), ("graph_update", GRAPH)):
            await ask("POST", f"{one}/{path}", body)
        assert (await ask("GET", f"{one}/history"))["total_points"] == 1
        assert (await ask("PUT", one, {"status": "completed"}))["status"] == "completed"
        assert (await ask("GET", one))["status"] == "completed"
        assert (await ask("GET", "/health"))["status"] == "healthy"
        assert (await ask("GET", "/status"))["active_sessions"] == 0
        await ask("DELETE", one)


def test_environment_variables() -> None:
    with pytest.raises(ServerConfigError, match="documentation's example") as raised:
        ServerConfig.from_env(ENVIRONMENT)
    assert [setting for setting, _ in raised.value.problems] == ["security.jwt_secret_key"]
    config = ServerConfig.from_env({**ENVIRONMENT, "JWT_SECRET_KEY": "k" * 32})
    assert (config.host, config.port, config.debug) == ("localhost", 8000, False)
    assert config.database_url == "sqlite:///data/training_metrics.db"
    assert config.redis.url == "redis://localhost:6379"
    assert config.security.cors_origins == ("http://localhost:3000", "http://localhost:4000")
    assert config.integration.game_server_url == "http://localhost:4000"
    assert config.performance.max_connections_per_session == 50
    assert config.data_storage_path == Path("data/training_metrics")


async def test_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG_FILE))
    assert ServerConfig.from_file(path).port == 8000
    async with TrainingMetricsServer(ServerConfig.load(path, {}, port=0)) as server:
        assert (await get(server, "/health"))["status"] == "healthy"
    assert (tmp_path / "data" / "training_metrics.db").exists()


def test_server_as_a_module_with_the_environment_variables() -> None:
    """As the reference's Dockerfile starts it; the Redis server is left out, for there may be none here."""
    command = [sys.executable, "-m", "gymcast.server.training_metrics_server"]
    variables = {**os.environ, **ENVIRONMENT, "TRAINING_METRICS_PORT": "0"}
    del variables["REDIS_URL"]
    refused = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "jwt_secret_key" in refused.stderr and "your-secret-key" not in refused.stderr
    variables["JWT_SECRET_KEY"] = "k" * 32
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert re.fullmatch(r"gymcast listens on http://localhost:\d+\n", process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_production_configuration_needs_a_secret_of_its_own() -> None:
    from gymcast.server.config import (
        DatabaseConfig,
        PerformanceConfig,
        RedisConfig,
        SecurityConfig,
        ServerConfiguration,
    )

    def production(secret: str) -> ServerConfiguration:
        return ServerConfiguration(
            host="0.0.0.0",
            port=8000,
            debug=False,
            database=DatabaseConfig(enabled=True, url="postgresql://user:pass@db:5432/training_metrics"),
            redis=RedisConfig(enabled=True, host="redis", port=6379),
            security=SecurityConfig(enable_auth=True, jwt_secret_key=secret, cors_origins=["https://yourdomain.com"]),
            performance=PerformanceConfig(
                max_connections_per_session=100, max_total_connections=1000, enable_rate_limiting=True
            ),
        )

    with pytest.raises(ValidationError, match="documentation's example"):
        production("production-secret-key")
    config = production("a secret of more than thirty-two bytes")
    assert (config.performance.max_total_connections, config.redis.host) == (1000, "redis")


def test_debug_mode() -> None:
    config = ServerConfig(debug=True, log_level="DEBUG")
    server = TrainingMetricsServer(config)
    assert server.config.debug
