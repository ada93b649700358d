"""The examples of the session reference, each as it is written there, against real training.

Only the import path is another one. Where the reference leaves the environment open, it is the default one, Archers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gymcast.training.limits import ResourceLimits as DefaultLimits
from gymcast.training.sessions import SESSION_METRICS

SECONDS = 120


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is said, runs are kept in ./runs."""
    monkeypatch.chdir(tmp_path)


async def test_training_session_and_its_handlers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gymcast.training import TrainingConfig, TrainingMode, TrainingSession

    # Create configuration
    config = TrainingConfig(
        speed_multiplier=10.0,
        headless_mode=True,
        max_episodes=1000,
        parallel_episodes=4,
        training_mode=TrainingMode.TRAINING,
        spectator_enabled=False,
    )
    # A thousand episodes take minutes with four lanes; thirty show the same.
    config = config.model_copy(update={"max_episodes": 30, "evaluation_games": 8})

    # Create and run session
    session = TrainingSession(config=config)
    await session.initialize()

    # Episode completion handler
    async def on_episode_complete(result: Any) -> None:
        print(f"Episode {result.episode_id}: reward={result.total_reward}")

    session.register_episode_handler(on_episode_complete)

    # Metrics update handler
    async def on_metrics_update(metrics: Any) -> None:
        print(f"Progress: {metrics.episodes_completed} episodes")

    session.register_metrics_handler(on_metrics_update)
    async with asyncio.timeout(SECONDS):
        await session.start_training()

    # Get session metrics
    info = await session.get_session_info()
    metrics = info["metrics"]

    assert (info["status"], info["env_id"]) == ("completed", "gymcast/Archers-v0")
    assert set(metrics) == set(SESSION_METRICS)
    assert metrics["episodes_completed"] >= 30
    assert metrics["worst_reward"] <= metrics["average_reward"] <= metrics["best_reward"]
    assert 0.0 <= metrics["success_rate"] <= 100.0
    assert metrics["training_seconds"] > 0.0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("Episode ep_")]
    assert [line.split(":")[0] for line in told] == [
        f"Episode ep_{number:06d}" for number in range(1, metrics["episodes_completed"] + 1)
    ]
    assert f"Progress: {metrics['episodes_completed']} episodes" in lines
    assert (tmp_path / "runs" / info["session_id"] / "summary.json").exists()


async def test_session_manager_and_its_handlers() -> None:
    from gymcast.training import ResourceLimits, SessionManager, TrainingConfig

    seen: list[tuple[str, str]] = []

    async def on_session_start(session: Any) -> None:
        seen.append(("start", session.session_id))

    def on_session_complete(session: Any) -> None:
        seen.append((session.status, session.session_id))

    async def on_resource_alert(alert: Any) -> None:
        seen.append(("alert", alert.resource))

    config = TrainingConfig(env_id="CartPole-v1", parallel_episodes=4, total_timesteps=512, evaluation_games=0)
    config = config.model_copy(update={"hyperparameters": {"n_steps": 64}})

    # Configure resource limits
    limits = ResourceLimits(
        max_concurrent_sessions=5,
        max_parallel_episodes_per_session=4,
        max_total_parallel_episodes=16,
    )

    # Create and start manager
    manager = SessionManager(resource_limits=limits)
    await manager.start()
    # Session lifecycle handlers
    manager.register_session_start_handler(on_session_start)
    manager.register_session_complete_handler(on_session_complete)
    manager.register_resource_alert_handler(on_resource_alert)

    # Create sessions
    session_id = await manager.create_session(config=config, priority=1)
    async with asyncio.timeout(SECONDS):
        record = await manager.wait(session_id)
    assert (record.status, record.priority) == ("completed", 1)

    # Get global metrics
    global_metrics = await manager.get_global_metrics()
    assert global_metrics["sessions"] == {"completed": 1}
    assert global_metrics["timesteps"] >= 512
    assert global_metrics["episodes_completed"] > 0
    await manager.stop()
    assert seen == [("start", session_id), ("completed", session_id)]


async def test_training_api() -> None:
    from gymcast.training import TrainingAPI

    # Create API
    api = TrainingAPI()
    await api.start()

    # Create session via API
    result = await api.create_training_session(
        {
            "config": {
                "speedMultiplier": 15.0,
                "headlessMode": True,
                "maxEpisodes": 500,
            },
            "priority": 1,
        }
    )

    # Get system status
    status = await api.get_system_status()

    assert (result["kind"], result["priority"], result["config"]["max_episodes"]) == ("managed", 1, 500)
    assert result["config"]["speed_multiplier"] == 15.0
    assert status["limits"]["max_concurrent_sessions"] == DefaultLimits().max_concurrent_sessions
    assert sum(status["metrics"]["sessions"].values()) == 1
    await api.cancel_training_session(result["session_id"])
    await api.stop()
