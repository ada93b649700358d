"""Actor-critic networks evaluated with NumPy alone: trained policies as opponents and on the page, without torch."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.errors import OptionValueError

_ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
}


class NumpyPolicy:
    """A multi-layer perceptron with a policy head and a value head, read from a `policy.npz`.

    The file holds `pi.<i>.weight` float32 (out, in) and `pi.<i>.bias` for the hidden layers of the actor,
    `action.weight` and `action.bias` for its head, `vf.*` and `value.*` likewise for the critic, and `meta`, a JSON
    text with `env_id`, `activation` and `nvec` (sizes of the groups of actions). Nothing in it is ever unpickled.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any], seed: int | None = 0) -> None:
        self.meta = meta
        self.sha256 = _digest(arrays, meta)
        self.nvec = [int(n) for n in meta["nvec"]]
        self._splits = np.cumsum(self.nvec)[:-1]
        self._activation = _ACTIVATIONS[meta["activation"]]
        self._actor = self._layers(arrays, "pi", "action")
        self._critic = self._layers(arrays, "vf", "value")
        self.random = np.random.default_rng(seed)
        self.deterministic = False
        self.row_by_row = False
        """Whether each row is computed on its own: slower, but what comes out for it depends on no other row."""

    @staticmethod
    def _layers(arrays: dict[str, NDArray[Any]], prefix: str, head: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        count = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in arrays)
        names = [f"{prefix}.{i}" for i in range(count)] + [head]
        return [(arrays[f"{n}.weight"].T.astype(np.float32), arrays[f"{n}.bias"].astype(np.float32)) for n in names]

    def _forward(self, layers: list[tuple[NDArray[Any], NDArray[Any]]], x: NDArray[Any]) -> NDArray[np.float32]:
        x = np.asarray(x, np.float32).reshape(len(x), -1)
        if self.row_by_row:
            x = x[:, None, :]
        for weight, bias in layers[:-1]:
            x = self._activation(x @ weight + bias)
        result: NDArray[np.float32] = x @ layers[-1][0] + layers[-1][1]
        return result[:, 0] if self.row_by_row else result

    def probabilities(self, observations: NDArray[Any], masks: NDArray[np.bool_] | None = None) -> list[NDArray[Any]]:
        """Probabilities of each group's actions, float32 (N, n) per group; illegal ones 0 where masks are given."""
        logits = self._forward(self._actor, observations)
        if masks is not None:
            logits = np.where(masks, logits, -1e8)
        result = []
        for group in np.split(logits, self._splits, axis=1):
            weights = np.exp(group - group.max(axis=1, keepdims=True))
            result.append(weights / weights.sum(axis=1, keepdims=True))
        return result

    def values(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Value estimates, float32 (N,)."""
        return self._forward(self._critic, observations)[:, 0]

    def __call__(self, observations: NDArray[Any], masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Actions, int64 (N, groups) (or (N,) for one group): drawn, or the likeliest when `deterministic`."""
        columns = []
        for p in self.probabilities(observations, masks):
            if self.deterministic:
                columns.append(p.argmax(axis=1))
            else:
                draws = self.random.random((len(p), 1))
                columns.append(np.minimum((p.cumsum(axis=1) < draws).sum(axis=1), p.shape[1] - 1))
        actions = np.stack(columns, axis=1).astype(np.int64)
        return actions[:, 0] if len(self.nvec) == 1 else actions


def _digest(arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def load_policy(path: str | Path, seed: int | None = 0) -> NumpyPolicy:
    """Read a `policy.npz`; raises OptionValueError when there is none or it is something else."""
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        return NumpyPolicy(arrays, meta, seed)
    except FileNotFoundError:
        raise OptionValueError(f"there is no policy file {str(path)!r}: give the policy.npz of a checkpoint.") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise OptionValueError(f"{str(path)!r} is not a policy file of gymcast ({error}).") from error
