"""Settings of environments that are not gymcast's: packages that bring them, and wrappers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]

_WHERE: Final = (
    "code is named by whoever runs gymcast: on its own command line, or as security.gym_packages of the server"
)


class WrapperConfig(BaseModel):
    """A wrapper of the environment: a name, or a name and its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.]+(:[\w.]+)?$")] = Field(
        description="of gymnasium.wrappers or of stable_baselines3.common.atari_wrappers; any other as module:Class"
    )
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the wrapper")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """``"Name"`` and ``{"Name": {...}}`` mean the same as ``{"name": "Name", "kwargs": {...}}``."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
            ((name, kwargs),) = value.items()
            return {"name": name, "kwargs": {} if kwargs is None else kwargs}
        return value

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        # Loaded on first use: the environments bring their compiled kernels along.
        from gymcast.envs.foreign_wrappers import wrapper_problem

        if problem := wrapper_problem(value):
            raise ValueError(problem)
        return value


def id_and_packages(values: Any) -> Any:
    """``values`` with Gymnasium's ``module:EnvId`` taken apart: the module becomes one of ``gym_packages``."""
    if not isinstance(values, Mapping):
        return values
    key = "envId" if "envId" in values else "env_id"
    env_id = values.get(key)
    if not isinstance(env_id, str) or ":" not in env_id:
        return values
    module, _, name = env_id.rpartition(":")
    packages_key = "gymPackages" if "gymPackages" in values else "gym_packages"
    packages = values.get(packages_key) or ()
    if not isinstance(packages, list | tuple):
        return values
    return {**values, key: name, packages_key: list(dict.fromkeys([*packages, module]))}


def parse_wrapper(text: str) -> dict[str, Any]:
    """``NAME``, ``module:Class``, or either with ``:{arguments}`` behind it, in JSON or YAML. Raises ``ValueError``."""
    name, brace, rest = text.partition("{")
    if not brace:
        return {"name": text.strip()}
    try:
        kwargs = yaml.safe_load(brace + rest)
    except yaml.YAMLError as error:
        raise ValueError(f"the arguments are no mapping in JSON or YAML: {' '.join(str(error).split())}") from None
    if not isinstance(kwargs, dict):
        raise ValueError("the arguments are no mapping, such as {shape: [84, 84]}")
    return {"name": name.strip().removesuffix(":"), "kwargs": kwargs}


def problems_of_environment(env_id: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(field, text)`` for settings that a built-in game does not have, as it runs in compiled batches."""
    from gymcast.envs import GAMES

    if env_id not in GAMES:
        return []
    text = f"{env_id} is stepped as a compiled batch, which cannot be wrapped; leave it out"
    return [(name, text) for name in ("gym_packages", "wrappers", "frame_stack") if settings.get(name)]


def refused_code(
    packages: Iterable[str], wrappers: Iterable[WrapperConfig], allowed: Iterable[str]
) -> list[tuple[str, str]]:
    """``(field, text)`` for every module that these settings would import and that is not ``allowed``."""
    known = set(allowed)
    problems = [
        ("gym_packages", f"{name} is not imported for requests: {_WHERE}") for name in packages if name not in known
    ]
    for number, wrapper in enumerate(wrappers):
        module = wrapper.name.rpartition(":")[0]
        if module and module not in known:
            problems.append((f"wrappers.{number}", f"{wrapper.name} is not imported for requests: {_WHERE}"))
    return problems


def problem_of_workers(env_id: str, workers: int | str) -> str | None:
    """What is wrong with so many ``workers`` for an environment; ``None`` when nothing is."""
    from gymcast.envs import GAMES

    if env_id not in GAMES or workers in ("auto", 0):
        return None
    return f"got {workers}, but {env_id} runs as one native batch in the training process; leave it out"
