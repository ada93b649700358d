"""Names of what lies in a runs folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONFIG_FILE: Final = "config.yaml"
DATABASE_FILE: Final = "gymcast.db"


def database_path(runs_dir: Path) -> Path:
    """The database that all runs of a folder share."""
    return runs_dir / DATABASE_FILE


def database_url(runs_dir: Path) -> str:
    """SQLAlchemy URL of :func:`database_path`."""
    return f"sqlite:///{database_path(runs_dir).absolute()}"
