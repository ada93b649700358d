"""Checkpoints: one folder each, written atomically, verified by hashes, pruned.

A checkpoint holds tensors (``model.pt``: policy and optimizer state, read with ``weights_only``), JSON
(``state.json``: counters and whatever else the caller hands over), arrays (``arrays.npz``: random streams, games and
what else :mod:`gymcast.training.run_state` takes), further files such as ``policy.npz``, and last a manifest with the
SHA-256 of every file. A folder without a manifest that verifies is no checkpoint. No pickle is ever loaded.
"""

from __future__ import annotations

import builtins
import fcntl
import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch as th

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm

log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
MODEL_FILE: Final = "model.pt"
STATE_FILE: Final = "state.json"
ARRAYS_FILE: Final = "arrays.npz"
POLICY_FILE: Final = "policy.npz"
FORMAT: Final = 2


class CheckpointError(Exception):
    """A folder that is not a whole, unchanged checkpoint, or one that does not fit the model."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. ``sha256`` is the hash of the manifest, which in turn holds those of all files."""

    path: Path
    timesteps: int
    episodes: int
    score: float | None
    reason: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Found:
    """What :meth:`CheckpointManager.find_newest` came to: the checkpoint, and which newer ones were skipped and why."""

    checkpoint: Checkpoint | None
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        chosen = "the beginning (no checkpoint)" if self.checkpoint is None else self.checkpoint.path.name
        return "; ".join([chosen, *(f"{name} skipped: {why}" for name, why in self.skipped)])


class CheckpointManager:
    """The checkpoints in ``folder``.

    The ``keep`` newest ones are kept (``None``: all), fewer where they would take more than ``max_bytes`` together
    (``None``: no such limit). The newest and the one with the best score always stay.
    """

    def __init__(self, folder: str | Path, *, keep: int | None = 3, max_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.max_bytes = max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def save(
        self,
        tensors: Mapping[str, Any],
        state: Mapping[str, Any],
        *,
        timesteps: int,
        episodes: int,
        reason: str,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        score: float | None = None,
        write_files: Callable[[Path], None] | None = None,
    ) -> Checkpoint:
        """Write a checkpoint and return it, verified. A second writer, in any thread or process, waits for the first.

        ``tensors`` is nested dicts and lists of tensors and numbers, ``state`` is JSON, ``arrays`` NumPy arrays by
        name; ``write_files`` is called with the unfinished folder and may add files. ``score`` (higher is better)
        decides which one is the best. Raises ``OSError`` (such as a full disk) with nothing left behind and earlier
        checkpoints untouched.
        """
        name = f"step-{timesteps:014d}"
        unfinished = self.folder / f".{name}.unfinished-{os.getpid()}"
        with self._only_writer():
            shutil.rmtree(unfinished, ignore_errors=True)
            try:
                unfinished.mkdir()
                _save_tensors(tensors, unfinished / MODEL_FILE)
                (unfinished / STATE_FILE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
                _save_arrays(arrays or {}, unfinished / ARRAYS_FILE)
                if write_files is not None:
                    write_files(unfinished)
                header = {"timesteps": timesteps, "episodes": episodes, "score": score, "reason": reason}
                _write_manifest(unfinished, header)
                target = self._free_name(name)
                os.replace(unfinished, target)
                _sync_directory(self.folder)
            except OSError:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            checkpoint = verify(target)
            self._prune()
        return checkpoint

    def list(self) -> list[Checkpoint]:
        """Every checkpoint whose manifest can be read, oldest first; files are not hashed (see :func:`verify`)."""
        found = []
        for path in checkpoint_folders(self.folder):
            try:
                found.append(_read_manifest(path)[0])
            except CheckpointError as error:
                log.warning("%s", error)
        return found

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are logged and skipped."""
        return self.find_newest().checkpoint

    def find_newest(self) -> Found:
        """The newest checkpoint that verifies, with the reasons why newer ones do not."""
        skipped: builtins.list[tuple[str, str]] = []
        for path in reversed(checkpoint_folders(self.folder)):
            try:
                return Found(verify(path), tuple(skipped))
            except CheckpointError as error:
                log.warning("skipping a damaged checkpoint: %s", error)
                skipped.append((path.name, str(error)))
        return Found(None, tuple(skipped))

    def best(self) -> Checkpoint | None:
        """The checkpoint with the highest score, the newer one of equals; ``None`` when none has a score."""
        scored = [checkpoint for checkpoint in self.list() if checkpoint.score is not None]
        return max(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.timesteps), default=None)

    def prune(self) -> None:
        """Delete what goes beyond the limits of number and size, the oldest first; the newest and the best one stay."""
        with self._only_writer():
            self._prune()

    def _prune(self) -> None:
        found, best = self.list(), self.best()
        total = _disk_bytes(found)
        kept = list(found)
        for left, checkpoint in zip(range(len(found), 1, -1), found, strict=False):
            too_many = self.keep is not None and left > self.keep
            too_large = self.max_bytes is not None and total > self.max_bytes
            if (too_many or too_large) and (best is None or checkpoint.path != best.path):
                # Renamed first: a folder that is half deleted must not look like a checkpoint.
                doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.unfinished-pruned")
                os.replace(checkpoint.path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
                kept.remove(checkpoint)
                total = _disk_bytes(kept)

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        # A lock on the folder itself leaves no file behind, and the system lifts it when a process is killed.
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _free_name(self, name: str) -> Path:
        target, number = self.folder / name, 1
        while target.exists():
            number += 1
            target = self.folder / f"{name}-{number}"
        return target

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(".*.unfinished-*"):
            owner = path.name.rsplit("-", 1)[-1]
            if not (owner.isdigit() and int(owner) != os.getpid() and Path(f"/proc/{owner}").exists()):
                shutil.rmtree(path, ignore_errors=True)


def _disk_bytes(checkpoints: Iterable[Checkpoint]) -> int:
    """What checkpoints take together; a file that several of them hold counts once."""
    found = [path.stat() for checkpoint in checkpoints for path in checkpoint.path.iterdir()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are named as checkpoints are, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def _save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    # Through memory: torch's own writer turns a full disk into errors that are not OSError.
    buffer = io.BytesIO()
    th.save(dict(tensors), buffer)
    path.write_bytes(buffer.getbuffer())


def _save_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getbuffer())


def _write_manifest(folder: Path, header: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"sha256": _hash(path), "bytes": path.stat().st_size}
    manifest = json.dumps({"format": FORMAT, **header, "files": files}, indent=1, allow_nan=False)
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(manifest)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(folder)


def _read_manifest(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)
        files: dict[str, Any] = manifest["files"]
        checkpoint = Checkpoint(
            path=path,
            timesteps=manifest["timesteps"],
            episodes=manifest["episodes"],
            score=manifest["score"],
            reason=manifest["reason"],
            bytes=len(text) + sum(entry["bytes"] for entry in files.values()),
            sha256=hashlib.sha256(text).hexdigest(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has no readable {MANIFEST}: {error}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {manifest.get('format')}; this version reads format {FORMAT}")
    return checkpoint, files


def file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 by name of the files of a checkpoint, as its manifest has them. Raises :class:`CheckpointError`."""
    return {name: str(entry["sha256"]) for name, entry in _read_manifest(path)[1].items()}


def verify(path: str | Path) -> Checkpoint:
    """Read and hash every file of a checkpoint. Raises :class:`CheckpointError` naming the first that differs."""
    checkpoint, files = _read_manifest(Path(path))
    for name, entry in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{path}: the manifest names a file outside the folder: {name!r}")
        try:
            if _hash(checkpoint.path / name) != entry["sha256"]:
                raise CheckpointError(f"SHA-256 of {checkpoint.path / name} differs from what was saved")
        except OSError as error:
            raise CheckpointError(f"{checkpoint.path / name} cannot be read: {error}") from error
    return checkpoint


def load_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of a checkpoint, on the CPU; nothing but tensors and plain values is ever unpickled.

    Raises :class:`CheckpointError` for a file that holds anything else.
    """
    path = checkpoint.path / MODEL_FILE
    try:
        tensors: dict[str, Any] = th.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} does not hold tensors alone: {error}") from error
    return tensors


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint.path / STATE_FILE).read_text(encoding="utf-8"))
    return state


def load_arrays(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """The NumPy arrays of a checkpoint by name. Raises :class:`CheckpointError` for a file that holds anything else."""
    path = checkpoint.path / ARRAYS_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} does not hold arrays alone: {error}") from error


def model_tensors(model: BaseAlgorithm) -> dict[str, Any]:
    """State of every network and optimizer of ``model``, by Stable-Baselines3's own names."""
    state_dicts, variables = model._get_torch_save_params()
    tensors = {name: _attribute(model, name).state_dict() for name in state_dicts}
    return {**tensors, **{name: _attribute(model, name) for name in variables}}


def restore_model(model: BaseAlgorithm, tensors: Mapping[str, Any]) -> None:
    """Put what :func:`model_tensors` returned into ``model``. Raises :class:`CheckpointError` when it does not fit."""
    state_dicts, variables = model._get_torch_save_params()
    try:
        for name in state_dicts:
            _attribute(model, name).load_state_dict(tensors[name])
        for name in variables:
            _attribute(model, name).data.copy_(tensors[name].data)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not fit this model: {error}") from error


def tensors_sha256(tensors: Any) -> str:
    """SHA-256 over names, types, shapes and bytes of nested tensors and numbers, whatever file they came from."""
    digest = hashlib.sha256()
    _digest(tensors, "", digest.update)
    return digest.hexdigest()


def _digest(value: Any, name: str, update: Callable[[bytes], None]) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _digest(value[key], f"{name}/{key}", update)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _digest(part, f"{name}/{index}", update)
    elif isinstance(value, th.Tensor):
        array = value.detach().cpu().contiguous().numpy()
        update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    else:
        update(f"{name} {value!r}\n".encode())


def _attribute(model: BaseAlgorithm, dotted: str) -> Any:
    value: Any = model
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
