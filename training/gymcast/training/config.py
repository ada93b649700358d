"""Configuration of a training.

A frozen pydantic model. Values arrive from YAML presets, REST bodies (camelCase) and keyword arguments
(snake_case); all problems of one set of values are reported together. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from gymcast.training import preset_files
from gymcast.training.algorithm_table import (
    ALGORITHMS,
    AUTO,
    AlgorithmSpec,
    problem_of_name,
    problems_of_hyperparameters,
    problems_of_network,
)
from gymcast.training.config_model import ConfigError as ConfigError
from gymcast.training.config_model import ConfigModel, SeveralProblems
from gymcast.training.env_settings import ModuleName, WrapperConfig, id_and_packages
from gymcast.training.network_config import NetworkConfig as NetworkConfig
from gymcast.training.network_config import NormalizeConfig as NormalizeConfig

if TYPE_CHECKING:
    from gymcast.envs.foreign_make import EnvExtras

Precision = Literal["auto", "float32", "bfloat16"]

# In a run folder: weights its training begins with, as Stable-Baselines3 writes them.
INITIAL_FILE: Final = "initial.zip"


class TrainingMode(StrEnum):
    """How a training is paced and shown."""

    REALTIME = "realtime"
    """1x, as a person would play."""
    TRAINING = "training"
    """At ``speed_multiplier``, for watching: 10x to 50x is what the eye can follow. Unlimited without one."""
    HEADLESS = "headless"
    """As fast as the machine allows, or at a ``speed_multiplier`` of 50 to 100."""
    BATCH = "batch"
    """As fast as the machine allows, as one part of a distributed run."""


# The speed multipliers a mode takes; every mode but realtime is unlimited without one.
_MULTIPLIERS: Final[dict[TrainingMode, tuple[float, float] | None]] = {
    TrainingMode.REALTIME: (1.0, 1.0),
    TrainingMode.TRAINING: (1.0, 100.0),
    TrainingMode.HEADLESS: (50.0, 100.0),
    TrainingMode.BATCH: None,
}


class TrainingConfig(ConfigModel):
    """Everything that determines a training run."""

    # What is trained
    env_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.:/-]+$")] = Field(
        default="gymcast/Archers-v0", description='Gymnasium id or alias of a built-in game such as "archers"'
    )
    env_kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="options of the environment")
    gym_packages: Annotated[tuple[ModuleName, ...], Field(max_length=32)] = Field(
        default=(), description="packages that register environments when they are imported, such as minigrid"
    )
    wrappers: Annotated[tuple[WrapperConfig, ...], Field(max_length=32)] = Field(
        default=(),
        description="wrappers of the environment, the innermost first: Name, {Name: {argument: value}} or module:Class",
    )
    frame_stack: Annotated[int, Field(ge=2, le=64)] | None = Field(
        default=None, description="newest observations that are seen side by side, 2..64; null: the newest alone"
    )
    algorithm: str = Field(
        default=AUTO,
        description="algorithm of Stable-Baselines3 or sb3-contrib; auto: the one that suits the actions",
        json_schema_extra={"enum": [AUTO, *ALGORITHMS]},
    )
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    normalize: NormalizeConfig | None = Field(
        default=None, description="running normalisation of observations and rewards, see below; null: none"
    )
    hyperparameters: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="arguments of the algorithm, see below; a rate may be a schedule",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="seed of everything random, 0..2^31-1; null draws one, which the run folder records"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        default="cpu",
        description="torch device: auto, cpu, cuda, cuda:N or mps; small networks are fastest on the CPU",
    )
    precision: Precision = Field(
        default="float32",
        description="arithmetic of the layers' matrix products; bfloat16: mixed precision, weights and losses stay "
        "float32; auto: bfloat16 where the hardware has it (AMX, CUDA)",
    )

    # How long: training ends at the limit that is reached first, or when it is stopped
    max_episodes: Annotated[int, Field(ge=1, le=10**12)] | None = Field(
        default=None, description="episodes to play; null without this limit"
    )
    total_timesteps: Annotated[int, Field(ge=1, le=10**13)] | None = Field(
        default=None, description="decisions to take, all lanes together; null without this limit"
    )
    max_minutes: Annotated[float, Field(gt=0, le=525_600, allow_inf_nan=False)] | None = Field(
        default=None, description="minutes of training, pauses not counted; null without this limit"
    )
    target_reward: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None,
        description="training also ends once the mean return of recent episodes reaches this: of the last 100, or of as"
        " many as there are lanes, up to 1000",
    )
    max_episode_steps: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        default=None, description="decisions after which an episode is truncated; null: the environment's own limit"
    )
    episode_timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=None,
        description="seconds after which an episode is truncated: game time in built-in games, wall-clock time in"
        " others, where with workers a game that hangs ends too; null: only the environment's own limit",
    )

    # How fast and how many
    parallel_episodes: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=8, description="episodes played at once (lanes of the vector environment)"
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        default="auto",
        description="processes that step the environments and are started again when one crashes or hangs; 0: the"
        " training process steps them; auto: 0 for games of gymcast and of Gymnasium itself and in scripts of your own,"
        " else one for each core, at most one for each lane",
    )
    worker_start_method: Literal["forkserver", "spawn", "fork"] = Field(
        default="forkserver", description="how worker processes are started"
    )
    step_timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=60.0,
        description="seconds a worker may take for one step of all its lanes before it is killed and started again; of"
        " a game that a session's own process steps: for one lane, then the process is killed and goes on from its"
        " newest checkpoint; null: no limit",
    )
    start_timeout: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=120.0,
        description="seconds a worker may take to make its environments, or a session's own process to import their"
        " packages and to make one; null: no limit",
    )
    stall_timeout: Annotated[float, Field(gt=0, le=604_800, allow_inf_nan=False)] | None = Field(
        default=900.0,
        description="seconds without a step, a gradient step or the end of a checkpoint after which a session's process"
        " hangs and is killed; compiling has ten minutes at least; null: no limit",
    )
    max_restarts: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=100, description="restarts of workers before the training fails; null: no limit"
    )
    max_restarts_per_minute: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=20, description="restarts of workers within a minute before the training fails"
    )
    speed_multiplier: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="game seconds per wall-clock second of each lane, 1..100; null: unlimited"
    )
    headless_mode: bool | None = Field(
        default=None,
        description="true: no pacing whatever the speed_multiplier; null: true unless a speed or realtime is asked for",
    )
    training_mode: TrainingMode = Field(
        default=TrainingMode.TRAINING,
        description="realtime: 1x; training: speed_multiplier (usually 10..50); headless: unlimited, or 50..100; batch:"
        " unlimited",
    )

    # Session
    room_password: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, exclude=True, repr=False, description="password of the spectator room; never written to disk"
    )
    spectator_enabled: bool = Field(default=True, description="send footage and decisions for viewers")
    auto_cleanup: bool = Field(default=True, description="delete all but the newest and the best checkpoints")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3, description="new attempts, each from the newest good checkpoint, after a training process was killed"
    )

    # Checkpoints and evaluation
    checkpoint_interval_minutes: Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)] | None = Field(
        default=1.0, description="minutes between checkpoints; null: none by time"
    )
    checkpoint_interval_steps: Annotated[int, Field(ge=1, le=10**13)] | None = Field(
        default=None, description="decisions between checkpoints; null: none by decisions"
    )
    checkpoint_interval_episodes: Annotated[int, Field(ge=1, le=10**12)] | None = Field(
        default=None, description="finished episodes between checkpoints; null: none by episodes"
    )
    checkpoints_kept: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="newest checkpoints kept when auto_cleanup is on; the best one is kept besides"
    )
    checkpoints_max_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="MiB all checkpoints of a run may take when auto_cleanup is on; the oldest go first, the newest and"
        " the best one always stay; null: not limited",
    )
    checkpoint_evaluation_games: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0,
        description="games played when a checkpoint is written, to tell the best one; 0: the recent training episodes"
        " decide",
    )
    evaluation_games: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=1000, description="games played against each opponent after training; 0: no evaluation"
    )
    evaluation_opponents: Annotated[tuple[str, ...], Field(max_length=64)] | None = Field(
        default=None, description="opponents of the final evaluation; null: every scripted level of the game"
    )

    # The log of every episode
    replays_kept: Annotated[int, Field(ge=0, le=10**12)] | None = Field(
        default=None, description="newest episodes kept for replay, about; 0: none are logged; null: as the disk allows"
    )
    replays_max_mb: Annotated[float, Field(ge=1, le=10**9, allow_inf_nan=False)] | None = Field(
        default=1024.0, description="MiB the log of episodes may take, the oldest make room; null: not limited"
    )

    # What is sent to viewers
    footage_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=10.0, description="seconds between training episodes sent as replays; null: none"
    )
    metrics_hz: Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)] = Field(
        default=2.0, description="metric readings sent per second, at most 50"
    )

    # Weights & Biases (extra gymcast[wandb])
    use_wandb: bool = Field(default=False, description="log to Weights & Biases; WANDB_MODE=offline writes a folder")
    wandb_project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = Field(
        default="gymcast", description="W&B project: letters, digits and _ . -, up to 128"
    )
    wandb_name: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="name of the W&B run; null: the name of the run folder"
    )
    wandb_tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=32)] = Field(
        default=(), description="tags of the W&B run, up to 32"
    )

    @model_validator(mode="before")
    @classmethod
    def _module_of_the_id(cls, values: Any) -> Any:
        return id_and_packages(values)

    @field_validator("algorithm")
    @classmethod
    def _algorithm_is_known(cls, value: str) -> str:
        if problem := problem_of_name(value):
            raise ValueError(problem)
        return value

    @field_validator("network")
    @classmethod
    def _network_of_the_algorithm(cls, value: NetworkConfig, info: ValidationInfo) -> NetworkConfig:
        algorithm = info.data.get("algorithm")  # missing when it is itself wrong
        if algorithm is not None and (problems := problems_of_network(algorithm, value.changed)):
            raise SeveralProblems(problems)
        return value

    @field_validator("hyperparameters")
    @classmethod
    def _hyperparameters_of_the_algorithm(
        cls, value: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        algorithm = info.data.get("algorithm")  # missing when it is itself wrong
        if algorithm is not None and (problems := problems_of_hyperparameters(algorithm, value)):
            raise SeveralProblems(problems)
        return value

    @field_validator("training_mode")
    @classmethod
    def _mode_runs_at_the_speed(cls, value: TrainingMode, info: ValidationInfo) -> TrainingMode:
        speed, allowed = info.data.get("speed_multiplier"), _MULTIPLIERS[value]
        if speed is None or info.data.get("headless_mode") or (allowed and allowed[0] <= speed <= allowed[1]):
            return value
        give = f"give {' to '.join(f'{x:g}' for x in dict.fromkeys(allowed))}, " if allowed else ""
        raise ValueError(f"not at speed_multiplier {speed:g}: {give}leave it out, or take training_mode training")

    @property
    def extras(self) -> EnvExtras:
        """What belongs to the environment beside its id and options."""
        # Loaded on first use: the environments bring their compiled kernels along.
        from gymcast.envs.foreign_make import EnvExtras

        wrappers = tuple((wrapper.name, wrapper.kwargs) for wrapper in self.wrappers)
        return EnvExtras(self.gym_packages, wrappers, self.frame_stack)

    @property
    def pacing(self) -> float | None:
        """Game seconds per wall-clock second each lane is held to; ``None`` when nothing is held back."""
        if self.headless_mode:
            return None
        return 1.0 if self.training_mode is TrainingMode.REALTIME else self.speed_multiplier

    def longest_step(self, lanes: int) -> float | None:
        """Seconds that a step of ``lanes`` games, one after the other, may take; ``None`` for no limit.

        No step may last longer than an episode.
        """
        limits = [self.step_timeout] if self.step_timeout is not None else []
        if self.episode_timeout is not None:
            limits.append(self.episode_timeout * lanes)
        return min(limits, default=None)

    @property
    def spec(self) -> AlgorithmSpec:
        """What the table of algorithms says of this one. ``KeyError`` as long as it is ``auto``."""
        return ALGORITHMS[self.algorithm]

    def with_algorithm(self, algorithm: str) -> Self:
        """These settings with ``algorithm`` in the place of ``auto``, and its defaults where nothing is given.

        Raises :class:`ConfigError` for hyperparameters and a network that it does not have.
        """
        values = self.model_dump(mode="json") | {"algorithm": algorithm, "room_password": self.room_password}
        values["hyperparameters"] = {**ALGORITHMS[algorithm].defaults, **self.hyperparameters}
        return self.parse(values)

    @classmethod
    def preset_names(cls) -> tuple[str, ...]:
        """Names accepted by :meth:`preset`."""
        return preset_files.names()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset ``name`` with ``overrides`` on top.

        Mappings such as ``env_kwargs`` are merged key by key. An override of any limit (episodes, timesteps, minutes)
        replaces all limits of the preset, its target included; another kind of algorithm replaces the preset's
        hyperparameters by its own defaults.
        Raises :class:`ConfigError` for an unknown preset or bad values.
        """
        return cls.parse(preset_files.merge(preset_files.read(name), cls.in_snake_case(overrides)))

    @classmethod
    def preset_for(cls, env_id: str) -> str:
        """The name of the preset made for ``env_id``, its family (``ALE/...``, ``MiniGrid-...``), or ``default``."""
        return preset_files.name_for(env_id)

    @classmethod
    def for_env(cls, env_id: str, **overrides: Any) -> Self:
        """``overrides`` on top of the preset that :meth:`preset_for` names."""
        return cls.preset(cls.preset_for(env_id), **{**overrides, "env_id": env_id})

    @classmethod
    def from_request(cls, values: Mapping[str, Any]) -> Self:
        """Values of a request (either spelling, any subset) on top of the preset of the environment they name."""
        env_id = values.get("env_id", values.get("envId", cls.model_fields["env_id"].default))
        if not isinstance(env_id, str):
            return cls.parse(values)
        return cls.for_env(env_id, **{key: value for key, value in values.items() if key not in ("env_id", "envId")})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a file written by :meth:`to_yaml`, or by hand. Raises :class:`ConfigError`, ``OSError``."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML", [("file", " ".join(str(error).split()))]) from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is not a configuration", [("file", "expected 'field: value' lines")])
        return cls.parse(values)

    def to_yaml(self) -> str:
        """The exact configuration as YAML in snake_case; ``room_password`` is left out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
