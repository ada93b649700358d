"""Where compiled kernels are kept, and compiling them ahead of time.

numba keeps compiled code per source file and does not notice a change in another file that was merged in. So the
folder carries a hash of all kernel sources and of the versions of numba and Python.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import numba
import numpy as np

_HERE = Path(__file__).parent


def _cache_folder() -> Path:
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__} {platform.python_version()}".encode())
    for source in [_HERE / "rng.py", *sorted((_HERE / "games").glob("*.py"))]:
        digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gymcast" / f"kernels-{digest.hexdigest()[:16]}"


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]


def warm_up(env_id: str, **options: Any) -> None:
    """Compile the kernels of a game (about 20 s the first time on a machine, then well below a second)."""
    from gymcast.envs.vector import GameVectorEnv

    env = GameVectorEnv(env_id, 2, threads=1, **options)
    env.reset(seed=0)
    env.step(np.stack([env.single_action_space.sample()] * env.num_envs))
    env.close()
