"""What the commands share that work on a trained bot: its run, its settings, one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gymcast.server.cli_errors import UserError

if TYPE_CHECKING:
    from gymcast.training.checkpoints import Checkpoint
    from gymcast.training.config import TrainingConfig


@dataclass(frozen=True)
class ChosenRun:
    """A run by its folder and settings; ``checkpoint_path`` when one of its checkpoints was named."""

    run_dir: Path
    config: TrainingConfig
    checkpoint_path: Path | None

    def checkpoint(self, *, best: bool) -> Checkpoint:
        """The checkpoint that was named, or the best or newest one, verified. Imports torch."""
        from gymcast.training.checkpoints import CheckpointError, CheckpointManager, verify

        try:
            if self.checkpoint_path is not None:
                return verify(self.checkpoint_path)
            manager = CheckpointManager(self.run_dir / "checkpoints", keep=None)
            chosen = manager.best() if best else manager.newest()
            if chosen is None:
                raise UserError(
                    f"{self.run_dir} has no checkpoint that verifies; "
                    f"go on training: gymcast train --resume {self.run_dir}"
                )
            return verify(chosen.path)
        except CheckpointError as error:
            raise UserError(str(error)) from None


def choose_run(run: str, runs_dir: Path) -> ChosenRun:
    """The run named by its folder, its name, ``latest``, or the folder of one of its checkpoints."""
    from gymcast.server.cli_paths import CONFIG_FILE
    from gymcast.server.cli_plan import find_run
    from gymcast.training.config import ConfigError, TrainingConfig

    path = Path(run)
    one = (path / "manifest.json").is_file()
    run_dir = path.parent.parent if one else find_run(run, runs_dir)
    try:
        config = TrainingConfig.from_yaml(run_dir / CONFIG_FILE)
    except (ConfigError, OSError) as error:
        raise UserError(f"{run_dir / CONFIG_FILE} cannot be used: {error}") from None
    return ChosenRun(run_dir, config, path if one else None)
