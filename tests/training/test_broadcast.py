"""Events reach a server exactly once, in order, whatever the server does, and training never waits for it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gymcast.training.announce import register_external_session
from gymcast.training.broadcast import EventSink, ServerAway, ServerRefused
from gymcast.training.events import MAX_POST_BYTES, ErrorData, EventBatch
from gymcast.training.spool import Spool


def note(number: int) -> ErrorData:
    return ErrorData(code="note", message=str(number))


def numbers(receiver: Any) -> list[int]:
    return [int(data["message"]) for data in receiver.of_type("error")]


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_events_arrive_once_in_order_with_gapless_numbers(receiver: Any) -> None:
    with EventSink(receiver.url, "s") as sink:
        for number in range(1200):
            sink.emit(note(number))
        assert sink.flush(10.0)
    assert numbers(receiver) == list(range(1200))
    assert [seq for _, seq in sorted(receiver.events)] == list(range(1, 1201))
    assert receiver.duplicates == 0


def test_a_heartbeat_is_sent_when_there_is_nothing_to_say(receiver: Any) -> None:
    with EventSink(receiver.url, "s") as sink:
        wait_for(lambda: receiver.posts >= 2)
        assert sink.connected
    assert receiver.events == {}


def test_the_servers_wish_arrives(receiver: Any) -> None:
    heard: list[str] = []
    with EventSink(receiver.url, "s", on_desired=heard.append) as sink:
        wait_for(lambda: sink.connected)
        assert sink.desired == "running"
        receiver.desired = "paused"
        wait_for(lambda: sink.desired == "paused")
        receiver.desired = "stopping"
        wait_for(lambda: sink.desired == "stopping")
    assert heard == ["paused", "stopping"]


def test_emitting_does_not_wait_for_a_server_that_is_away(tmp_path: Path) -> None:
    sink = EventSink(f"http://127.0.0.1:{free_port()}", "s", spool_dir=tmp_path)
    for number in range(2000):
        sink.emit(note(number))
    assert not sink.flush(0.3)
    assert not sink.close(0.5)
    stored = "".join(path.read_text() for path in tmp_path.glob("*.jsonl")).splitlines()
    assert len(stored) == 2000


def test_what_happened_while_the_server_was_away_arrives_in_order(tmp_path: Path, make_receiver: Any) -> None:
    port = free_port()
    sink = EventSink(f"http://127.0.0.1:{port}", "s", spool_dir=tmp_path)
    for number in range(50):
        sink.emit(note(number))
    wait_for(lambda: any(path.stat().st_size for path in tmp_path.glob("*.jsonl")))
    for number in range(50, 100):
        sink.emit(note(number))
    server = make_receiver(port)
    assert sink.flush(10.0)
    sink.emit(note(100))
    assert sink.close(5.0)
    assert numbers(server) == list(range(101))
    assert list(tmp_path.glob("*.jsonl")) == []


def test_the_next_process_sends_what_an_earlier_one_left_behind(tmp_path: Path, make_receiver: Any) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    first = EventSink(url, "s", producer="first", spool_dir=tmp_path)
    for number in range(3):
        first.emit(note(number))
    first.close(0.2)
    server = make_receiver(port)
    second = EventSink(url, "s", producer="second", spool_dir=tmp_path)
    second.emit(note(3))
    assert second.close(5.0)
    assert sorted(server.events) == [("first", 1), ("first", 2), ("first", 3), ("second", 1)]


def test_a_server_that_is_restarted_loses_nothing(tmp_path: Path, make_receiver: Any) -> None:
    first = make_receiver()
    sink = EventSink(first.url, "s", spool_dir=tmp_path)
    for number in range(20):
        sink.emit(note(number))
    assert sink.flush(5.0)
    first.close()
    for number in range(20, 40):
        sink.emit(note(number))
    time.sleep(0.2)
    second = make_receiver(first.port)
    assert sink.close(10.0)
    assert numbers(first) == list(range(20)) and numbers(second) == list(range(20, 40))


@pytest.mark.parametrize("status", [500, 503, 404, 401])
def test_an_error_of_the_server_is_waited_out(receiver: Any, tmp_path: Path, status: int) -> None:
    receiver.answers = [status, status]
    with EventSink(receiver.url, "s", spool_dir=tmp_path) as sink:
        sink.emit(note(7))
        assert sink.flush(10.0)
    assert numbers(receiver) == [7]


def test_one_refused_event_does_not_hold_up_the_others(receiver: Any, caplog: pytest.LogCaptureFixture) -> None:
    receiver.refuse = '"message":"13"'
    with EventSink(receiver.url, "s") as sink:
        for number in range(30):
            sink.emit(note(number))
        assert sink.flush(10.0)
    assert numbers(receiver) == [number for number in range(30) if number != 13]
    assert "refuses an event" in caplog.text


def test_an_event_beyond_the_limit_of_a_post_is_dropped_with_a_warning(
    receiver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with EventSink(receiver.url, "s") as sink:
        sink.emit(ErrorData(code="big", message="x", detail={"text": "x" * MAX_POST_BYTES}))
        sink.emit(note(1))
        assert sink.flush(10.0)
    assert numbers(receiver) == [1] and "exceeds the limit" in caplog.text


def test_large_events_are_divided_among_posts(receiver: Any) -> None:
    with EventSink(receiver.url, "s") as sink:
        for number in range(5):
            sink.emit(ErrorData(code="note", message=str(number), detail={"text": "x" * 400_000}))
        assert sink.flush(10.0)
    assert numbers(receiver) == list(range(5))


def test_a_server_that_does_not_answer_cannot_hold_up_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        sink = EventSink(f"http://127.0.0.1:{mute.getsockname()[1]}", "s", spool_dir=tmp_path)
        sink.emit(note(1))
        time.sleep(0.2)
        started = time.monotonic()
        assert not sink.close(0.3)
        assert time.monotonic() - started < 8.0  # an attempt to deliver waits ten seconds for its answer
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")) == 1


def test_a_server_that_answers_no_more_cannot_take_events_with_it(tmp_path: Path) -> None:
    receipt = b'{"accepted":0,"duplicates":0,"last_seq":0,"desired":"running","watchers":0}'
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = EventSink(f"http://127.0.0.1:{server.getsockname()[1]}", "s", spool_dir=tmp_path)
        kept_alive, _ = server.accept()
        with kept_alive:
            kept_alive.recv(65536)  # a sign of life
            kept_alive.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(receipt), receipt))
            wait_for(lambda: sink.connected)
            sink.emit(note(1))
            time.sleep(0.5)
            assert not sink.close(0.3)
    (left,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["seq"] for line in left.read_text().splitlines()] == [1]


def test_a_full_spool_keeps_the_oldest_and_the_loss_is_reported(tmp_path: Path, make_receiver: Any) -> None:
    port = free_port()
    sink = EventSink(f"http://127.0.0.1:{port}", "s", spool_dir=tmp_path, spool_max_bytes=3000)
    for number in range(200):
        sink.emit(note(number))
    wait_for(lambda: sink.dropped > 0)
    server = make_receiver(port)
    wait_for(lambda: any(data["code"] == "events_dropped" for data in server.of_type("error")))
    assert sink.close(5.0)
    reports = [data for data in server.of_type("error") if data["code"] == "events_dropped"]
    kept = [int(data["message"]) for data in server.of_type("error") if data["code"] == "note"]
    assert kept == list(range(len(kept))) and sum(data["detail"]["dropped"] for data in reports) == 200 - len(kept)


def test_a_line_that_was_cut_off_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "killed.jsonl").write_bytes(b'{"a":1}\n{"b":2}\n{"c":')
    spool = Spool(tmp_path, "mine", 1000)
    batch = spool.peek()
    assert batch is not None and batch[:2] == ("killed", [b'{"a":1}', b'{"b":2}'])
    spool.advance(*batch[2:])
    assert spool.peek() is None and list(tmp_path.iterdir()) == []


def test_an_external_session_is_announced(receiver: Any) -> None:
    session = register_external_session(receiver.url, training_session_id="mine", algorithm="DQN", total_episodes=10)
    assert session == "session-1"
    expected = {"training_session_id": "mine", "algorithm": "DQN", "total_episodes": 10, "model_generation": 1}
    assert receiver.sessions == [expected]
    with pytest.raises(ServerAway, match="gymcast serve"):
        register_external_session(f"http://127.0.0.1:{free_port()}", training_session_id="x", algorithm="x")
    with pytest.raises(ServerRefused, match="422"):
        receiver.refuse = "unwanted"
        register_external_session(f"{receiver.url}/prefix", training_session_id="unwanted", algorithm="x")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        EventSink(url, "s")


def test_only_event_data_can_be_emitted(receiver: Any) -> None:
    with EventSink(receiver.url, "s") as sink, pytest.raises(TypeError):
        sink.emit(EventBatch(producer="p"))
