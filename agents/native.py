"""Networks of DQN and QR-DQN that are equivariant by construction, in place of those that SB3 builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from equirl._expanded import Orbit
from equirl.agents.extractors import SmallCNN, default_cnn
from equirl.agents.making import movable_shape
from equirl.errors import UserError, unknown
from equirl.groups import positive
from equirl.methods import NATIVE
from equirl.networks import (
    Collapse,
    Lift,
    LiftConv,
    NativeCNN,
    NativeMLP,
    Project,
    RegularConv,
    RegularLinear,
    regular,
)
from equirl.representations import Grid, PerKey, Representation, Trivial
from equirl.symmetrizers import Identity
from equirl.symmetry import Symmetry

LEAST_WIDTH, MOST_WIDTH = 0.25, 16
_FEATURES = {"small": 128, "nature": 512}  # those of `SmallCNN` and NatureCNN
_FEATURES_IN_DICT = 256  # of SB3's CombinedExtractor


class OrbitFeatures(nn.Module):
    """A vector as regular features, without weights: out[c, g] = (rep(g)^-1 x)_c, of shape (B, C * G)."""

    def __init__(self, rep: Representation) -> None:
        super().__init__()
        self.rep = rep
        self.register_buffer("inverses", torch.tensor(rep.group.inverses.tolist()), persistent=False)

    inverses: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return regular features of x, shape (B, ...)."""
        views: Tensor = self.rep.orbit(x)
        return views[self.inverses].flatten(2).permute(1, 2, 0).flatten(1)


class NativeExtractor(BaseFeaturesExtractor):
    """Regular features of pictures and of dictionaries, by layers that are equivariant by construction.

    A picture passes a `NativeCNN`, of NatureCNN's form from 36 pixels a side and of `SmallCNN`'s below. Other entries
    of a dictionary become regular features as they are; all are concatenated.

    Args:
        observation_space: a Box of shape (C, H, W), or a Dict.
        symmetry: how the group moves observations; policies fill it in.
        features_dim: of a picture, rounded to a multiple of the group's order; by default those of the plain networks,
            512 or 128, and 256 in a dictionary.
        width: a factor for the channels of all layers; policies fill it in.
        normalized_image: take pictures that are not uint8 in 0..255, as SB3 does where ``normalize_images=False``.

    Raises:
        UserError: no pictures, pictures that move by no `Grid` or whose sides the strides leave over, or a keyword
            beside these.

    >>> import numpy as np
    >>> from equirl import resolve_symmetry
    >>> space = spaces.Box(0, 255, (3, 9, 9), np.uint8)
    >>> NativeExtractor(space, resolve_symmetry("equirl/GridWorld-v0:C4"), features_dim=64).rep
    Permutation(C4, size=64)
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        symmetry: Symmetry,
        features_dim: int | None = None,
        width: float = 1.0,
        normalized_image: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(observation_space, 1)
        for name in others:
            raise unknown("keyword of NativeExtractor", name, ["features_dim"])
        if features_dim is not None:
            positive("features_dim", features_dim)
        self.several = isinstance(observation_space, spaces.Dict)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self.extractors = nn.ModuleDict()
        channels = 0
        for key, space in parts.items():
            rep = _part(symmetry.observation, key)
            if self.several and not is_image_space(space, normalized_image=normalized_image):
                self.extractors[key] = OrbitFeatures(rep)
                channels += get_flattened_obs_dim(space)
                continue
            kind = "small" if default_cnn(space, normalized_image) is SmallCNN else "nature"
            count = features_dim or (_FEATURES_IN_DICT if self.several else _FEATURES[kind])
            cnn = NativeCNN(_grid(rep), space.shape or (), max(1, round(width * count)), kind, width)
            self.extractors[key or "picture"] = cnn
            channels += cnn.features_dim // len(symmetry.group)
        self.rep = regular(symmetry.group, channels)
        self._features_dim = self.rep.size

    def forward(self, observations: PyTorchObs) -> Tensor:
        """Return regular features of shape (B, features_dim)."""
        if not isinstance(observations, dict):
            return cast("Tensor", self.extractors["picture"](observations))
        return torch.cat([part(observations[key]) for key, part in self.extractors.items()], 1)


def width_in(options: Mapping[str, Any]) -> float:
    """Return the factor for the widths of all layers, 1 where `symmetrizer_kwargs` does not name it.

    At 1 they are those of a plain network, with about 1/G of its weights.

    Raises:
        UserError: a factor below 1/4 or above 16, or another option.
    """
    for option in options:
        if option != "width":
            raise unknown("option of native", option, ["width"])
    width = options.get("width", 1.0)
    if type(width) not in (int, float) or not LEAST_WIDTH <= width <= MOST_WIDTH:
        raise UserError(f"width {width!r}: expected a number from {LEAST_WIDTH} to {MOST_WIDTH}")
    return float(width)


class Native(Identity):
    """Leaves f as it is, a network that is equivariant by construction: f_G(x) = f(x), at one forward.

    Args:
        options: those of that network, as `width_in` reads them.
    """

    method = NATIVE

    def __init__(self, input: Representation, output: Representation, **options: Any) -> None:
        super().__init__(input, output)
        self.width = width_in(options)


PARTS: tuple[type[nn.Module], ...] = (
    *(NativeExtractor, OrbitFeatures, NativeCNN, NativeMLP, Orbit),
    *(Lift, LiftConv, RegularConv, Collapse, RegularLinear, Project),
)
"""What native networks are made of, beside torch's own modules."""


def native_head(
    extractor: nn.Module,
    space: spaces.Space[object],
    symmetry: Symmetry,
    net_arch: Sequence[int],
    activation_fn: type[nn.Module],
    size: int,
    copies: int,
    width: float,
) -> NativeMLP:
    """Return the layers behind a features extractor, all of them equivariant, ending in a `Project`.

    Args:
        extractor: a `NativeExtractor`, or one that flattens.
        space: of observations.
        symmetry: how the group moves observations and actions.
        net_arch: widths of the hidden layers.
        activation_fn: the nonlinearity behind each of them.
        size: the number of actions.
        copies: how many numbers there are of each action, actions along the last axis.
        width: a factor for `net_arch`.

    Raises:
        UserError: observations or actions that no equivariant layer reads or writes.
    """
    moves, found = symmetry.observation, movable_shape(space)
    shape = (get_flattened_obs_dim(space),) if isinstance(found, Mapping) else found
    if isinstance(extractor, NativeExtractor):
        moves, shape = extractor.rep, (extractor.features_dim,)
    action = symmetry.action.stacked(copies) if copies > 1 else symmetry.action
    return NativeMLP(moves, shape, net_arch, activation_fn, output=action, size=size * copies, width=width)


def _part(rep: Representation, key: str) -> Representation:
    return rep.keys[key] if isinstance(rep, PerKey) else rep


def _grid(rep: Representation) -> Grid:
    if isinstance(rep, Trivial):
        return Grid(rep.group, ["identity"] * len(rep.group))
    if not isinstance(rep, Grid):
        raise UserError(f"pictures that move by {rep!r} under method 'native': expected a Grid")
    return rep
