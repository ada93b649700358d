"""Configuration of the server: keyword arguments, a JSON file, environment variables. One model for all three."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.networks import IPvAnyNetwork

from .logs import LogFormat

MIN_SECRET_BYTES: Final = 32
# The secret that the documentation shows; a server that uses it is open to everybody.
EXAMPLE_SECRETS: Final = frozenset({"your-secret-key", "production-secret-key"})
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?")
_DEFAULT_DATABASE: Final = "sqlite:///data/training_metrics.db"


def check_secret(secret: str) -> None:
    """Raise ``ValueError`` for a secret that somebody could guess; the text does not repeat it."""
    if any(example in secret.lower() for example in EXAMPLE_SECRETS):
        raise ValueError(
            "this is the secret of the documentation's example; make one of your own: gymcast token secret"
        )
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(
            f"{len(secret.encode())} bytes are too short; use at least {MIN_SECRET_BYTES}: gymcast token secret"
        )


_NO_SECRET: Final = (
    f"is missing: a secret of at least {MIN_SECRET_BYTES} bytes signs the tokens."
    ' Make one: export JWT_SECRET_KEY="$(gymcast token secret)"'
)


class ServerConfigError(ValueError):
    """Settings the server cannot start with. ``problems`` lists every one as ``(setting, text)``."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__(
            "\n".join(["the server cannot start with these settings:", *(f"  {a}: {b}" for a, b in problems)])
        )


class _Section(BaseModel):
    # Inputs may be secrets, or URLs with passwords in them; load() shows those that are not.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DatabaseConfig(_Section):
    """Where sessions and metrics are kept."""

    enabled: bool = Field(default=True, description="false: keep everything in a temporary file until the server ends")
    url: str | None = Field(
        default=None,
        description="sqlite:///path/to/file.db or postgresql://user:password@host:port/name;"
        f" null: the SQLite file of data_storage_path, or {_DEFAULT_DATABASE}",
        repr=False,
    )


class RedisConfig(_Section):
    """The channel between several server processes."""

    enabled: bool = Field(default=False, description="share live messages between server processes through Redis")
    host: str = Field(default="localhost", description="host of the Redis server")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=6379, description="its port")
    url: str | None = Field(
        default=None, description="redis:// or rediss:// URL; replaces host and port, and turns enabled on", repr=False
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field(
        default="gymcast", description="beginning of every key and channel; servers with one database share one"
    )

    @field_validator("url")
    @classmethod
    def _of_redis(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("not a Redis URL; write redis://[user:password@]host:port, or rediss:// for TLS")
        return value


class SecurityConfig(_Section):
    """Who may talk to the server."""

    enable_auth: bool = Field(default=False, description="require a token on every request")
    jwt_secret_key: SecretStr | None = Field(
        default=None, description=f"secret that signs tokens, at least {MIN_SECRET_BYTES} bytes"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="exact origins of pages that may use this server, such as http://localhost:3000; a server that"
        " other machines can reach needs its own page's origin here",
    )
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)$")], ...] = Field(
        default=(),
        description="more names under which this server is reached (the Host header without its port); those of"
        " cors_origins, of this machine, and with authentication every IP address are known anyway",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description="reverse proxies, or networks of them, whose X-Forwarded-For is believed"
    )
    gym_packages: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")], ...] = Field(
        default=(),
        description="modules that a session created by REST may import for environments and wrappers of its own; "
        "none but these",
    )

    @field_validator("cors_origins")
    @classmethod
    def _exact(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [origin for origin in value if not _ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(
                f"not an origin: {', '.join(map(repr, wrong))}; write scheme://host[:port] without path or wildcard"
            )
        return tuple(origin.lower() for origin in value)

    @field_validator("jwt_secret_key")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value


class IntegrationConfig(_Section):
    """The game server beside this one."""

    game_server_url: str | None = Field(default=None, description="address of a game server to integrate with")
    enable_spectator_integration: bool = Field(default=True, description="let rooms be opened for guests")


_PerMinute = Annotated[int, Field(ge=1, le=10_000_000)]


class PerformanceConfig(_Section):
    """Limits."""

    max_connections_per_session: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=50, description="WebSocket viewers of one session"
    )
    max_total_connections: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1000, description="WebSocket viewers in all"
    )
    metrics_history_size: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=10_000,
        description="newest readings, decisions and reports kept of each session; older readings live on as sums",
    )
    cleanup_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=300, description="seconds between clean-ups of what is no longer kept, in the database and in memory"
    )
    request_wait_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=10,
        description="seconds a connection may take to send the next request's line and headers, idle time included",
    )
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=20,
        description="a WebSocket viewer is pinged after so many silent seconds, and closed after half as many more",
    )
    enable_rate_limiting: bool = Field(
        default=False, description="limit requests per holder of a token, or per address where there are no tokens"
    )
    reads_per_minute: _PerMinute = Field(default=1200, description="requests that only look, and live connections")
    control_per_minute: _PerMinute = Field(default=120, description="requests that create, change or delete sessions")
    ingest_per_minute: _PerMinute = Field(default=60_000, description="reports of trainings")
    tickets_per_minute: _PerMinute = Field(default=60, description="tickets for live connections")
    failed_tokens_per_minute: _PerMinute = Field(
        default=20, description="wrong tokens and tickets from one address, which are then answered with 429"
    )


_NESTED: Final[dict[str, type[_Section]]] = {
    "database": DatabaseConfig,
    "redis": RedisConfig,
    "security": SecurityConfig,
    "integration": IntegrationConfig,
    "performance": PerformanceConfig,
}
# The short form ServerConfig(cors_origins=[...]) names a nested setting directly when its name is unique.
_FLAT: Final = {
    name: section
    for section, model in _NESTED.items()
    for name in model.model_fields
    if sum(name in other.model_fields for other in _NESTED.values()) == 1 and name != "host" and name != "port"
}
_ENVIRONMENT: Final[dict[str, tuple[str, ...]]] = {
    "TRAINING_METRICS_HOST": ("host",),
    "TRAINING_METRICS_PORT": ("port",),
    "TRAINING_METRICS_DEBUG": ("debug",),
    "TRAINING_METRICS_LOG_LEVEL": ("log_level",),
    "TRAINING_METRICS_LOG_FORMAT": ("log_format",),
    "TRAINING_METRICS_ACCESS_LOG": ("access_log",),
    "DATABASE_URL": ("database", "url"),
    "REDIS_URL": ("redis", "url"),
    "GYMCAST_REDIS_PREFIX": ("redis", "prefix"),
    "JWT_SECRET_KEY": ("security", "jwt_secret_key"),
    "CORS_ORIGINS": ("security", "cors_origins"),
    "GYMCAST_ENABLE_AUTH": ("security", "enable_auth"),
    "GYMCAST_ALLOWED_HOSTS": ("security", "allowed_hosts"),
    "GYMCAST_TRUSTED_PROXIES": ("security", "trusted_proxies"),
    "GYMCAST_GYM_PACKAGES": ("security", "gym_packages"),
    "GAME_SERVER_URL": ("integration", "game_server_url"),
    "MAX_CONNECTIONS_PER_SESSION": ("performance", "max_connections_per_session"),
    "MAX_TOTAL_CONNECTIONS": ("performance", "max_total_connections"),
    "GYMCAST_ENABLE_RATE_LIMITING": ("performance", "enable_rate_limiting"),
    "DATA_STORAGE_PATH": ("data_storage_path",),
}


class ServerConfig(_Section):
    """Settings of the server.

    Nested settings may be given by their section (``security=SecurityConfig(cors_origins=[...])``) or directly
    (``cors_origins=[...]``). Raises pydantic's ``ValidationError``; :meth:`load` raises :class:`ServerConfigError`.
    """

    host: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        default="127.0.0.1", description="address to bind"
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(default=8000, description="port to bind; 0: any free one")
    debug: bool = Field(default=False, description="log at level DEBUG")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(default="INFO")
    log_format: LogFormat = Field(default="text", description="text, or json: one object a line")
    access_log: bool = Field(
        default=False, description="log each request: method, path, status, milliseconds, who asked"
    )
    data_storage_path: Path | None = Field(
        default=None, description="folder of the SQLite file when no database URL is given"
    )
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    redis: RedisConfig = Field(default_factory=RedisConfig)
    security: SecurityConfig = Field(default_factory=SecurityConfig)
    integration: IntegrationConfig = Field(default_factory=IntegrationConfig)
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        gathered = dict(values)
        for name in [name for name in gathered if name in _FLAT]:
            section = _FLAT[name]
            held = gathered.get(section, {})
            if isinstance(held, BaseModel):
                held = held.model_dump(exclude_unset=True)
            if not isinstance(held, Mapping):
                return values
            if name in held:
                raise ValueError(f"{name} is given twice: directly and in {section}")
            gathered[section] = {**held, name: gathered.pop(name)}
        return gathered

    @property
    def database_url(self) -> str:
        """URL of the database, from the settings that decide it."""
        if self.database.url is not None:
            return self.database.url
        if self.data_storage_path is not None:
            return f"sqlite:///{self.data_storage_path / 'training_metrics.db'}"
        return _DEFAULT_DATABASE

    @property
    def jwt_secret(self) -> str | None:
        """The secret that signs tokens."""
        secret = self.security.jwt_secret_key
        return None if secret is None else secret.get_secret_value()

    @cached_property
    def host_names(self) -> frozenset[str]:
        """Names that a Host header may have, in lower case."""
        origins = {(urlsplit(origin).hostname or "") for origin in self.security.cors_origins}
        own = {name.lower().strip("[]") for name in (self.host, *self.security.allowed_hosts)}
        return frozenset({"localhost", "127.0.0.1", "::1"} | own | (origins if not self.is_loopback else set()))

    @property
    def redis_url(self) -> str | None:
        """URL of the Redis that server processes share; ``None`` when there is only one process."""
        if self.redis.url is not None:
            return self.redis.url
        return f"redis://{self.redis.host}:{self.redis.port}" if self.redis.enabled else None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @classmethod
    def load(cls, path: str | Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Defaults, then the JSON file at ``path``, then environment variables, then ``overrides``.

        Raises :class:`ServerConfigError` with every problem, ``OSError`` when the file cannot be read.
        """
        values = {} if path is None else _read_file(Path(path))
        for variable, where in _ENVIRONMENT.items():
            text = (os.environ if environ is None else environ).get(variable, "")
            if text:
                _put(values, where, _parse(variable, text))
        for name, value in overrides.items():
            _put(values, (_FLAT[name], name) if name in _FLAT else (name,), value)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ServerConfigError(
                [(".".join(map(str, item["loc"])) or "settings", _describe(item)) for item in error.errors()]
            ) from None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """From environment variables alone. Raises :class:`ServerConfigError`."""
        return cls.load(environ=environ)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """From a JSON file alone. Raises :class:`ServerConfigError`, ``OSError``."""
        return cls.load(path, environ={})

    def check_startable(self) -> None:
        """Raise :class:`ServerConfigError` for settings that would be unsafe or that this version cannot honour."""
        problems = self._missing_for_strangers()
        if self.security.enable_auth and self.is_loopback and self.security.jwt_secret_key is None:
            problems.append(("security.jwt_secret_key", _NO_SECRET))
        if self.redis_url is not None and find_spec("redis") is None:
            problems.append(("redis", "needs the package redis: pip install 'gymcast[redis]', or turn Redis off"))
        if problems:
            raise ServerConfigError(problems)

    def _missing_for_strangers(self) -> list[tuple[str, str]]:
        """What is missing before other machines may reach the server, each with its remedy."""
        if self.is_loopback:
            return []
        why = f"{self.host} can be reached from other machines"
        missing = []
        if not self.security.enable_auth:
            missing.append(
                ("security.enable_auth", f"{why}, so every request has to prove who sends it: GYMCAST_ENABLE_AUTH=true")
            )
        if self.security.jwt_secret_key is None:
            missing.append(("security.jwt_secret_key", _NO_SECRET))
        if not self.security.cors_origins:
            text = "name the exact address under which browsers open the page: CORS_ORIGINS=https://gymcast.example.org"
            missing.append(("security.cors_origins", text))
        if missing:
            missing.append(("host", f"{why}; to stay on this machine use 127.0.0.1 (and an SSH tunnel from elsewhere)"))
        return missing


ServerConfiguration = ServerConfig


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ServerConfigError([(str(path), f"is not JSON: {error}")]) from None
    if not isinstance(values, dict):
        raise ServerConfigError([(str(path), "has to hold a JSON object")])
    return values


def _put(values: dict[str, Any], where: tuple[str, ...], value: Any) -> None:
    for name in where[:-1]:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[name]
    values[where[-1]] = value


def _parse(variable: str, text: str) -> Any:
    if variable in ("CORS_ORIGINS", "GYMCAST_ALLOWED_HOSTS", "GYMCAST_TRUSTED_PROXIES", "GYMCAST_GYM_PACKAGES"):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _describe(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if {"jwt_secret_key", "database", "redis"} & set(item["loc"]):
        return message  # the value is a secret, or a URL with a password in it
    if item["type"] == "extra_forbidden":
        return f"{message}; is the name right?"  # and the value may be what belongs to another name
    given = repr(item["input"])
    return f"{message}, got {given if len(given) <= 80 else given[:77] + '...'}"
