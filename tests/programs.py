"""Programs that some tests need and that are not Python's."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need_program(*names: str, package: str | None = None) -> str:
    """The path of the first of these programs that is there; without any the test ends as :func:`missing` says."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    return found or missing(f"there is no {names[0]}; install Debian's package {package or names[0]}")


def missing(reason: str) -> NoReturn:
    """Skip the test, but fail it in continuous integration, where everything has to be tested."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
