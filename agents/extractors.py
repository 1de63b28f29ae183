"""Features extractors beside SB3's own: a small CNN for small grids, and any torch module that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn

from equirl.errors import UserError, first_line

NATURE_CNN_SIDE = 36
"""The smallest picture, in pixels a side, that the strides of NatureCNN leave anything of."""


class SmallCNN(BaseFeaturesExtractor):
    """Three 3x3 convolutions and a linear layer, for pictures too small for NatureCNN's strides.

    Args:
        observation_space: a Box of shape (C, H, W).
        features_dim: number of features.
        width: channels of each convolution.
    """

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 128, width: int = 32) -> None:
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
        frozen: keep its weights, and its batch statistics and dropout in evaluation mode, while the rest learns;
            otherwise those of its parameters learn that require gradients.

    Raises:
        UserError: no module, or one that does not map such observations to features.

    >>> from equirl.agents.dqn import CnnPolicy
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    >>> kwargs = dict(features_extractor_class=PretrainedExtractor, features_extractor_kwargs=dict(module=net))
    """

    def __init__(self, observation_space: gym.Space[Any], module: nn.Module, frozen: bool = True) -> None:
        if not isinstance(module, nn.Module):
            raise UserError(f"module is a {type(module).__name__}: expected a torch module as features extractor")
        copied = deepcopy(module).cpu().eval()  # online and target network never share one
        super().__init__(observation_space, _features_dim(copied, observation_space))
        self.module, self.frozen = copied, frozen
        if frozen:
            copied.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the module's outputs, flattened to (B, features_dim)."""
        return self.module(observations).flatten(1)  # type: ignore[no-any-return]

    def apply(self, fn: Callable[[nn.Module], None]) -> PretrainedExtractor:
        """Apply a function to every module, but not that by which SB3's PPO and A2C start all layers afresh."""
        if getattr(fn, "func", fn) is not BasePolicy.init_weights:
            super().apply(fn)
        return self

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
            if is_image_space(space, normalized_image=normalized_image)
            and default_cnn(space, normalized_image) is SmallCNN
        }
        rest = {key: space for key, space in observation_space.spaces.items() if key not in small}
        super().__init__(spaces.Dict(rest), cnn_output_dim, normalized_image)
        for key, space in small.items():
            self.extractors[key] = SmallCNN(space, cnn_output_dim)
        self._observation_space = observation_space
        self._features_dim += cnn_output_dim * len(small)


def default_cnn(observation_space: gym.Space[Any], normalized_image: bool = False) -> type[BaseFeaturesExtractor]:
    """Return NatureCNN where its strides fit the picture, else `SmallCNN`.

    Args:
        observation_space: a Box of shape (C, H, W).
        normalized_image: take pictures that are not uint8 in 0..255, as SB3 does where ``normalize_images=False``.

    Raises:
        UserError: no pictures, or large ones that NatureCNN refuses.

    >>> import numpy as np
    >>> default_cnn(spaces.Box(0, 255, (3, 9, 9), np.uint8)).__name__
    'SmallCNN'
    """
    _, height, width = _picture(observation_space)
    if min(height, width) < NATURE_CNN_SIDE:
        return SmallCNN
    if not is_image_space(observation_space, normalized_image=normalized_image):
        raise UserError(
            f"pictures {observation_space.shape} of {observation_space.dtype}: expected uint8 in 0..255, or "
            "normalize_images=False in policy_kwargs for pictures that are scaled already"
        )
    return NatureCNN


def layers_of(extractor: nn.Module) -> list[nn.Module] | None:
    """Return the layers that an extractor is a chain of, None where it is something else.

    >>> import numpy as np
    >>> [type(layer).__name__ for layer in layers_of(FlattenExtractor(spaces.Box(0, 1, (3,))))]
    ['Flatten']
    """
    if type(extractor) is FlattenExtractor:
        return [extractor.flatten]
    if type(extractor) is SmallCNN:
        return [*extractor.cnn]
    if type(extractor) is NatureCNN:
        return [*extractor.cnn, *extractor.linear]
    return None


def _picture(space: gym.Space[Any]) -> tuple[int, int, int]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise UserError(
            f"{type(space).__name__} observations of shape {space.shape}: expected pictures, a Box of shape (C, H, W); "
            "use MlpPolicy, or MultiInputPolicy for a Dict"
        )
    return space.shape


def _features_dim(module: nn.Module, space: gym.Space[Any]) -> int:
    """Return how many features the module makes of one observation."""
    name = type(module).__name__
    if space.shape is None:
        raise UserError(f"module {name} on {type(space).__name__} observations: expected a space of arrays")
    sample = preprocess_obs(torch.zeros(1, *space.shape), space)
    try:
        with torch.no_grad():
            features = module(sample)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"module {name} does not fit observations of shape {space.shape}: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim < 2:
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise UserError(f"module {name} returns {got}: expected features of shape (B, ...)")
    return features.flatten(1).shape[1]
