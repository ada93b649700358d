"""The examples of the metrics server's reference document, field for field."""

from __future__ import annotations

from typing import Any

METRICS: dict[str, Any] = {
    "timestamp": "2024-01-01T12:00:00Z",
    "episode": 100,
    "total_episodes": 1000,
    "current_reward": 15.5,
    "average_reward": 12.3,
    "best_reward": 20.1,
    "episode_length": 250,
    "win_rate": 75.5,
    "loss_value": 0.05,
    "learning_rate": 0.001,
    "epsilon": 0.1,
    "model_generation": 2,
    "algorithm": "DQN",
    "training_time_elapsed": 3600.0,
    "actions_per_second": 30.5,
    "frames_per_second": 60.0,
    "memory_usage_mb": 512.0,
}
DECISION: dict[str, Any] = {
    "timestamp": "2024-01-01T12:00:00Z",
    "action_probabilities": {"move_left": 0.3, "move_right": 0.2, "jump": 0.1, "shoot": 0.4},
    "state_values": 5.5,
    "q_values": [1.2, 2.3, 0.8, 3.1],
    "selected_action": "shoot",
    "confidence_score": 0.85,
}
GRAPH: dict[str, Any] = {
    "graph_id": "reward_progress",
    "title": "Reward Progress",
    "y_label": "Reward",
    "metrics": ["current_reward", "average_reward"],
    "data_points": {
        "current_reward": [
            {"timestamp": "2024-01-01T12:00:00Z", "value": 10.0},
            {"timestamp": "2024-01-01T12:01:00Z", "value": 12.5},
        ]
    },
    "max_points": 1000,
}
