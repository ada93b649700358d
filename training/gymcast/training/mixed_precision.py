"""Networks whose layers compute in bfloat16 while weights, distributions and losses stay float32.

bfloat16 has the range of float32: no gradient has to be scaled, as float16 needs it, and the optimizer is unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import get_device

from gymcast.training.config import ConfigError, TrainingConfig

if TYPE_CHECKING:
    _Base = ActorCriticPolicy
else:
    _Base = object

ALGORITHMS: Final = ("ppo", "maskable_ppo", "a2c")


class BFloat16Layers(_Base):
    """Mixed into an actor-critic policy: everything before the distribution runs under ``torch.autocast``."""

    def _autocast(self, enabled: bool = True) -> th.autocast:
        return th.autocast(self.device.type, dtype=th.bfloat16, enabled=enabled)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions, values and log probabilities; values and log probabilities float32."""
        with self._autocast():
            actions, values, log_prob = super().forward(*args, **kwargs)
        return actions, values.float(), log_prob.float()

    def evaluate_actions(self, *args: Any, **kwargs: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log probabilities and entropy, float32."""
        with self._autocast():
            values, log_prob, entropy = super().evaluate_actions(*args, **kwargs)
        return values.float(), log_prob.float(), None if entropy is None else entropy.float()

    def predict_values(self, *args: Any, **kwargs: Any) -> th.Tensor:
        """Values, float32."""
        with self._autocast():
            return super().predict_values(*args, **kwargs).float()

    def get_distribution(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution over actions, its parameters float32."""
        with self._autocast():
            return super().get_distribution(*args, **kwargs)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        # Rounded logits would make the ratio of probabilities noise; the last layer is a small part of the work.
        with self._autocast(enabled=False):
            return super()._get_action_dist_from_latent(latent_pi.float())


def in_bfloat16(policy: type[Any], config: TrainingConfig) -> type[Any]:
    """``policy`` with its layers in bfloat16.

    Raises :class:`~gymcast.training.config.ConfigError` where algorithm or device do not have it.
    """
    device = get_device(config.device)
    problem = ""
    if config.algorithm not in ALGORITHMS:
        problem = f"{config.algorithm} does not have it; {', '.join(ALGORITHMS)} do"
    elif device.type not in ("cpu", "cuda"):
        problem = f"device {device} does not have it; cpu and cuda do"
    elif device.type == "cuda" and not th.cuda.is_bf16_supported():
        problem = f"{th.cuda.get_device_name(device)} cannot compute in bfloat16"
    if problem:
        raise ConfigError("invalid TrainingConfig", [("mixed_precision", f"got true, but {problem}; set it to false")])
    return type(f"BFloat16{policy.__name__}", (BFloat16Layers, policy), {})
