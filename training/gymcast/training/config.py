"""Configuration of a training and of the limits sessions run under.

One frozen pydantic model for each. Values arrive from YAML presets, REST bodies (camelCase) and keyword arguments
(snake_case); all problems of one set of values are reported together. This module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from gymcast.training.hyperparameters import problems_of

Algorithm = Literal["ppo", "maskable_ppo", "recurrent_ppo", "a2c", "dqn"]
Activation = Literal["tanh", "relu", "elu"]
Precision = Literal["auto", "float32", "bfloat16"]

# Fields that are mappings: a preset and its overrides are merged key by key instead of replaced as a whole.
_MERGED_FIELDS: Final = ("env_kwargs", "hyperparameters", "network", "normalize")
_LIMIT_FIELDS: Final = ("max_episodes", "total_timesteps", "max_minutes")
# In a run folder: weights its training begins with, as Stable-Baselines3 writes them.
INITIAL_FILE: Final = "initial.zip"
_PRESET_PACKAGE: Final = "gymcast.training"


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


class ConfigError(ValueError):
    """Values that make no configuration. ``problems`` lists every one of them as ``(field, text)``."""

    def __init__(self, title: str, problems: list[tuple[str, str]]) -> None:
        self.title = title
        self.problems = problems
        super().__init__("\n".join([title, *(f"  {field}: {text}" for field, text in problems)]))


class _SeveralProblems(ValueError):
    """More than one thing wrong inside one field."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems))


class _ConfigModel(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        loc_by_alias=False,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _no_field_twice(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            twice = [
                name for name in cls.model_fields if to_camel(name) != name and {name, to_camel(name)} <= set(values)
            ]
            if twice:
                raise ValueError(f"given twice, in snake_case and in camelCase: {', '.join(twice)}; keep one spelling")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate ``values`` (snake_case or camelCase). Raises :class:`ConfigError` naming every problem at once."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(f"invalid {cls.__name__}", describe_problems(cls, error)) from None


class NetworkConfig(_ConfigModel):
    """Actor and critic as multi-layer perceptrons."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] = Field(
        default=(64, 64), description="units of each hidden layer of the actor, 1..8192, up to 16 layers"
    )
    value_hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] | None = Field(
        default=None, description="units of each hidden layer of the critic; null: as the actor"
    )
    shared: bool = Field(
        default=False, description="actor and critic share the hidden layers: half the work (flat observations)"
    )
    activation: Activation = Field(default="tanh", description="activation between layers")
    ortho_init: bool = Field(default=True, description="orthogonal initial weights (on-policy algorithms)")
    lstm_hidden: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=64,
        description="units of the LSTM before the hidden layers, one each for actor and critic (recurrent_ppo)",
    )


class NormalizeConfig(_ConfigModel):
    """Running normalisation of what the learner sees: Stable-Baselines3's ``VecNormalize``."""

    observations: bool = Field(default=True, description="shift and scale observations to mean 0 and variance 1")
    rewards: bool = Field(default=True, description="scale rewards by the deviation of the discounted return")
    clip_observations: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=10.0, description="largest size of a normalised observation"
    )
    clip_rewards: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=10.0, description="largest size of a normalised reward"
    )


class TrainingConfig(_ConfigModel):
    """Everything that determines a training run."""

    # What is trained
    env_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.:/-]+$")] = Field(
        default="gymcast/Archers-v0", description='Gymnasium id or alias of a built-in game such as "archers"'
    )
    env_kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="options of the environment")
    algorithm: Algorithm = Field(default="ppo", description="Stable-Baselines3 algorithm")
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
        " others; null: only the environment's own limit",
    )

    # How fast and how many
    parallel_episodes: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=8, description="episodes played at once (lanes of the vector environment)"
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

    @field_validator("hyperparameters")
    @classmethod
    def _hyperparameters_of_the_algorithm(
        cls, value: dict[str, JsonValue], info: ValidationInfo
    ) -> dict[str, JsonValue]:
        algorithm = info.data.get("algorithm")  # missing when it is itself wrong
        if algorithm is not None and (problems := problems_of(algorithm, value)):
            raise _SeveralProblems(problems)
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
    def pacing(self) -> float | None:
        """Game seconds per wall-clock second each lane is held to; ``None`` when nothing is held back."""
        if self.headless_mode:
            return None
        return 1.0 if self.training_mode is TrainingMode.REALTIME else self.speed_multiplier

    @classmethod
    def preset_names(cls) -> tuple[str, ...]:
        """Names accepted by :meth:`preset`."""
        folder = resources.files(_PRESET_PACKAGE) / "presets"
        return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset ``name`` with ``overrides`` on top.

        Mappings such as ``env_kwargs`` are merged key by key. An override of any limit (episodes, timesteps, minutes)
        replaces all limits of the preset; another kind of algorithm drops the preset's hyperparameters.
        Raises :class:`ConfigError` for an unknown preset or bad values.
        """
        names = cls.preset_names()
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError("unknown preset", [(name, f"{hint}presets are: {', '.join(names)}")])
        text = (resources.files(_PRESET_PACKAGE) / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return cls.parse(_merge(yaml.safe_load(text), overrides))

    @classmethod
    def for_env(cls, env_id: str, **overrides: Any) -> Self:
        """``overrides`` on top of the preset made for ``env_id``, or of the preset ``default`` when there is none."""
        short = env_id.rsplit("/", 1)[-1].split("-v")[0].lower()
        builtin = ("/" not in env_id and env_id == short) or env_id.startswith("gymcast/")
        name = short if builtin and short in cls.preset_names() else "default"
        return cls.preset(name, **{**overrides, "env_id": env_id})

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


_SNAKE_NAMES: Final = {
    to_camel(name): name for model in (TrainingConfig, NetworkConfig, NormalizeConfig) for name in model.model_fields
}


class ResourceLimits(_ConfigModel):
    """Limits that all sessions of one server share."""

    max_concurrent_sessions: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="sessions that may run at once"
    )
    max_parallel_episodes_per_session: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=16_384, description="parallel_episodes one session may ask for"
    )
    max_total_parallel_episodes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=65_536, description="parallel_episodes of all running sessions together"
    )
    memory_limit_mb: Annotated[int, Field(ge=64)] | None = Field(
        default=None, description="resident memory of all workers together, MiB; null: not limited"
    )
    cpu_limit_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="processor use of all workers together, percent of the machine; null: not limited"
    )


def _snake(values: Mapping[str, Any]) -> dict[str, Any]:
    snake = {_SNAKE_NAMES.get(key, key): value for key, value in values.items()}
    # A field given in both spellings stays as it is, for validation to complain about.
    return snake if len(snake) == len(values) else dict(values)


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged, overrides = dict(base), _snake(overrides)
    if any(name in overrides for name in _LIMIT_FIELDS):
        for name in _LIMIT_FIELDS:
            merged.pop(name, None)
    if _family(overrides.get("algorithm", merged["algorithm"])) != _family(merged["algorithm"]):
        merged.pop("hyperparameters", None)
    for name, value in overrides.items():
        if name in _MERGED_FIELDS and isinstance(value, Mapping):
            value = {**(merged.get(name) or {}), **(_snake(value) if name in ("network", "normalize") else value)}
        merged[name] = value
    return merged


def _family(algorithm: Any) -> str:
    """Algorithms of a family take the same hyperparameters."""
    return str(algorithm).removeprefix("maskable_").removeprefix("recurrent_")


def describe_problems(model: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """``(field, text)`` for every problem in ``error``: what was given, what is allowed, or which name was meant."""
    problems = []
    snake = [*model.model_fields, *NetworkConfig.model_fields, *NormalizeConfig.model_fields]
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            # The spelling that was used is the one to suggest.
            close = difflib.get_close_matches(name, snake if name.islower() else [*_SNAKE_NAMES], n=1)
            problems.append((field, "unknown field" + (f"; did you mean {close[0]!r}?" if close else "")))
            continue
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, _SeveralProblems):
            problems += [(f"{field}.{name}", text) for name, text in inner.problems]
            continue
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            text = "not of the form that is allowed"  # the description says it better than a regular expression
        root = item["loc"][0] if item["loc"] else None
        info = model.model_fields.get(str(root))
        given = repr(item["input"])
        given = given if len(given) <= 80 else given[:77] + "..."
        meaning = f" ({info.description})" if info is not None and info.description else ""
        # A password must not travel into a log by way of its own error message.
        shown = "" if root == "room_password" else f", got {given}"
        problems.append((field, f"{text[:1].lower()}{text[1:]}{shown}{meaning}"))
    return problems
