"""Start of a worker process: ``python -m gymcast.training.launch --parent PID -- worker arguments``.

Ties the process to the one that started it and then becomes :mod:`gymcast.training.worker`. The tie is made here,
inside the new process, because running Python code between fork and exec is unsafe in a process with threads.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import runpy
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# What belongs to the server: a game prints its environment into a log sooner than one thinks.
_SECRETS: Final = frozenset({"JWT_SECRET_KEY", "GYMCAST_TOKEN", "DATABASE_URL", "REDIS_URL"})


def worker_environment() -> dict[str, str]:
    """The environment variables for a process that runs games: this one's, without the server's secrets."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when ``parent`` ends, however it ends (Linux; elsewhere nothing).

    SIGTERM lets a training write its checkpoint. Exits at once when ``parent`` is gone already.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Tie this process to its parent and run the worker with the remaining arguments."""
    parser = argparse.ArgumentParser(prog="gymcast.training.launch")
    parser.add_argument("--parent", type=int, help="process whose end is this one's end too")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.parent is not None:
        end_with_parent(given.parent)
    # What a crash leaves in worker.log: where it was. SIGUSR1 asks a process that hangs the same.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sys.argv = ["gymcast.training.worker", *(given.rest[1:] if given.rest[:1] == ["--"] else given.rest)]
    runpy.run_module("gymcast.training.worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
