"""Networks for images, also those too small for Stable-Baselines3's, alone or among the parts of a ``Dict``."""

from __future__ import annotations

from typing import Any, Final

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    is_image_space,
    is_image_space_channels_first,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn

SMALLEST_FOR_NATURE_CNN: Final = 36
"""Pixels: layers of 8 x 8 (stride 4), 4 x 4 (stride 2) and 3 x 3 leave nothing of a smaller image."""
_FEATURES: Final = {True: 128, False: 512}


class SmallCNN(BaseFeaturesExtractor):
    """Three layers of 3 x 3 with padding, for images uint8 (C, H, W) of any size from one pixel on.

    They have 32, 64 and 64 channels; the last two halve the image. ``features_dim`` units follow.
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128, normalized_image: bool = False) -> None:
        super().__init__(observation_space, features_dim)
        channels = observation_space.shape[0]
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=1, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with th.no_grad():
            flat = self.cnn(th.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(flat, features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features (N, features_dim) of images (N, C, H, W), float32 0..1."""
        features: th.Tensor = self.linear(self.cnn(observations))
        return features


class PartsExtractor(BaseFeaturesExtractor):
    """Features of a ``Dict``: images through a network that fits their size, everything else flattened."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, features_dim=1)
        self.parts = nn.ModuleDict()
        total = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space):
                assert isinstance(space, spaces.Box), "images are boxes"
                network = cnn_for(space)
                self.parts[key] = network(space, _FEATURES[network is SmallCNN] // 2)
                total += _FEATURES[network is SmallCNN] // 2
            else:
                self.parts[key] = nn.Flatten()
                total += get_flattened_obs_dim(space)
        self._features_dim = total

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """Features (N, features_dim) of the parts of observations."""
        return th.cat([network(observations[key]) for key, network in self.parts.items()], dim=1)


def cnn_for(space: spaces.Box) -> type[BaseFeaturesExtractor]:
    """The network for images (C, H, W) of a space."""
    return SmallCNN if min(space.shape[1:]) < SMALLEST_FOR_NATURE_CNN else NatureCNN


def image_kwargs(space: spaces.Space[Any]) -> dict[str, Any]:
    """``policy_kwargs`` for observations with images of which Stable-Baselines3's own network cannot be had."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    images = {key: part for key, part in parts.items() if isinstance(part, spaces.Box) and is_image_space(part)}
    if not any(cnn_for(_channels_first(part)) is SmallCNN for part in images.values()):
        return {}
    if isinstance(space, spaces.Dict):
        return {"features_extractor_class": PartsExtractor}
    return {"features_extractor_class": SmallCNN, "features_extractor_kwargs": {"features_dim": _FEATURES[True]}}


def _channels_first(space: spaces.Box) -> spaces.Box:
    """As Stable-Baselines3 turns it around for its networks."""
    if is_image_space_channels_first(space):
        return space
    turned = VecTransposeImage.transpose_space(space)
    assert isinstance(turned, spaces.Box), "a box stays a box"
    return turned
