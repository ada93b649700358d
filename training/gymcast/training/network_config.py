"""Settings of the networks, and of the normalisation of what they see."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gymcast.training.config_model import ConfigModel

Activation = Literal["tanh", "relu", "elu"]


class NetworkConfig(ConfigModel):
    """Actor and critic as multi-layer perceptrons."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] = Field(
        default=(64, 64), description="units of each hidden layer of the actor, 1..8192, up to 16 layers"
    )
    value_hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(max_length=16)] | None = Field(
        default=None, description="units of each hidden layer of the critic; null: as the actor"
    )
    shared: bool = Field(
        default=False, description="actor and critic share the hidden layers: half the work (flat observations)"
    )
    activation: Activation = Field(default="tanh", description="activation between layers")
    ortho_init: bool = Field(default=True, description="orthogonal initial weights (on-policy algorithms)")
    lstm_hidden: Annotated[int, Field(ge=1, le=8192)] = Field(
        default=64,
        description="units of the LSTM before the hidden layers, one each for actor and critic (recurrent algorithms)",
    )
    log_std_init: Annotated[float, Field(ge=-20, le=2, allow_inf_nan=False)] | None = Field(
        default=None,
        description="logarithm of the spread that continuous actions begin with; null: 0, of sac with use_sde -3",
    )
    quantiles: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=50,
        description="quantiles of each action's return that the network estimates (qrdqn); the paper has 200",
    )

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that are not as they are by default."""
        plain = NetworkConfig()
        return {name: value for name, value in self if value != getattr(plain, name)}


class NormalizeConfig(ConfigModel):
    """Running normalisation of what the learner sees: Stable-Baselines3's ``VecNormalize``."""

    observations: bool = Field(default=True, description="shift and scale observations to mean 0 and variance 1")
    rewards: bool = Field(default=True, description="scale rewards by the deviation of the discounted return")
    clip_observations: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=10.0, description="largest size of a normalised observation"
    )
    clip_rewards: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=10.0, description="largest size of a normalised reward"
    )
