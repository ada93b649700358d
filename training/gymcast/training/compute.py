"""How torch computes: threads, precision and memory."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from typing import Final, Literal

import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from gymcast.training.config import NetworkConfig, Precision

# Multiply-adds per batch that make one more torch thread worth its while. With two layers of 64 units that is about
# 1,000 rows; below, a second thread was slower in every measurement (64 rows: 1.7 times).
MIN_WORK_PER_THREAD = 20_000_000

# Options of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def network_work(network: NetworkConfig, inputs: int, outputs: int) -> int:
    """Multiply-adds of one row through actor and critic."""
    value_hidden = network.hidden if network.value_hidden is None else network.value_hidden
    if network.shared:
        return sum(a * b for a, b in itertools.pairwise((inputs, *network.hidden, outputs + 1)))
    total = 0
    for widths in ((inputs, *network.hidden, outputs), (inputs, *value_hidden, 1)):
        total += sum(a * b for a, b in itertools.pairwise(widths))
    return total


def choose_torch_threads(batch_size: int, work_per_row: int, cores: int | None = None) -> int:
    """How many torch threads suit batches of ``batch_size`` rows of ``work_per_row`` multiply-adds each.

    One thread until a batch is large enough to be worth dividing; never more than ``cores``. The default is one fewer
    than this process may use, which is left to the games, the server and the page: beside them on two cores, training
    with two torch threads fell to 18,000 samples/s at times (`make run` with a browser open).
    """
    if cores is None:
        cores = max(1, len(os.sched_getaffinity(0)) - 1)
    return max(1, min(cores, batch_size * work_per_row // MIN_WORK_PER_THREAD))


def keep_freed_memory() -> bool:
    """Let the C library reuse the memory of tensors instead of giving it back after each operation; false: not glibc.

    Arrays of 128 KiB or more are fresh pages from the kernel by default, which has to clear them: with minibatches of
    2,048 rows that was 6 % of the training time. Up to 1 GiB of freed memory is kept.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def resolve_precision(wanted: Precision, device: str) -> Literal["float32", "bfloat16"]:
    """What ``auto`` stands for on ``device``: bfloat16 where the hardware multiplies matrices in it, else float32.

    That is AMX on processors (on AVX-512 alone nothing was measured) and what torch reports for CUDA.
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda") or (device == "auto" and th.cuda.is_available()):
        return "bfloat16" if th.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if th.cpu.get_capabilities().get("amx_bf16", False) else "float32"


def compute_in_bfloat16(policy: ActorCriticPolicy | MaskableActorCriticPolicy) -> None:
    """Let the hidden layers of ``policy`` compute in bfloat16 from now on (mixed precision as in torch.autocast).

    Weights, their gradients, the heads (rounded logits would make the ratio of probabilities noise), probabilities and
    losses stay float32; names and contents of the state dict are the same. bfloat16 has float32's range: gradients need
    no scaling.
    """
    extractors = {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}
    parts = [(extractor, "forward") for extractor in extractors]
    for module, method in (*parts, (policy.mlp_extractor, "forward_actor"), (policy.mlp_extractor, "forward_critic")):
        setattr(module, method, _autocast(getattr(module, method)))


def _autocast(forward: Callable[[th.Tensor], th.Tensor]) -> Callable[[th.Tensor], th.Tensor]:
    def run(features: th.Tensor) -> th.Tensor:
        with th.autocast(features.device.type, dtype=th.bfloat16):
            return forward(features).float()

    return run
