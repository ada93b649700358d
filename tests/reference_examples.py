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
CONFIG_FILE: dict[str, Any] = {
    "host": "localhost",
    "port": 8000,
    "debug": False,
    "database": {"enabled": True, "url": "sqlite:///data/training_metrics.db"},
    "redis": {"enabled": False, "host": "localhost", "port": 6379},
    "security": {"enable_auth": False, "cors_origins": ["http://localhost:3000"]},
    "integration": {"game_server_url": "http://localhost:4000", "enable_spectator_integration": True},
    "performance": {"max_connections_per_session": 50, "metrics_history_size": 10000, "cleanup_interval_seconds": 300},
}
ENVIRONMENT: dict[str, str] = {
    "TRAINING_METRICS_HOST": "localhost",
    "TRAINING_METRICS_PORT": "8000",
    "TRAINING_METRICS_DEBUG": "false",
    "DATABASE_URL": "sqlite:///data/training_metrics.db",
    "REDIS_URL": "redis://localhost:6379",
    "JWT_SECRET_KEY": "your-secret-key",
    "CORS_ORIGINS": "http://localhost:3000,http://localhost:4000",
    "GAME_SERVER_URL": "http://localhost:4000",
    "MAX_CONNECTIONS_PER_SESSION": "50",
    "DATA_STORAGE_PATH": "data/training_metrics",
}
