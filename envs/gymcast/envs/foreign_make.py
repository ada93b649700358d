"""Environments that are not gymcast's, made for learning: packages, wrappers, observations as learners take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from gymcast.envs.errors import EnvFaultError, EnvMakeError
from gymcast.envs.foreign_ids import import_family, import_packages
from gymcast.envs.foreign_wrappers import (
    Checked,
    FlatDict,
    FrameStack,
    action_problem,
    needs_flat_dict,
    observation_problem,
    wrap,
)


@dataclass(frozen=True)
class EnvExtras:
    """What belongs to an environment beside its id and arguments."""

    packages: tuple[str, ...] = ()
    """Modules that register environments, imported before the id is looked up."""
    wrappers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Name and arguments of each wrapper, the innermost first."""
    frame_stack: int | None = None
    """Newest observations that are shown side by side."""

    def __bool__(self) -> bool:
        return bool(self.packages or self.wrappers or self.frame_stack)

    def to_json(self) -> dict[str, Any]:
        """For the header of a replay; empty parts are left out."""
        found = {
            "packages": list(self.packages),
            "wrappers": [{"name": name, "kwargs": dict(kwargs)} for name, kwargs in self.wrappers],
            "frame_stack": self.frame_stack,
        }
        return {name: value for name, value in found.items() if value}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> EnvExtras:
        """What :meth:`to_json` gave; raises ``ValueError`` for anything else."""
        try:
            packages = tuple(value.get("packages", ()))
            wrappers = tuple((one["name"], dict(one["kwargs"])) for one in value.get("wrappers", ()))
            stack = value.get("frame_stack")
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no description of wrappers ({error!r})") from None
        texts = [*packages, *(name for name, _ in wrappers)]
        known = set(value) <= {"packages", "wrappers", "frame_stack"}
        if not known or not all(isinstance(text, str) for text in texts) or not (stack is None or type(stack) is int):
            raise ValueError("no description of wrappers")
        return EnvExtras(packages, wrappers, stack)

    def modules(self) -> list[str]:
        """Modules that are imported beside those of Gymnasium and Stable-Baselines3."""
        return [*self.packages, *(name.rpartition(":")[0] for name, _ in self.wrappers if ":" in name)]


NO_EXTRAS = EnvExtras()


def make_foreign(
    env_id: str | gym.envs.registration.EnvSpec,
    kwargs: Mapping[str, Any] | None = None,
    extras: EnvExtras = NO_EXTRAS,
) -> gym.Env[Any, Any]:
    """One environment with its wrappers, observing what Stable-Baselines3 takes.

    Tuples and nested dicts become one flat dict, texts in them are left out (see ``FlatDict``). Every step
    is compared with the spaces (see ``Checked``).

    Raises:
        EnvMakeError: with the setting that is wrong and the environment's or wrapper's own error.
    """
    import_packages(extras.packages)
    name = env_id if isinstance(env_id, str) else env_id.id
    if isinstance(env_id, str):
        import_family(env_id)
    # Pictures as observations have to be drawn by the environment.
    drawn = {"render_mode": "rgb_array"} if any(n == "AddRenderObservation" for n, _ in extras.wrappers) else {}
    env = _make(name, env_id, {**drawn, **(kwargs or {})})
    try:
        for number, (wrapper, arguments) in enumerate(extras.wrappers):
            try:
                env = wrap(env, wrapper, arguments)
            except EnvMakeError as error:
                raise EnvMakeError(f"wrappers.{number}", str(error)) from error
        if problem := observation_problem(env.observation_space):
            raise EnvMakeError("env_id", f"{name}: {problem}")
        if problem := action_problem(env.action_space):
            raise EnvMakeError("env_id", f"{name}: {problem}")
        if needs_flat_dict(env.observation_space):
            env = FlatDict(env)
        env = Checked(env, name)
        if extras.frame_stack is not None and extras.frame_stack > 1:
            env = FrameStack(env, extras.frame_stack)
    except EnvMakeError:
        env.close()
        raise
    return env


def _make(name: str, spec: str | gym.envs.registration.EnvSpec, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    try:
        return gym.make(spec, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise EnvMakeError("env_id", f"{name} needs what is not installed: {error}") from error
    except (gym.error.UnregisteredEnv, gym.error.MissingArgument) as error:
        raise EnvMakeError("env_id", str(error)) from error
    except TypeError as error:
        field = "env_kwargs" if "unexpected keyword argument" in str(error) else "env_id"
        raise EnvMakeError(field, f"{name} cannot be made: {error}") from error
    except Exception as error:
        given = f" with {dict(kwargs)}" if kwargs else ""
        text = f"the constructor of {name}{given} raised {type(error).__name__}: {error}"
        raise EnvMakeError("env_id" if not kwargs else "env_kwargs", text) from error


def try_out(env: gym.Env[Any, Any], steps: int = 3) -> None:
    """Reset an environment and play a few random steps, so that one that breaks Gymnasium's rules is named early.

    Raises:
        EnvMakeError: ``reset`` or ``step`` raised, or returned what the spaces do not allow.
    """
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset(seed=1)
    except EnvFaultError as error:
        raise EnvMakeError("env_id", str(error)) from error
    except Exception as error:
        text = f"{env.spec.id if env.spec else env} does not run: {type(error).__name__}: {error}"
        raise EnvMakeError("env_id", text) from error
