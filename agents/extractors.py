"""Features extractors beside SB3's own: a small CNN for small grids, and any torch module that is handed in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn

from equirl.errors import UserError

NATURE_CNN_SIDE = 36
"""The smallest picture, in pixels a side, that the strides of NatureCNN leave anything of."""


class SmallCNN(BaseFeaturesExtractor):
    """Three 3x3 convolutions and a linear layer, for pictures too small for NatureCNN's strides.

    Args:
        observation_space: a Box of shape (C, H, W).
        features_dim: number of features.
        width: channels of each convolution.
        normalized_image: accepted as SB3 passes it; nothing depends on it.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        features_dim: int = 128,
        width: int = 32,
        normalized_image: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim)
        channels, height, side = _picture(observation_space)
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * height * side, features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Return features of shape (B, features_dim) from pictures of shape (B, C, H, W)."""
        return self.cnn(observations)  # type: ignore[no-any-return]


class PretrainedExtractor(BaseFeaturesExtractor):
    """A copy of any torch module as features extractor, frozen or not.

    Args:
        observation_space: what the module reads, after SB3's preprocessing (pictures scaled to [0, 1]).
        module: maps (B, ...) to (B, ...); its outputs are flattened.
        frozen: keep its weights, and its batch statistics and dropout in evaluation mode, while the rest learns.

    >>> from equirl.agents.dqn import CnnPolicy
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    >>> kwargs = dict(features_extractor_class=PretrainedExtractor, features_extractor_kwargs=dict(module=net))
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        module: nn.Module,
        frozen: bool = True,
        normalized_image: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"module is a {type(module).__name__}: expected a torch module as features extractor")
        copied = deepcopy(module).eval()  # online and target network never share one
        with torch.no_grad():
            sample = torch.as_tensor(observation_space.sample()[None]).float()
            features_dim = copied(sample).flatten(1).shape[1]
        super().__init__(observation_space, features_dim)
        self.module, self.frozen = copied.requires_grad_(not frozen), frozen

    def forward(self, observations: Tensor) -> Tensor:
        """Return the module's outputs, flattened to (B, features_dim)."""
        return self.module(observations).flatten(1)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> PretrainedExtractor:
        """Set training mode, which a frozen module never enters."""
        super().train(mode)
        if self.frozen:
            self.module.eval()
        return self


class SizedCombinedExtractor(CombinedExtractor):
    """SB3's extractor of dictionaries, with `SmallCNN` for pictures that are too small for NatureCNN."""

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        small = {
            key: space
            for key, space in observation_space.spaces.items()
            if is_image_space(space, normalized_image=normalized_image) and default_cnn(space) is SmallCNN
        }
        rest = {key: space for key, space in observation_space.spaces.items() if key not in small}
        super().__init__(spaces.Dict(rest), cnn_output_dim, normalized_image)
        for key, space in small.items():
            self.extractors[key] = SmallCNN(space, cnn_output_dim)
        self._observation_space = observation_space
        self._features_dim += cnn_output_dim * len(small)


def default_cnn(observation_space: gym.Space[Any]) -> type[BaseFeaturesExtractor]:
    """Return NatureCNN where its strides fit the picture, else `SmallCNN`.

    >>> import numpy as np
    >>> default_cnn(spaces.Box(0, 255, (3, 9, 9), np.uint8)).__name__
    'SmallCNN'
    """
    _, height, width = _picture(observation_space)
    return NatureCNN if min(height, width) >= NATURE_CNN_SIDE else SmallCNN


def _picture(space: gym.Space[Any]) -> tuple[int, int, int]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise UserError(
            f"observation space {space}: expected pictures, a Box of shape (C, H, W); use MlpPolicy otherwise"
        )
    return space.shape
