"""What the process trees of sessions use, measured with psutil, and what follows from it under the limits."""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import psutil

from gymcast.training.limits import ResourceLimits

SAMPLE_SECONDS: Final = 2.0
ALERT_SHARE: Final = 0.8
# A training takes all of a processor now and then; what counts is the mean of so many samples.
_CPU_SAMPLES: Final = 5

Resource = Literal["memory", "cpu"]


@dataclass(frozen=True)
class Usage:
    """Of one process tree: resident memory in MiB, percent of the machine's processors, processes."""

    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    processes: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class ResourceAlert:
    """All sessions together use at least 80 % of a limit (``level`` "alert") or more than it ("exceeded").

    ``used`` and ``limit`` are MiB or percent of the machine. ``session_id`` is the session that is stopped for it.
    """

    resource: Resource
    level: Literal["alert", "exceeded"]
    used: float
    limit: float
    session_id: str | None = None

    @property
    def message(self) -> str:
        """For people."""
        setting, unit = ("memory_limit_mb", "MiB") if self.resource == "memory" else ("cpu_limit_percent", "%")
        return f"{setting}: {self.used:,.0f} of {self.limit:,.0f} {unit} used"


class Sampler:
    """Measures process trees. Between two calls of :meth:`sample` it remembers processor times, not more."""

    def __init__(self) -> None:
        self._times: dict[tuple[int, float], float] = {}
        self._when = time.monotonic()

    def sample(self, roots: Mapping[str, int]) -> dict[str, Usage]:
        """The use of the tree below each process id of ``roots`` (by session). Takes milliseconds: not for a loop."""
        now = time.monotonic()
        seconds, self._when = max(now - self._when, 1e-3), now
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        own: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                children[process.ppid()].append(process)
            except psutil.Error:
                continue
            own[process.pid] = process
        times: dict[tuple[int, float], float] = {}
        found = {}
        for name, root in roots.items():
            memory = cpu = 0.0
            count = 0
            pending = [own[root]] if root in own else []
            while pending:
                process = pending.pop()
                pending += children[process.pid]
                try:
                    used = process.cpu_times()
                    memory += process.memory_info().rss
                    key = (process.pid, process.create_time())
                except psutil.Error:  # it has just ended
                    continue
                times[key] = used.user + used.system
                cpu += times[key] - self._times.get(key, times[key])
                count += 1
            found[name] = Usage(memory / 2**20, 100.0 * cpu / seconds / (os.cpu_count() or 1), count)
        self._times = times
        return found


class Watch:
    """Compares measured use with the limits. Each crossing of 80 % and of the limit itself is told once."""

    def __init__(self, limits: ResourceLimits) -> None:
        self._limits: dict[Resource, float] = {}
        if limits.memory_limit_mb is not None:
            self._limits["memory"] = float(limits.memory_limit_mb)
        if limits.cpu_limit_percent is not None:
            self._limits["cpu"] = limits.cpu_limit_percent
        self._cpu: deque[float] = deque(maxlen=_CPU_SAMPLES)
        self._told: dict[Resource, str] = {}
        self.pressure: str | None = None
        """Why nothing more is started now."""

    def look(self, usage: Mapping[str, Usage], starting: Collection[str] = ()) -> list[ResourceAlert]:
        """What is new with this sample; an "exceeded" comes with every sample over the limit.

        Of sessions that are ``starting`` the processor use does not count: to compile takes all there is, for a while.
        """
        self._cpu.append(sum(one.cpu_percent for name, one in usage.items() if name not in starting))
        used: dict[Resource, float] = {"memory": sum(one.memory_mb for one in usage.values()), "cpu": 0.0}
        if len(self._cpu) == _CPU_SAMPLES:
            used["cpu"] = sum(self._cpu) / _CPU_SAMPLES
        alerts = []
        self.pressure = None
        for resource, limit in self._limits.items():
            level = judge(used[resource], limit)
            if level is None:
                self._told.pop(resource, None)
                continue
            alert = ResourceAlert(resource, level, used[resource], limit)
            self.pressure = alert.message
            if level == "exceeded" or self._told.get(resource) is None:
                alerts.append(alert)
            self._told[resource] = level
        return alerts

    def forget_cpu(self) -> None:
        """Begin a new mean: a session was stopped, what it used says nothing about the others."""
        self._cpu.clear()


def judge(used: float, limit: float) -> Literal["alert", "exceeded"] | None:
    """How ``used`` stands to ``limit``."""
    if used > limit:
        return "exceeded"
    return "alert" if used >= ALERT_SHARE * limit else None


def pick_victim(resource: Resource, usage: Mapping[str, Usage], priorities: Mapping[str, int]) -> str | None:
    """Who is stopped for the others' sake: of the lowest priority the one that uses most; ``None`` without sessions."""
    if not usage:
        return None

    def key(name: str) -> tuple[int, float, str]:
        used = usage[name].memory_mb if resource == "memory" else usage[name].cpu_percent
        return priorities.get(name, 0), -used, name

    return min(usage, key=key)
