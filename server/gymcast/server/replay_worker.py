"""The process that plays replays for a server: ``python -m gymcast.server.replay_worker``.

Playing a game compiles its kernels, about 20 s the first time on a machine, and holds the interpreter's lock all the
while; in a process of its own it delays no live message. Requests come on standard input, answers go to standard
output, each as lengths and bytes (:data:`REQUEST`, :data:`ANSWER`); the end of the input is the end of the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from gymcast.envs import Replay

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
    import gymcast.envs  # noqa: F401  (loaded before the first request, which then waits less)

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
    from gymcast.envs import GAMES, Replay, replay_frames

    settings = more.pop("settings", None)
    try:
        replay = Replay.from_bytes(content)
        if len(replay.actions) > MAX_DECISIONS:
            return False, f"it has {len(replay.actions):,} decisions, at most {MAX_DECISIONS:,} are drawn.".encode()
        frames = replay_frames(replay) if replay.env_id in GAMES else _pictures(replay, settings)
        view = {**frames, **more}
        return True, json.dumps(view, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:  # ReplayError, or options that this version does not have
        return False, str(error).encode()


def _pictures(replay: Replay, settings: dict[str, Any] | None) -> dict[str, Any]:
    """Pictures of another environment's episode. How it is made comes from its run's own folder, never from a client,
    who could name any code there is; of the replay only seed and actions are used. Raises ``ValueError``.
    """
    from gymcast.envs.foreign_ids import import_packages
    from gymcast.envs.foreign_make import EnvExtras
    from gymcast.envs.pictures import replay_pictures

    if settings is None:
        raise ValueError(f"episodes of {replay.env_id} are drawn for trainings that this server runs.")
    if settings["env_id"] != replay.env_id:
        raise ValueError(f"it is of {replay.env_id}, its training of {settings['env_id']}.")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    extras = EnvExtras.from_json(settings["extras"])
    import_packages(extras.modules())
    return replay_pictures(dataclasses.replace(replay, options=settings["options"], extras=extras))


if __name__ == "__main__":
    main()
