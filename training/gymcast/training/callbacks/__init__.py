"""Small Stable-Baselines3 callbacks. They work in a script of your own as well as in gymcast's trainer."""

from gymcast.training.callbacks.checkpoint import CheckpointCallback
from gymcast.training.callbacks.collapse import CollapseAlarmCallback, TrainingCollapsed
from gymcast.training.callbacks.decisions import BotDecisionCallback, Decision, DecisionExplainer
from gymcast.training.callbacks.episodes import EpisodeLogCallback
from gymcast.training.callbacks.footage import FootageCallback
from gymcast.training.callbacks.guarded import GuardedCallback, WatchedCallbacks
from gymcast.training.callbacks.metrics import MetricsBroadcastCallback
from gymcast.training.callbacks.pictures import PictureCallback
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.callbacks.reports import EpisodeReportCallback
from gymcast.training.callbacks.script import SessionCallback
from gymcast.training.callbacks.session import ProgressCallback, SessionControlCallback
from gymcast.training.episode_stats import EpisodeStats

__all__ = [
    "BotDecisionCallback",
    "CheckpointCallback",
    "CollapseAlarmCallback",
    "Decision",
    "DecisionExplainer",
    "EpisodeLogCallback",
    "EpisodeReportCallback",
    "EpisodeStats",
    "FootageCallback",
    "GuardedCallback",
    "MetricsBroadcastCallback",
    "PictureCallback",
    "ProgressCallback",
    "RunProgress",
    "SessionCallback",
    "SessionControlCallback",
    "TrainingCollapsed",
    "WatchedCallbacks",
]
