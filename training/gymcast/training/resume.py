"""A whole run to a checkpoint and back: weights, optimizer, replay buffer and :mod:`gymcast.training.run_state`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.checkpoints import (
    POLICY_FILE,
    Checkpoint,
    CheckpointManager,
    load_arrays,
    load_state,
    load_tensors,
    model_tensors,
    restore_model,
)
from gymcast.training.config import TrainingConfig
from gymcast.training.models import build_model, normalized
from gymcast.training.policies import can_export, export_policy
from gymcast.training.replay_files import restore_replay, save_replay
from gymcast.training.run_state import RunState, machine, restore, restore_statistics
from gymcast.training.vec_env import GameVecEnv, is_builtin, make_training_vec_env


def save_run(
    manager: CheckpointManager,
    model: BaseAlgorithm,
    state: RunState,
    config: TrainingConfig,
    *,
    reason: str,
    score: float | None,
) -> Checkpoint:
    """Write a checkpoint of ``model`` and ``state``. Raises ``OSError`` with nothing left behind."""

    def write_files(folder: Path) -> None:
        newest = manager.list()[-1:]
        save_replay(model, folder, earlier=newest[0].path if newest else None)
        _export(model, config, folder)

    return manager.save(
        {"model": model_tensors(model)},
        {"config": config.model_dump(mode="json"), **state.values},
        arrays=state.arrays,
        timesteps=state.timesteps,
        episodes=state.values["stats"]["episodes"],
        reason=reason,
        score=score,
        write_files=write_files,
    )


def resume_run(model: BaseAlgorithm, progress: RunProgress, checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """Put a checkpoint into a model that was built from the same configuration.

    Returns why the games could not be put back, in which case the caller starts new ones, and what else may keep the
    run from being the same to the last bit; each ``None`` when there is no such thing. Raises ``CheckpointError`` when
    the checkpoint does not fit.
    """
    state = load_state(checkpoint)
    restore_model(model, load_tensors(checkpoint)["model"])
    restore_replay(model, checkpoint.path)
    no_games = restore(model, progress, state, load_arrays(checkpoint))
    then, now = state["machine"], machine()
    other = None if then == now else f"the checkpoint was written with {then}, this is {now}: last digits may differ"
    return no_games, other


@contextmanager
def loaded_model(config: TrainingConfig, checkpoint: Checkpoint, *, plain: bool = False) -> Iterator[BaseAlgorithm]:
    """The model of a checkpoint for playing, normalising as it did; ``plain``: of Stable-Baselines3's own class.

    Its environment only lends its spaces and is closed at the end. Raises ``CheckpointError``, ``ConfigError``.
    """
    # A game against itself has a lane per seat: two to four, all of which divide 12.
    lanes = 12 if is_builtin(config.env_id) else 1
    env = make_training_vec_env(config.env_id, lanes, 0, options=config.env_kwargs, extras=config.extras)
    env = normalized(env, config)
    try:
        model = build_model(config, env, seed=0, plain=plain)
        load_policy_state(model, checkpoint)
        yield model
    finally:
        env.close()


def load_policy_state(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put weights and the statistics of normalisation into ``model``, for playing. Raises ``CheckpointError``."""
    restore_model(model, load_tensors(checkpoint)["model"])
    normalise = model.get_vec_normalize_env()
    if normalise is not None:
        restore_statistics(normalise, load_arrays(checkpoint))


def _export(model: BaseAlgorithm, config: TrainingConfig, folder: Path) -> None:
    """Write ``policy.npz``, for policies it can express."""
    if not can_export(model) or model.get_vec_normalize_env() is not None:
        return
    env = model.get_env()
    base = None if env is None else env.unwrapped
    export_policy(
        model,
        folder / POLICY_FILE,
        env_id=config.env_id,
        version=base.env.game.version if isinstance(base, GameVecEnv) else "",
        options=dict(base.env.options) if isinstance(base, GameVecEnv) else dict(config.env_kwargs),
    )
