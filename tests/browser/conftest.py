"""The page in a real Chromium, on a real server that is fed over its real HTTP endpoint with real episodes."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Response, Route, async_playwright, expect

from gymcast.envs import GAMES, GameVectorEnv, Replay, ReplayRecorder
from gymcast.server import RunningServer, ServerConfig, running_server
from gymcast.training.events import (
    EvaluationData,
    Event,
    Message,
    ReplayData,
    ReplayDecision,
    TrainingMetricsData,
    event_type_of,
)

from ..programs import need_program

expect.set_options(timeout=30_000)  # milliseconds: what is right comes at once, on a busy machine a little later

ENV_ID = "gymcast/Archers-v0"
BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser. Without one the tests are skipped, but not where everything has to be tested."""
    return need_program(*CHROMIUM_NAMES, package="chromium")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path)) as running:
        yield running


class Producer:
    """A trainer's side of one session: numbered events, posted and committed."""

    def __init__(self, url: str, session_id: str, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.session_id = session_id
        self._client = client
        self._seq = 0

    async def send(self, *messages: Message) -> None:
        """Post messages; returns once the server has committed them."""
        first, self._seq = self._seq + 1, self._seq + len(messages)
        events = [
            Event(seq=first + index, type=event_type_of(message), data=message).model_dump(mode="json")
            for index, message in enumerate(messages)
        ]
        address = f"{self.url}/api/training/sessions/{self.session_id}/events"
        async with self._client.post(address, json={"producer": "browser-test", "events": events}) as answer:
            assert answer.status == 201, await answer.text()


NewProducer = Callable[..., Awaitable[Producer]]


@pytest_asyncio.fixture(loop_scope="session")
async def new_producer() -> AsyncIterator[NewProducer]:
    """Creates an external session on a server and returns its producer."""
    async with aiohttp.ClientSession() as client:

        async def make(server: RunningServer, name: str = "duel", **changes: Any) -> Producer:
            body = {"training_session_id": name, "model_generation": 1, "algorithm": "PPO", "total_episodes": 5000}
            async with client.post(f"{server.url}/api/training/sessions", json={**body, **changes}) as answer:
                assert answer.status == 201, await answer.text()
                return Producer(server.url, (await answer.json())["session_id"], client)

        yield make


def reading(index: int) -> TrainingMetricsData:
    """Reading number ``index``, half a second after the one before; every figure differs from reading to reading."""
    return TrainingMetricsData(
        timestamp=BEGIN + timedelta(seconds=index / 2),
        episode=100 * index,
        total_episodes=5000,
        current_reward=float(np.sin(index)),
        average_reward=index / 50,
        best_reward=1.0 + index / 50,
        episode_length=180.0,
        win_rate=min(100.0, 1.5 * index),
        learning_rate=3e-4,
        algorithm="PPO",
        training_time_elapsed=index / 2,
        extra={
            "timesteps": 8000.0 * index,
            "samples_per_second": 150_000.0 + 100 * index,
            "game_seconds_per_second": 12_000.0,
            "episodes_per_minute": 140_000.0,
            "policy_loss": -0.01 - index / 10_000,
            "value_loss": 0.5 / (1 + index),
            "entropy": 5.0 - index / 100,
        },
    )


@pytest.fixture(scope="session")
def episodes() -> list[Replay]:
    """Whole Archers episodes of at most 20 s, played at random against a beginner; of each at least 5 s."""
    env = GameVectorEnv(ENV_ID, 4, seed=11, opponent="beginner", max_duration_s=20.0)
    found: list[Replay] = []
    try:
        recorder = ReplayRecorder(env, lanes=[0, 1, 2, 3])
        env.reset(seed=11)
        recorder.begin()
        random = np.random.default_rng(5)
        while len(found) < 3:
            actions = np.stack([random.integers(0, size, 4) for size in env.single_action_space.nvec], axis=1)
            env.step(actions)
            found += [replay for replay in recorder.finish() if replay.summary["seconds"] > 5]
    finally:
        env.close()
    return found[:3]


def decision(step: int, length: int) -> ReplayDecision:
    """What a bot might have considered at a step: sure of its move, its value rising from -1 to 1."""
    groups = {}
    for name, labels in GAMES[ENV_ID].action_labels:
        chosen = step % len(labels)
        groups[name] = {
            label: 0.6 if index == chosen else 0.4 / (len(labels) - 1) for index, label in enumerate(labels)
        }
    selected = " + ".join(max(values, key=lambda label: values[label]) for values in groups.values())
    return ReplayDecision(
        step=step,
        action_probabilities={selected: 0.1296, "other": 0.8704},
        groups=groups,
        state_values=2 * step / length - 1,
        selected_action=selected,
    )


def footage(replay: Replay, number: int) -> ReplayData:
    """A replay as a trainer sends it; ``number`` orders the replays of a session."""
    length = len(replay.actions)
    return ReplayData(
        replay_id=f"replay-{number}",
        env_id=replay.env_id,
        episode=1000 * number,
        timesteps=100_000 * number,
        summary=replay.summary,
        bytes_base64=base64.b64encode(replay.to_bytes()).decode(),
        decisions=[decision(step, length) for step in range(length)],
    )


@dataclass
class Visit:
    """One tab and all that went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


OpenPage = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Opens an address in a tab of its own. Whatever a test does: an error in the console, a failed request or any
    request that leaves this machine fails it, unless its text matches ``expected`` (a regular expression)."""
    visits: list[tuple[Visit, str | None]] = []

    async def make(url: str, *, width: int = 1280, height: int = 900, expected: str | None = None, **more: Any) -> Page:
        context = await browser.new_context(viewport={"width": width, "height": height}, **more)
        # Nothing is found outside this machine, as if it were offline.
        await context.route(lambda address: urlsplit(address).hostname != "127.0.0.1", _refuse)
        visit = Visit(await context.new_page())
        visits.append((visit, expected))
        _listen(visit)
        await visit.page.goto(url)
        return visit.page

    yield make
    for visit, expected in visits:
        await visit.page.context.close()
        assert visit.foreign == []
        assert [text for text in visit.problems if not (expected and re.search(expected, text))] == []


async def _refuse(route: Route) -> None:
    await route.abort("internetdisconnected")


def evaluation(opponent: str = "intermediate") -> EvaluationData:
    """The result of 1000 games, 931 of them won."""
    return EvaluationData(
        opponent=opponent,
        games=1000,
        wins=931,
        losses=60,
        draws=9,
        win_rate=93.1,
        ci_low=91.4,
        ci_high=94.5,
        mean_return=2.5,
        mean_length=150,
    )


def _listen(visit: Visit) -> None:
    def note_request(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            visit.foreign.append(url)

    def note_words(said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            visit.problems.append(f"{said.type}: {said.text}")

    def note_answer(answer: Response) -> None:
        if answer.status >= 400:
            visit.problems.append(f"HTTP {answer.status}: {answer.url}")

    visit.page.on("request", lambda request: note_request(request.url))
    visit.page.on("websocket", lambda socket: note_request(socket.url))
    visit.page.on("pageerror", lambda error: visit.problems.append(f"exception: {error}"))
    visit.page.on("console", note_words)
    visit.page.on("response", note_answer)
