"""A game that crashes, hangs, stalls, floods its output or burns processor time, as a package of its author."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# Uses SHARE of one processor, whatever else the machine does: FILE holds the share, and may change.
BURNER = """
import sys, time
def share():
    with open(sys.argv[1]) as file:
        return float(file.read() or 0)
used, began = time.process_time(), time.monotonic()
while True:
    if time.process_time() - used < share() * (time.monotonic() - began):
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass
    else:
        time.sleep(0.002)
    if time.monotonic() - began > 0.5:  # what it lacked long ago is not made up for
        used, began = time.process_time(), time.monotonic()
"""
BURNERS: list[subprocess.Popen[bytes]] = []


class Bad(gym.Env[Any, Any]):
    """Episodes of 20 steps; from the step ``after`` on it does what ``fault`` says."""

    metadata = {"render_fps": 50}  # noqa: RUF012 - Gymnasium's own way
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", after: int = 400, burn: str = "", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._fault, self._left, self._burn = fault, after, burn
        self._steps = 0
        self._hang_at("make")

    def _hang_at(self, place: str) -> None:
        """With the fault ``in turn`` the first process hangs in a step, the second when it is made, then in a reset."""
        if self._fault != "in turn":
            return
        attempts = sorted(os.listdir(self._burn))
        if str(os.getpid()) not in attempts:
            (Path(self._burn) / str(os.getpid())).touch()
            attempts.append(str(os.getpid()))
        if place == ("step", "make", "reset")[min(len(attempts), 3) - 1]:
            ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter's lock: no thread of the process goes on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._hang_at("reset")
        self._steps = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._left -= 1
        if self._left <= 0:
            self._misbehave()
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return seen, float(action), self._steps == 20, False, {}

    def _misbehave(self) -> None:
        match self._fault:
            case "crash":
                ctypes.string_at(0)
            case "in turn":
                self._hang_at("step")
            case "stall":  # this and the next one as long as there is a file
                while os.path.exists(self._burn):
                    time.sleep(0.1)
            case "busy":
                while os.path.exists(self._burn):
                    pass
            case "flood":
                os.write(1, b"x" * 9_999 + b"\n")
                time.sleep(0.001)
            case "burn":
                if not BURNERS:
                    command = [sys.executable, "-c", BURNER, self._burn]
                    BURNERS.extend(subprocess.Popen(command) for _ in range(8))


gym.register("Bad-v0", Bad)
