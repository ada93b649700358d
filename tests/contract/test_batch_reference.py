"""The reference's example of ``BatchEpisodeManager`` runs as it is written there, but for the import path."""

from __future__ import annotations

import ast
import inspect
import textwrap

import gymcast.training

EXAMPLE = """
from bot.rl_bot_system.training import BatchEpisodeManager

# Create batch manager
batch_manager = BatchEpisodeManager(
    max_parallel_episodes=8,
    max_retries=3,
    episode_timeout=300
)

await batch_manager.start()

# Submit episode batch
await batch_manager.submit_batch(
    batch_id="training_batch_001",
    episode_ids=["ep_001", "ep_002", "ep_003"],
    room_code="TR123456",
    max_parallel=4
)
"""


async def test_the_example_plays_real_episodes() -> None:
    code = EXAMPLE.replace("bot.rl_bot_system.training", "gymcast.training")
    space: dict[str, object] = {}
    await eval(compile(code, "reference", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), space)
    manager = space["batch_manager"]
    assert isinstance(manager, gymcast.training.BatchEpisodeManager)
    try:
        status = await manager.wait_batch("training_batch_001")
        results = {result.episode_id: result for result in await manager.get_results("training_batch_001")}
    finally:
        await manager.stop()
    assert (status.state, status.total, status.completed, status.progress) == ("completed", 3, 3, 100.0)
    assert status.env_id == "gymcast/Archers-v0" and status.room_code == "TR123456"
    assert sorted(results) == ["ep_001", "ep_002", "ep_003"]
    for result in results.values():
        assert result.length and result.game_seconds and result.duration_seconds and result.outcome
        assert result.room_code == "TR123456" and result.attempts == 1 and result.error is None
    assert len({result.total_reward for result in results.values()}) == 3


def test_its_defaults_are_those_of_the_example() -> None:
    signature = inspect.signature(gymcast.training.BatchEpisodeManager)
    given = {name: parameter.default for name, parameter in signature.parameters.items()}
    assert given.items() >= {"max_parallel_episodes": 8, "max_retries": 3, "episode_timeout": 300}.items()
    assert textwrap.dedent(EXAMPLE).count("await ") == 2
