"""The process that plays replays for a server: ``python -m gymcast.server.replay_worker``.

Playing a game compiles its kernels, about 20 s the first time on a machine, and holds the interpreter's lock all the
while; in a process of its own it delays no live message. Requests come on standard input, answers go to standard
output, each as lengths and bytes (:data:`REQUEST`, :data:`ANSWER`); the end of the input is the end of the process.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO, Final

REQUEST: Final = struct.Struct("<II")
"""Bytes of the JSON ``{replay_id, decisions}`` and of the replay file, which follow."""
ANSWER: Final = struct.Struct("<BI")
"""1 for a view or 0 for the reason why there is none, and its number of bytes, which follow."""
# Ten times the longest episode of a built-in game; a made-up replay must not keep the process busy for minutes.
MAX_DECISIONS: Final = 20_000


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    requests = sys.stdin.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        about_size, content_size = REQUEST.unpack(head)
        about, content = _exactly(requests, about_size), _exactly(requests, content_size)
        good, body = simulate(content, json.loads(about))
        answers.write(ANSWER.pack(good, len(body)) + body)
        answers.flush()


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        sys.exit(0)  # the server has gone in the middle of a request
    return data


def simulate(content: bytes, more: dict[str, Any]) -> tuple[bool, bytes]:
    """Play a replay file again: its frames as JSON with ``more`` beside them, or the reason why it cannot be played."""
    from gymcast.envs import Replay, replay_frames

    try:
        replay = Replay.from_bytes(content)
        if len(replay.actions) > MAX_DECISIONS:
            return False, f"it has {len(replay.actions):,} decisions, at most {MAX_DECISIONS:,} are drawn.".encode()
        view = {**replay_frames(replay), **more}
        return True, json.dumps(view, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:  # ReplayError, or options that this version does not have
        return False, str(error).encode()


if __name__ == "__main__":
    main()
