"""Samples per second of a training with nobody watching its page, with a viewer elsewhere, and with one on the machine.

    python benchmarks/viewers.py                                  # CartPole-v1, 15 s each, three times in turn
    python benchmarks/viewers.py --env Pendulum-v1 --seconds 30 --repeats 5

Each case is a whole ``gymcast train`` with its server, in processes of its own. A viewer elsewhere costs this machine
what the page asks for: the live connection, and the pictures of every episode announced. A viewer on the machine is
the page itself in Chromium, which draws its charts and pictures with the same processors. Needs the extra ``dev``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from playwright.async_api import Request, async_playwright

from _common import interleave, machine, median, table

Waits = list[tuple[float, float]]
"""For each episode shown: seconds from opening the page, and from asking for its pictures, until they were there."""
Viewer = Callable[[str, str, asyncio.Event], Awaitable[Waits]]
_CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


async def nobody(page: str, session: str, over: asyncio.Event) -> Waits:
    """No viewer."""
    await over.wait()
    return []


async def elsewhere(page: str, session: str, over: asyncio.Event) -> Waits:
    """What a page on another machine asks for."""
    base, shown, opened = page.partition("/#")[0].rstrip("/"), [], time.monotonic()
    async with aiohttp.ClientSession(base) as client, client.ws_connect(f"/ws/{session}") as socket:
        leaving = asyncio.create_task(_leave(over, socket))
        async for message in socket:
            said = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
            if said.get("type") == "frame":
                asked = time.monotonic()
                async with client.get(f"/api/replays/{said['data']['replay_id']}/frames") as answer:
                    if answer.status == 200 and await answer.read():
                        shown.append((time.monotonic() - opened, time.monotonic() - asked))
        await leaving
    return shown


async def _leave(over: asyncio.Event, socket: aiohttp.ClientWebSocketResponse) -> None:
    await over.wait()
    await socket.close()


async def in_chromium(page: str, session: str, over: asyncio.Event) -> Waits:
    """The page in a browser on this machine."""
    path = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = await browser.new_page()
        asked: dict[str, float] = {}
        shown: Waits = []
        opened = time.monotonic()

        def ended(request: Request) -> None:
            if request.url in asked:
                shown.append((time.monotonic() - opened, time.monotonic() - asked[request.url]))

        tab.on("request", lambda one: asked.update({one.url: time.monotonic()} if one.url.endswith("/frames") else {}))
        tab.on("requestfinished", ended)
        await tab.goto(page)
        await over.wait()
        await browser.close()
    return shown


async def measure(env: str, seconds: float, viewer: Viewer) -> tuple[float, Waits]:
    """One training: its samples per second, and how its viewer waited."""
    with tempfile.TemporaryDirectory(prefix="gymcast-viewers-") as runs:
        command = [sys.executable, "-m", "gymcast.server.cli", "train", env, "--minutes", str(seconds / 60), "--json"]
        command += ["--no-stay", "--port", "auto", "--seed", "1", "--runs-dir", runs, "--set", "evaluation_games=0"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None, "it is a pipe"
        begun = json.loads(await process.stdout.readline())
        over = asyncio.Event()
        watching = asyncio.create_task(viewer(begun["page"], begun["session_id"], over))
        lines: list[dict[str, Any]] = [json.loads(line) async for line in process.stdout]
        over.set()
        shown = await watching
        if await process.wait() != 0:
            raise SystemExit(f"the training failed: {lines[-1]}")
    return int(lines[-1]["timesteps"]) / seconds, shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each training")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    waits: dict[str, list[Waits]] = {}

    def case(name: str, viewer: Viewer) -> Callable[[], float]:
        def run() -> float:
            rate, shown = asyncio.run(measure(options.env, options.seconds, viewer))
            waits.setdefault(name, []).append(shown)
            return rate

        return run

    viewers = {"nobody": nobody, "a viewer elsewhere": elsewhere, "Chromium on the same machine": in_chromium}
    print(machine())
    rates = interleave({name: case(name, viewer) for name, viewer in viewers.items()}, options.repeats)
    alone = median(rates["nobody"])
    rows = [
        [
            name,
            f"{median(found):,.0f}",
            f"{median(found) / alone:.2f}",
            ", ".join(f"{rate:,.0f}" for rate in found),
            ", ".join(f"{shown[0][0]:.1f}" if shown else "-" for shown in waits[name]),
            ", ".join(f"{asked:.1f}" for shown in waits[name] for _, asked in shown) or "-",
        ]
        for name, found in rates.items()
    ]
    head = [
        "watched by",
        "samples/s, median",
        "of nobody's",
        "each",
        "first pictures after, s",
        "each took, s",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
