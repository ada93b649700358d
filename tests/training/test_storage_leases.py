"""Leases: claimed once, renewed, released, expired, adopted; in the database's time; by two processes at once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from gymcast.training.storage import Committed, LeaseLostError, SessionRecord, StateError, Storage


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    async with await Storage.open(database_url) as opened:
        yield opened


async def managed(storage: Storage, priority: int = 0) -> str:
    return (await storage.create_session(kind="managed", algorithm="PPO", priority=priority)).session_id


async def claimed(storage: Storage, owner: str = "a", seconds: float = 30.0) -> SessionRecord:
    record = await storage.leases.claim(owner, seconds=seconds)
    assert record is not None
    return record


async def test_claims_come_by_priority_then_age_and_only_once(storage: Storage) -> None:
    low, first, second = await managed(storage), await managed(storage, 5), await managed(storage, 5)
    await storage.create_session(kind="external", algorithm="PPO")
    heard: list[Committed] = []
    storage.listen(heard.append)
    assert [record.session_id for record in await storage.leases.waiting()] == [first, second, low]
    records = [await claimed(storage) for _ in range(3)]
    assert [record.session_id for record in records] == [first, second, low]
    assert await storage.leases.claim("a") is None
    record = records[0]
    assert (record.status, record.attempts, record.lease_owner, record.version) == ("starting", 1, "a", 2)
    assert record.lease_expires is not None and record.heartbeat is not None and record.start_time is not None
    assert (record.lease_expires - record.heartbeat).total_seconds() == 30.0
    assert [committed.session_id for committed in heard] == [first, second, low]
    assert all(committed.session_changed for committed in heard)
    last = (await storage.transitions(first))[-1]
    assert (last["from_status"], last["to_status"], last["version"]) == ("queued", "starting", 2)


async def test_waiting_long_enough_outweighs_priority(storage: Storage) -> None:
    old = await managed(storage)
    await asyncio.sleep(0.05)
    urgent = await managed(storage, 1)
    order = [record.session_id for record in await storage.leases.waiting(ageing_seconds=60)]
    assert order == [urgent, old]
    order = [record.session_id for record in await storage.leases.waiting(ageing_seconds=0.01)]
    assert order == [old, urgent]


async def test_named_and_skipped_sessions(storage: Storage) -> None:
    one, two, three = [await managed(storage) for _ in range(3)]
    named = await storage.leases.claim("a", session_id=three)
    assert named is not None and named.session_id == three
    assert await storage.leases.claim("b", session_id=three) is None
    assert await storage.leases.claim("b", session_id="nobody") is None
    after = await storage.leases.claim("b", skip=[one])
    assert after is not None and after.session_id == two


async def test_renewing_tells_what_is_still_held(storage: Storage) -> None:
    one, two, three = [await managed(storage) for _ in range(3)]
    before, *_others = [await claimed(storage) for _ in range(3)]
    await storage.leases.release(two, "a", status="failed", reason="no")
    assert await storage.leases.renew("a", seconds=60) == {one, three}
    assert await storage.leases.renew("a", [one, two], seconds=60) == {one}
    assert await storage.leases.renew("b") == set()
    record = await storage.get_session(one)
    assert record.version == before.version, "a heartbeat is no change that viewers see"
    assert record.heartbeat is not None and before.heartbeat is not None and record.heartbeat >= before.heartbeat
    assert record.lease_expires is not None and (record.lease_expires - record.heartbeat).total_seconds() == 60


async def test_a_session_to_try_again_waits_for_its_time(storage: Storage) -> None:
    session_id = await managed(storage)
    await claimed(storage)
    await storage.update_session(session_id, status="running", owner="a")
    with pytest.raises(LeaseLostError, match="held by a, not by b"):
        await storage.leases.release(session_id, "b", status="retrying")
    with pytest.raises(LeaseLostError):
        await storage.update_session(session_id, progress=0.5, owner="b")
    with pytest.raises(StateError):
        await storage.leases.release(session_id, "a", status="queued")
    record = await storage.leases.release(
        session_id, "a", status="retrying", reason="killed", delay_seconds=0.2, wait_reason="tries again"
    )
    assert (record.status, record.lease_owner, record.wait_reason) == ("retrying", None, "tries again")
    assert record.to_json()["wait_reason"] == "tries again"
    assert await storage.leases.claim("b") is None
    deadline = time.monotonic() + 20
    while (again := await storage.leases.claim("b")) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (again.attempts, again.not_before, again.wait_reason, again.reason) == (2, None, None, None)


async def test_expired_leases_are_found_and_ended_once(storage: Storage) -> None:
    gone, alive, back = [await managed(storage) for _ in range(3)]
    await storage.leases.claim("a", session_id=gone, seconds=-1)
    await storage.leases.claim("a", session_id=alive)
    await storage.leases.claim("a", session_id=back, seconds=-1)
    assert [record.session_id for record in await storage.leases.expired()] == [gone, back]
    assert await storage.leases.renew("a", [back]) == {back}, "nobody took it"
    results = [await storage.leases.expire(one, reason="silent") for one in (gone, alive, back, gone)]
    assert [record and record.status for record in results] == ["retrying", None, None, None]
    assert await storage.leases.expired() == []


async def test_adoption_needs_an_expired_or_a_named_lease(storage: Storage) -> None:
    session_id = await managed(storage)
    assert await storage.leases.adopt(session_id, "b") is None, "it waits"
    await claimed(storage)
    assert await storage.leases.adopt(session_id, "b") is None, "it is held"
    record = await storage.leases.adopt(session_id, "b", from_owner="a")
    assert record is not None and (record.lease_owner, record.status, record.attempts) == ("b", "starting", 1)
    assert await storage.leases.adopt(session_id, "c", from_owner="a") is None, "another one was faster"
    assert await storage.leases.renew("a") == set()
    await storage.leases.renew("b", seconds=-1)
    record = await storage.leases.adopt(session_id, "c")
    assert record is not None and record.lease_owner == "c"


@pytest.mark.parametrize("hours", [-1, 1])
async def test_setting_the_wall_clock_moves_no_lease(
    storage: Storage, database_url: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    session_id = await managed(storage)
    record = await claimed(storage)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + hours * 3_600_000_000_000)
    assert await storage.leases.expired() == []
    assert await storage.leases.renew("a") == {session_id}
    async with await Storage.open(database_url) as other:
        assert await other.leases.expired() == []
        renewed = await other.get_session(session_id)
    assert renewed.heartbeat is not None and record.heartbeat is not None
    assert 0 <= (renewed.heartbeat - record.heartbeat).total_seconds() < 600
    await managed(storage)
    assert await storage.leases.claim("b") is not None


CLAIMER = """
import asyncio, json, sys
from gymcast.training.storage import Storage

async def work(url, owner):
    async with await Storage.open(url) as storage:
        print("ready", flush=True)
        sys.stdin.readline()
        mine = []
        async def claimer():
            while (record := await storage.leases.claim(owner)) is not None:
                mine.append(record.session_id)
                await asyncio.sleep(0.01)  # on SQLite the other process would find no gap to get in
        await asyncio.gather(*(claimer() for _ in range(4)))
        print(json.dumps(mine), flush=True)

asyncio.run(work(*sys.argv[1:]))
"""


def start_claimer(url: str, owner: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CLAIMER, url, owner]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_two_processes_claim_every_session_once(storage: Storage, database_url: str) -> None:
    made = await asyncio.gather(*(managed(storage) for _ in range(200)))
    claimers = [start_claimer(database_url, owner) for owner in ("a", "b")]
    try:
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == "ready\n"
        told = await asyncio.gather(*(asyncio.to_thread(claimer.communicate, "go\n", 60) for claimer in claimers))
    finally:
        for claimer in claimers:
            claimer.kill()
            claimer.wait()
    shares = [json.loads(output) for output, _ in told]
    assert all(shares), "both took part"
    assert sorted(shares[0] + shares[1]) == sorted(made)
    for share, owner in zip(shares, ("a", "b"), strict=True):
        for session_id in share:
            record = await storage.get_session(session_id)
            assert (record.lease_owner, record.attempts) == (owner, 1)
