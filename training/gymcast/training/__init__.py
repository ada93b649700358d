"""Training: Stable-Baselines3 runs, checkpoints, sessions and storage.

Names are imported when they are first used, so that a web process which needs a configuration or an event does not
import torch.
"""

import os
from typing import TYPE_CHECKING

from gymcast.training.lazy import lazy_names

# torch's threads wait for each other by spinning, which collapses when another process wants a core: on two busy cores
# PPO made 7,000 to 29,000 samples/s spinning and 61,000 sleeping. It is read when torch is loaded, so it is set here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from gymcast.training.announce import register_external_session as register_external_session
    from gymcast.training.broadcast import EventSink as EventSink
    from gymcast.training.broadcast import Sink as Sink
    from gymcast.training.callbacks import BotDecisionCallback as BotDecisionCallback
    from gymcast.training.callbacks import CheckpointCallback as CheckpointCallback
    from gymcast.training.callbacks import CollapseAlarmCallback as CollapseAlarmCallback
    from gymcast.training.callbacks import EpisodeLogCallback as EpisodeLogCallback
    from gymcast.training.callbacks import FootageCallback as FootageCallback
    from gymcast.training.callbacks import MetricsBroadcastCallback as MetricsBroadcastCallback
    from gymcast.training.callbacks import SessionCallback as SessionCallback
    from gymcast.training.callbacks import SessionControlCallback as SessionControlCallback
    from gymcast.training.checkpoints import Checkpoint as Checkpoint
    from gymcast.training.checkpoints import CheckpointError as CheckpointError
    from gymcast.training.checkpoints import CheckpointManager as CheckpointManager
    from gymcast.training.compute import choose_torch_threads as choose_torch_threads
    from gymcast.training.config import ConfigError as ConfigError
    from gymcast.training.config import NetworkConfig as NetworkConfig
    from gymcast.training.config import TrainingConfig as TrainingConfig
    from gymcast.training.config import TrainingMode as TrainingMode
    from gymcast.training.evaluate import EvaluationResult as EvaluationResult
    from gymcast.training.events import Event as Event
    from gymcast.training.intervals import wilson_interval as wilson_interval
    from gymcast.training.limits import ResourceLimits as ResourceLimits
    from gymcast.training.maskable_recurrent import MaskableRecurrentPPO as MaskableRecurrentPPO
    from gymcast.training.masked_actions import ActionMaskError as ActionMaskError
    from gymcast.training.policies import export_policy as export_policy
    from gymcast.training.sessions import ResourceAlert as ResourceAlert
    from gymcast.training.sessions import SessionLimitError as SessionLimitError
    from gymcast.training.sessions import SessionManager as SessionManager
    from gymcast.training.sessions import SessionMetrics as SessionMetrics
    from gymcast.training.sessions import TrainedEpisode as TrainedEpisode
    from gymcast.training.sessions import TrainingAPI as TrainingAPI
    from gymcast.training.sessions import TrainingFailedError as TrainingFailedError
    from gymcast.training.sessions import TrainingSession as TrainingSession
    from gymcast.training.sessions.batch.manager import BatchEpisodeManager as BatchEpisodeManager
    from gymcast.training.sessions.batch.types import BatchStatus as BatchStatus
    from gymcast.training.sessions.batch.types import EpisodeResult as EpisodeResult
    from gymcast.training.subproc import GymcastSubprocVecEnv as GymcastSubprocVecEnv
    from gymcast.training.trainer import Trainer as Trainer
    from gymcast.training.trainer import TrainingResult as TrainingResult
    from gymcast.training.vec_env import GameVecEnv as GameVecEnv
    from gymcast.training.vec_env import make_training_vec_env as make_training_vec_env

_NAMES = {
    ".announce": ("register_external_session",),
    ".broadcast": (
        "EventSink",
        "Sink",
    ),
    ".callbacks": (
        "BotDecisionCallback",
        "CheckpointCallback",
        "CollapseAlarmCallback",
        "EpisodeLogCallback",
        "FootageCallback",
        "MetricsBroadcastCallback",
        "SessionCallback",
        "SessionControlCallback",
    ),
    ".checkpoints": (
        "Checkpoint",
        "CheckpointError",
        "CheckpointManager",
    ),
    ".compute": ("choose_torch_threads",),
    ".config": (
        "ConfigError",
        "NetworkConfig",
        "TrainingConfig",
        "TrainingMode",
    ),
    ".evaluate": ("EvaluationResult",),
    ".events": ("Event",),
    ".intervals": ("wilson_interval",),
    ".limits": ("ResourceLimits",),
    ".maskable_recurrent": ("MaskableRecurrentPPO",),
    ".masked_actions": ("ActionMaskError",),
    ".policies": ("export_policy",),
    ".sessions": (
        "ResourceAlert",
        "SessionLimitError",
        "SessionManager",
        "SessionMetrics",
        "TrainedEpisode",
        "TrainingAPI",
        "TrainingFailedError",
        "TrainingSession",
    ),
    ".sessions.batch.manager": ("BatchEpisodeManager",),
    ".sessions.batch.types": (
        "BatchStatus",
        "EpisodeResult",
    ),
    ".subproc": ("GymcastSubprocVecEnv",),
    ".trainer": (
        "Trainer",
        "TrainingResult",
    ),
    ".vec_env": (
        "GameVecEnv",
        "make_training_vec_env",
    ),
}

__all__ = [name for names in _NAMES.values() for name in names]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
