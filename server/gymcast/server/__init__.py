"""The aiohttp server, the page and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gymcast.training.lazy import lazy_names

if TYPE_CHECKING:
    from gymcast.training.events import BotDecisionData, PerformanceGraphData, TrainingMetricsData

    from .app import (
        PortTakenError,
        RunningServer,
        ServerNotRunningError,
        create_app,
        run_server,
        running_server,
    )
    from .config import (
        DatabaseConfig,
        IntegrationConfig,
        PerformanceConfig,
        RedisConfig,
        SecurityConfig,
        ServerConfig,
        ServerConfigError,
        ServerConfiguration,
    )
    from .hub import Hub
    from .integration import (
        MetricsCollector,
        SpectatorManagerIntegration,
        TrainingEngineIntegration,
        UnknownTrainingError,
    )
    from .training_metrics_server import TrainingMetricsServer

__all__ = [
    "BotDecisionData",
    "DatabaseConfig",
    "Hub",
    "IntegrationConfig",
    "MetricsCollector",
    "PerformanceConfig",
    "PerformanceGraphData",
    "PortTakenError",
    "RedisConfig",
    "RunningServer",
    "SecurityConfig",
    "ServerConfig",
    "ServerConfigError",
    "ServerConfiguration",
    "ServerNotRunningError",
    "SpectatorManagerIntegration",
    "TrainingEngineIntegration",
    "TrainingMetricsData",
    "TrainingMetricsServer",
    "UnknownTrainingError",
    "create_app",
    "run_server",
    "running_server",
]

_NAMES: Final = {
    ".app": ("PortTakenError", "RunningServer", "ServerNotRunningError", "create_app", "run_server", "running_server"),
    ".config": (
        "DatabaseConfig",
        "IntegrationConfig",
        "PerformanceConfig",
        "RedisConfig",
        "SecurityConfig",
        "ServerConfig",
        "ServerConfigError",
        "ServerConfiguration",
    ),
    ".hub": ("Hub",),
    ".integration": (
        "MetricsCollector",
        "SpectatorManagerIntegration",
        "TrainingEngineIntegration",
        "UnknownTrainingError",
    ),
    ".training_metrics_server": ("TrainingMetricsServer",),
    "gymcast.training.events": ("BotDecisionData", "PerformanceGraphData", "TrainingMetricsData"),
}
# Loaded on first use, so that the command line starts without aiohttp and the database.
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
