"""Dockerfile, compose.yaml and the systemd unit name only what exists, and make a server that starts.

There need not be a Docker daemon here: this is what can be checked without one.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from gymcast.server import ServerConfig, ServerConfigError
from gymcast.server.cli_app import app
from gymcast.server.config import _ENVIRONMENT
from gymcast.server.routes import routes

from ..programs import need_program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
# Read by other programs, or by gymcast itself outside of the server's settings.
OTHERS = {
    "PATH", "PYTHONUNBUFFERED", "NUMBA_CACHE_DIR", "GYMCAST_RUNS",
    "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_EXTRA_INDEX_URL",
}  # fmt: skip
SECRETS = {"POSTGRES_PASSWORD": "p" * 48, "JWT_SECRET_KEY": "0123456789abcdef" * 4, "CORS_ORIGINS": "https://a.example"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with what follows it, on one line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in whole.splitlines() if line.strip()]


def image_environment() -> dict[str, str]:
    """Variables of the image that is run: those after the last FROM."""
    found: dict[str, str] = {}
    for name, rest in instructions():
        if name == "FROM":
            found = {}
        elif name == "ENV":
            found |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    return found


def filled(text: str, values: dict[str, str]) -> str:
    """``${NAME:?message}`` filled in as compose does it: ``KeyError`` where a value is missing."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: values[match[1]], text)


def check_command(words: list[str]) -> None:
    """A ``gymcast`` command line names a command and options that exist."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while (commands := getattr(command, "commands", None)) is not None:
        assert rest and rest[0] in commands, words
        command = commands[rest.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known, words


def test_the_image_copies_what_there_is_and_nothing_secret() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _target = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source
    assert allowed[1] == "*"
    assert not {"JWT_SECRET_KEY", "POSTGRES_PASSWORD", "DATABASE_URL"} & image_environment().keys()
    assert [rest for name, rest in instructions() if name == "USER"] == ["gymcast"]


def test_what_the_image_installs_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [extra for name, rest in instructions() if name == "RUN" for extra in re.findall(r'"\.\[([\w,]+)\]"', rest)]
    assert named and set(",".join(named).split(",")) <= extras.keys()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}==", pins, re.MULTILINE) for name in ("torch", "asyncpg", "redis"))


def test_commands_and_addresses_of_the_image_exist() -> None:
    by_name = dict(instructions())
    check_command(json.loads(by_name["CMD"]))
    paths = {route.path for route in routes()}
    found = re.findall(r"127\.0\.0\.1:(\d+)(/[\w/]+)", by_name["HEALTHCHECK"])
    assert found and all(path in paths for _port, path in found)
    assert {port for port, _path in found} == {by_name["EXPOSE"], image_environment()["TRAINING_METRICS_PORT"]}


@pytest.mark.parametrize(
    "names",
    [image_environment().keys(), COMPOSE["services"]["server"]["environment"].keys(),
     re.findall(r"^([A-Z][A-Z_]+)=", PAGE, re.MULTILINE)],
    ids=["Dockerfile", "compose.yaml", "docs"],
)  # fmt: skip
def test_every_variable_is_read_by_somebody(names: Any) -> None:
    assert names and set(names) - OTHERS - {"POSTGRES_PASSWORD"} <= _ENVIRONMENT.keys()


def test_the_composed_server_starts_with_its_secrets_and_not_without() -> None:
    written = COMPOSE["services"]["server"]["environment"]
    environment = image_environment() | {name: filled(value, SECRETS) for name, value in written.items()}
    config = ServerConfig.load(environ=environment)
    config.check_startable()
    assert (config.host, config.redis_url, config.log_format) == ("0.0.0.0", "redis://redis:6379", "json")
    assert config.database_url == f"postgresql://gymcast:{'p' * 48}@db:5432/gymcast"
    for missing in SECRETS:
        rest = {name: value for name, value in SECRETS.items() if name != missing}
        with pytest.raises(KeyError, match=missing):
            [filled(value, rest) for value in written.values()]
    # And should the values be emptied, the server itself refuses.
    with pytest.raises(ServerConfigError, match="jwt_secret_key"):
        ServerConfig.load(environ=image_environment()).check_startable()


def test_the_services_fit_together() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"], name
    volumes = [volume.split(":")[1] for volume in services["server"]["volumes"]]
    assert volumes == [rest for kind, rest in instructions() if kind == "VOLUME"]
    # Only this machine reaches it; TLS comes from a proxy.
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])
    assert not [name for name in ("db", "redis") if "ports" in services[name]]


def test_commands_in_the_docs_exist() -> None:
    found = re.findall(r"(?:^|=|server )(?:/opt/gymcast/bin/)?(gymcast [a-z][^\n\\#`]*)", PAGE, re.MULTILINE)
    assert len(found) >= 2
    for line in found:
        check_command(shlex.split(line))


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    program = need_program("systemd-analyze", package="systemd")
    # Its program and user are not on this machine.
    text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", text).replace("User=gymcast", "User=root")
    unit = tmp_path / "gymcast.service"
    unit.write_text(re.sub(r"EnvironmentFile=\S+", f"EnvironmentFile={tmp_path / 'none'}", text))
    (tmp_path / "none").touch()
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "gymcast.service" in line]
    assert complaints == [], done.stderr
