"""Settings: keyword arguments, JSON file, environment; every problem named at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gymcast.server import (
    DatabaseConfig,
    PerformanceConfig,
    SecurityConfig,
    ServerConfig,
    ServerConfigError,
    ServerConfiguration,
    create_app,
)

from ..reference_examples import CONFIG_FILE

REFERENCE_ENVIRONMENT = {
    "TRAINING_METRICS_HOST": "localhost",
    "TRAINING_METRICS_PORT": "8001",
    "TRAINING_METRICS_DEBUG": "true",
    "DATABASE_URL": "sqlite:///elsewhere.db",
    "REDIS_URL": "redis://localhost:6379",
    "CORS_ORIGINS": "http://localhost:3000, http://localhost:4000",
    "GAME_SERVER_URL": "http://localhost:4000",
    "MAX_CONNECTIONS_PER_SESSION": "7",
    "DATA_STORAGE_PATH": "data/training_metrics",
}


def test_defaults_start_on_loopback() -> None:
    config = ServerConfig()
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config.database_url == "sqlite:///data/training_metrics.db"
    config.check_startable()


def test_reference_forms_mean_the_same() -> None:
    flat = ServerConfig(host="localhost", cors_origins=["http://localhost:3000"], max_connections_per_session=50)
    nested = ServerConfiguration(
        host="localhost",
        security=SecurityConfig(cors_origins=("http://localhost:3000",)),
        performance=PerformanceConfig(max_connections_per_session=50),
    )
    assert flat == nested
    assert flat.security.cors_origins == ("http://localhost:3000",)
    create_app(flat)


def test_reference_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG_FILE))
    config = ServerConfig.from_file(path)
    assert config.integration.game_server_url == "http://localhost:4000"
    assert config.performance.metrics_history_size == 10_000
    create_app(config)


def test_environment_wins_over_the_file_and_arguments_over_both(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG_FILE))
    config = ServerConfig.load(path, REFERENCE_ENVIRONMENT, port=0, max_total_connections=9)
    assert (config.port, config.debug) == (0, True)
    assert config.database_url == "sqlite:///elsewhere.db"
    assert config.security.cors_origins == ("http://localhost:3000", "http://localhost:4000")
    assert config.performance.max_connections_per_session == 7
    assert config.performance.max_total_connections == 9
    assert config.performance.cleanup_interval_seconds == 300
    assert config.redis.url == "redis://localhost:6379"


def test_storage_path_decides_where_the_file_lies() -> None:
    config = ServerConfig.from_env({"DATA_STORAGE_PATH": "data/here"})
    assert config.database_url == "sqlite:///data/here/training_metrics.db"


def test_every_problem_is_named_at_once() -> None:
    environment = {"TRAINING_METRICS_PORT": "99999", "CORS_ORIGINS": "*,http://ok.example", "JWT_SECRET_KEY": "short"}
    environment["GYMCAST_TRUSTED_PROXIES"] = "10.0.0.0/8, nonsense"
    with pytest.raises(ServerConfigError) as raised:
        ServerConfig.from_env(environment)
    assert {setting for setting, _ in raised.value.problems} == {
        "port",
        "security.trusted_proxies.1",
        "security.cors_origins",
        "security.jwt_secret_key",
    }
    assert "99999" in str(raised.value)


@pytest.mark.parametrize("secret", ["your-secret-key", "production-secret-key", "x" * 31, "Your-Secret-Key" * 3])
def test_weak_and_example_secrets_are_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ServerConfigError) as raised:
        ServerConfig.from_env({"JWT_SECRET_KEY": secret})
    assert secret not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"jwt_secret_key": "hush-hush"},
        {"security": {"jwt_secret_key": "hush-hush"}},
        {"security": {"jwt_secret": "hush-hush"}},
        {"jwt-secret-key": "hush-hush"},
        {"redis": {"url": "http://user:hush-hush@host"}},
        {"database": {"url": 7, "password": "hush-hush"}},
    ],
)
def test_no_error_repeats_a_secret(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as raised:
        ServerConfig(**values)
    assert "hush" not in str(raised.value)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ServerConfigError) as refused:
        ServerConfig.from_file(path)
    assert "hush" not in str(refused.value)


def test_a_good_secret_is_not_shown() -> None:
    config = ServerConfig(jwt_secret_key="k" * 32)
    assert "kkkk" not in repr(config) and "kkkk" not in config.model_dump_json()


@pytest.mark.parametrize(
    "values",
    [
        {"hots": "localhost"},
        {"database": {"urll": "x"}},
        {"cors_origins": ["http://a.example/path"]},
        {"cors_origins": ["http://a.example"], "security": {"cors_origins": []}},
        {"max_connections_per_session": 0},
        {"log_level": "LOUD"},
        {"redis": {"url": "http://localhost:6379"}},
        {"redis": {"prefix": "a b"}},
    ],
)
def test_unknown_and_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServerConfig(**values)


@pytest.mark.parametrize("values", [{"redis": {"enabled": True}}, {"redis": {"url": "redis://127.0.0.1:1"}}])
def test_redis_without_its_package_is_told_with_the_remedy(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ServerConfig(**values).redis_url is not None
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ServerConfigError, match=r"pip install 'gymcast\[redis\]'"):
        create_app(ServerConfig(**values))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_bad_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ServerConfigError, match=r"config\.json"):
        ServerConfig.from_file(path)


def test_switched_off_database_still_has_a_section() -> None:
    assert ServerConfig(database=DatabaseConfig(enabled=False)).database.enabled is False
