"""``GET /metrics``, request ids and the log."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gymcast.server import RunningServer, running_server
from gymcast.server.logs import REQUEST_ID, JsonLines, Seldom

from .conftest import NewSession, external, metrics, server_config

SESSIONS = "/api/training/sessions"
PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


async def scrape(client: aiohttp.ClientSession) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        families = text_string_to_metric_families(await answer.text())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_what_is_counted(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    reading = metrics(5, extra={"timesteps": 640})
    for _ in range(3):
        path = f"{SESSIONS}/{session_id}/metrics?producer=w&seq=1"
        async with client.post(path, json=[reading, reading]) as answer:
            assert answer.status == 201
    async with client.get("/nowhere/at/all") as answer:
        assert answer.status == 404
    async with client.patch("/") as answer:
        assert answer.status == 405
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await ws.receive()
        found = await scrape(client)
    assert found["gymcast_sessions", (("status", "running"),)] == 1
    assert found["gymcast_session_timesteps", (("session_id", session_id),)] == 640
    assert found["gymcast_websocket_connections", ()] == 1
    assert found["gymcast_websocket_writes_total", ()] >= 1
    assert (found["gymcast_events_received_total", ()], found["gymcast_events_repeated_total", ()]) == (2, 4)
    assert found["gymcast_rows_written_total", ()] == 2
    assert found["gymcast_redis_connected", ()] == 0
    assert found["process_resident_memory_bytes", ()] > 1 << 20

    def answers(method: str, route: str, status: int) -> float | None:
        labels = (("method", method), ("route", route), ("status", str(status)))
        return found.get(("gymcast_http_request_duration_seconds_count", labels))

    assert answers("POST", SESSIONS + "/{session_id}/metrics", 201) == 3
    assert answers("GET", "other", 404) == 1
    assert answers("other", "other", 405) == 1
    assert not [name for name, labels in found if any(session_id in value for key, value in labels if key == "route")]


async def test_applications_do_not_share_their_counts(tmp_path: Path) -> None:
    for _ in range(2):
        async with running_server(server_config(tmp_path)) as server, aiohttp.ClientSession(server.url) as client:
            async with client.post(SESSIONS, json=external()) as answer:
                assert answer.status == 201
            found = await scrape(client)
            labels = (("method", "POST"), ("route", SESSIONS), ("status", "201"))
            assert found["gymcast_http_request_duration_seconds_count", labels] == 1


async def test_the_table_in_the_docs_has_every_name(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    await new_session()
    async with client.get("/metrics") as answer:
        told = set(re.findall(r"^# TYPE (gymcast_\S+)", await answer.text(), re.MULTILINE))
    told = {name for name in told if not name.endswith("_created")}  # comes with each histogram
    written = set(re.findall(r"^\| `(gymcast_[a-z_]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert told == written


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_Z", True), ("a" * 64, True), ("a" * 65, False), ("two words", False), ("x\u00e9", False), ("", False)],
)
async def test_request_ids_of_proxies_are_kept_when_they_are_fit_to_log(
    given: str, kept: bool, client: aiohttp.ClientSession
) -> None:
    for path in ("/health", "/nowhere"):
        async with client.get(path, headers={"X-Request-Id": given}) as answer:
            told = answer.headers["X-Request-Id"]
            assert (told == given) is kept
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", told)
            if answer.status == 404:
                assert (await answer.json(content_type=None))["instance"] == told


async def test_the_access_log_names_no_query(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gymcast.access")
    async with (
        running_server(server_config(tmp_path, access_log=True)) as server,
        aiohttp.ClientSession(server.url) as client,
        client.get("/health?ticket=secret", headers={"X-Request-Id": "req-7"}) as answer,
    ):
        assert answer.status == 200
    (record,) = [record for record in caplog.records if record.name == "gymcast.access"]
    assert re.fullmatch(r"GET /health 200 \d+\.\d ms local", record.getMessage())
    token = REQUEST_ID.set("req-7")
    try:
        line = json.loads(JsonLines().format(record))
    finally:
        REQUEST_ID.reset(token)
    assert (line["level"], line["request_id"], line["status"], line["principal"]) == ("INFO", "req-7", 200, "local")
    assert (line["method"], line["path"]) == ("GET", "/health")


async def test_requests_are_not_logged_unless_asked_for(
    server: RunningServer, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gymcast.access")
    async with client.get("/health") as answer:
        assert answer.status == 200
    assert [record for record in caplog.records if record.name == "gymcast.access"] == []


def test_a_json_line_holds_the_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("t").makeRecord("t", logging.ERROR, "f", 1, "failed %s", ("x",), _exc_info())
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "failed x" and "ValueError: two\nlines" in line["exception"]


def _exc_info() -> tuple[type[BaseException], BaseException, object]:
    kind, error, trace = sys.exc_info()
    assert kind is not None and error is not None
    return kind, error, trace


def test_logging_that_was_set_up_before_is_kept(tmp_path: Path) -> None:
    """The reference's example, word for word but for the names of the loggers, then the server's own set-up."""
    script = """
import logging
import time
logging.basicConfig(
    level=logging.INFO,
    format='%(asctime)s - %(name)s - %(levelname)s - %(message)s',
    handlers=[
        logging.FileHandler('training_metrics_server.log'),
        logging.StreamHandler()
    ]
)
logging.getLogger('gymcast.server').setLevel(logging.DEBUG)
from gymcast.server.logs import configure
configure("INFO", "json")
logging.getLogger('gymcast.server.app').debug("here")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text in (done.stderr, (tmp_path / "training_metrics_server.log").read_text()):
        assert text.endswith(" - gymcast.server.app - DEBUG - here\n")


def test_warnings_that_come_by_the_thousand_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    seldom = Seldom(logging.getLogger("gymcast.test"), seconds=1.0)
    for number in range(1000):
        seldom.warning("refused %d", number)
    time.sleep(1.05)
    seldom.warning("refused %s", "again")
    assert caplog.messages == ["refused 0", "refused again; 999 more like this since the last one told"]
