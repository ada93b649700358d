"""The order of the files, and databases: a test that asks for ``database_url`` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .postgres_server import empty, fresh_database, server_or_skip

# The files that take longest, so that no worker is left with one of them at the end. The first one compiles the kernels
# while the workers beside it need none, as otherwise all would compile the same.
FIRST = (
    "envs/test_archers_motion.py",
    "server/test_own_script.py",
    "faults/test_session_recovery.py",
    "server/test_cli_train.py",
    "envs/test_snapshot.py",
    "training/test_resume.py",
    "house/test_readme.py",
    "faults/test_interrupts.py",
    "training/test_worker.py",
    "server/test_cli_exact.py",
    "faults/test_signals.py",
    "faults/test_session_games.py",
    "faults/test_batch_episodes.py",
    "browser/test_page_game.py",
    "faults/test_subproc.py",
    "faults/test_session_outages.py",
    "faults/test_session_manager.py",
    "training/test_collapse.py",
    "training/test_run_log.py",
    "training/test_maskable_recurrent.py",
    "house/test_wheel.py",
    "faults/test_scale_out.py",
    "contract/test_openapi_schemathesis.py",
    "server/test_client.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: at for at, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server on which databases may be made."""
    yield from server_or_skip()


@pytest.fixture(scope="session")
def _postgres_database(postgres_server: str) -> Iterator[str]:
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def postgres_url(_postgres_database: str) -> str:
    """A PostgreSQL database without rows; the tests of one run share it, one after the other."""
    empty(_postgres_database)
    return _postgres_database


@pytest.fixture
def new_postgres_url(postgres_server: str) -> Iterator[str]:
    """A PostgreSQL database without tables, for this test alone."""
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without rows: a SQLite file, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
