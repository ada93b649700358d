"""Games as compiled batches and Gymnasium environments."""

from __future__ import annotations

from gymcast.envs import compiling as _compiling  # first: it says where compiled kernels are kept
from gymcast.envs.episode_log import EpisodeLog, LoggedEpisode
from gymcast.envs.errors import (
    ActionError,
    EnvFaultError,
    EnvMakeError,
    OptionValueError,
    SnapshotError,
    UnknownEnvError,
    UnknownOptionError,
)
from gymcast.envs.foreign_make import EnvExtras, make_foreign
from gymcast.envs.pacing import Pacer
from gymcast.envs.policy import NumpyPolicy, load_policy
from gymcast.envs.registry import (
    GAMES,
    PLAIN_ENVS,
    GameSpec,
    OptionSpec,
    game_spec,
    register_all,
    resolve_env_id,
    short_name,
)
from gymcast.envs.replay import Replay, ReplayError, ReplayRecorder
from gymcast.envs.replay_player import replay_frames, verify_replay
from gymcast.envs.single import GameEnv
from gymcast.envs.snapshot import EpisodeRecorder, restore, snapshot, snapshot_header
from gymcast.envs.speed_check import SpeedRun, verify_speed
from gymcast.envs.subproc_games import GameFactory
from gymcast.envs.trajectory import TrajectoryHash
from gymcast.envs.vault import VaultEnv
from gymcast.envs.vector import GameVectorEnv

__all__ = [
    "GAMES",
    "PLAIN_ENVS",
    "ActionError",
    "EnvExtras",
    "EnvFaultError",
    "EnvMakeError",
    "EpisodeLog",
    "EpisodeRecorder",
    "GameEnv",
    "GameFactory",
    "GameSpec",
    "GameVectorEnv",
    "LoggedEpisode",
    "NumpyPolicy",
    "OptionSpec",
    "OptionValueError",
    "Pacer",
    "Replay",
    "ReplayError",
    "ReplayRecorder",
    "SnapshotError",
    "SpeedRun",
    "TrajectoryHash",
    "UnknownEnvError",
    "UnknownOptionError",
    "VaultEnv",
    "game_spec",
    "load_policy",
    "make_foreign",
    "register_all",
    "replay_frames",
    "resolve_env_id",
    "restore",
    "short_name",
    "snapshot",
    "snapshot_header",
    "verify_replay",
    "verify_speed",
    "warm_up",
]

warm_up = _compiling.warm_up
register_all()
