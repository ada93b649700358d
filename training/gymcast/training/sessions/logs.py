"""The logs of a run, read from their ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from gymcast.training.run_folder import LOG_NAME
from gymcast.training.storage import BadCursorError, Page

# As the worker writes it, see gymcast.training.run_log; that module needs torch, which a server does not.
JSON_LOG: Final = "log.jsonl"
_BLOCK: Final = 64 << 10
_LONGEST: Final = 4000


def read_log(run_dir: Path, source: Literal["run", "worker"], cursor: str | None, limit: int) -> Page[dict[str, Any]]:
    """A page of log lines, newest first, ``{offset, timestamp, level, logger, message, traceback?}`` each.

    ``offset`` is where the line begins in its file, so it grows from line to line. What the worker printed has a
    message only. Raises :class:`BadCursorError`; a log that is not there has no lines.
    """
    path = run_dir / (JSON_LOG if source == "run" else LOG_NAME)
    try:
        end = None if cursor is None else int(cursor)
    except ValueError:
        raise BadCursorError("not a cursor of this list") from None
    items: list[dict[str, Any]] = []
    following = None
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if end is not None and not 0 <= end <= size:
                raise BadCursorError("not a cursor of this list")
            for offset, line in _backwards(file, size if end is None else end):
                item = _record(line) if source == "run" else {"message": line[:_LONGEST]}
                if item is None:
                    continue
                if len(items) == limit:
                    following = str(items[-1]["offset"])
                    break
                items.append({"offset": offset, **item})
    except FileNotFoundError:
        return Page([], None)
    return Page(items, following)


def _backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, str]]:
    """``(offset, text)`` of the lines before ``end``, the last one first; one that is not complete yet is left out."""
    rest = b""
    complete = False
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start) + rest
        if not complete:
            block = block[: block.rfind(b"\n") + 1]
            complete = bool(block)
        cut = block.find(b"\n") + 1 if start else 0
        rest = block[:cut]
        offset = start + cut
        places = []
        for line in block[cut:].split(b"\n")[:-1]:
            places.append((offset, line))
            offset += len(line) + 1
        for place, line in reversed(places):
            if line.strip():
                yield place, line.decode("utf-8", errors="replace")
        end = start


def _record(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("kind") != "log":
        return None
    item = {name: found.get(name) for name in ("level", "logger", "message")}
    item["message"] = str(item["message"])[:_LONGEST]
    item |= {"traceback": found["traceback"][-_LONGEST:]} if found.get("traceback") else {}
    return {"timestamp": found.get("time"), **item}
