"""The aiohttp server, the page and the command line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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

_MODULES: Final = {
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
_HOME: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the command line starts without aiohttp and the database.
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module, __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
