"""Layers that are equivariant by construction: group convolutions (Cohen and Welling 2016, arXiv 1602.07576).

Between its ends a network of these computes regular features: C channels of one number for each element, which the
group moves by its regular representation, (h f)[c, g] = f[c, h^-1 g]. They are stored flat, as (B, C * G), or as
pictures (B, C * G, H, W); any pointwise nonlinearity acts on them as they are. A layer learns one row for each channel
and expands it to G rows that are images of one another: at a plain layer's width it has 1/G of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from equirl._expanded import Expanded, Orbit, centre_of_samples, real_characters
from equirl.groups import Group, positive
from equirl.representations import Permutation, Representation

FOURIER_WIDTH = 1024
"""The width, C * G on both sides, from which `RegularLinear` is faster in the basis of characters, as measured."""


def regular(group: Group, channels: int) -> Permutation:
    """Return how the group moves regular features (B, C * G): (h f)[c, g] = f[c, h^-1 g].

    >>> from equirl import cyclic
    >>> regular(cyclic(2), 2)(1, torch.tensor([[1, 2, 3, 4]]))
    tensor([[2, 1, 4, 3]])
    """
    return Permutation.regular(group).stacked(channels)


def channels_for(width: int, group: Group) -> int:
    """Return how many channels make about `width` regular features: C with C * G nearest to it, at least 1.

    >>> from equirl import cyclic
    >>> channels_for(64, cyclic(4)), channels_for(64, cyclic(3))
    (16, 21)
    """
    return max(1, round(positive("width", width) / len(group)))


class ToRegular(Expanded):
    """The base of all linear maps from samples to regular features: out[c, g] = w_c . rep(g)^-1 x + b_c."""

    centre: Tensor
    each: Tensor

    def __init__(self, rep: Representation, shape: int | Sequence[int], channels: int) -> None:
        shape = shape_of(shape)
        orbit, size = Orbit(rep, shape, dual=True), math.prod(shape)
        super().__init__((positive("channels", channels), size), channels, size)
        self.rep, self.shape, self.channels, self.orbit = rep, shape, channels, orbit
        self.tabulate("each", np.repeat(np.arange(channels), len(rep.group)))
        centre = centre_of_samples(rep, size)
        self.centred = centre is not None
        if centre is not None:
            self.tabulate("centre", centre)

    def expand(self) -> tuple[Tensor, ...]:
        return self.orbit(self.weight), self.bias.index_select(0, self.each)

    def forward(self, x: Tensor) -> Tensor:
        """Return regular features of shape (B, C * G)."""
        weight, bias = self.expanded()
        x = x.flatten(1)
        return functional.linear(x - self.centre if self.centred else x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.rep!r} {self.shape} -> {self.channels} x {len(self.rep.group)}"


class Lift(ToRegular):
    """The first layer: out[c, g] = w_c . rep(g)^-1 x + b_c (lifting; Cohen and Welling 2016, arXiv 1602.07576).

    Every affine equivariant map to regular features is one of these. A representation about a centre moves x - centre.

    Args:
        rep: how the group moves a sample: (signed) permutations, matrices, pictures or `Trivial`.
        shape: of a sample, or its number of entries; it is flattened.
        channels: C.

    Raises:
        UserError: a representation of dictionaries or tokens, one that does not act on the shape, or no channels.

    >>> from equirl import cyclic
    >>> mirror = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> layer, x = Lift(mirror, 2, channels=3), torch.tensor([[1.0, 5.0]])
    >>> torch.allclose(layer(mirror(1, x)), regular(cyclic(2), 3)(1, layer(x)), atol=1e-6)
    True
    """


class RegularLinear(ToRegular):
    """A layer between regular features: out[c, g] = sum_{c', h} W[c, c', g^-1 h] f[c', h] + b_c.

    Every affine equivariant map is one of these. For an abelian group it is the product of the characters' coefficients
    (its isotypic basis), which needs fewer multiplications: 1/G of them where all characters are real.

    Args:
        group: the group.
        c_in: channels of the features.
        c_out: channels of the result.
        fourier: compute in the basis of characters; by default from `FOURIER_WIDTH` on, where the group is abelian.

    Raises:
        UserError: no channels, or ``fourier=True`` for a group that is not abelian.

    >>> from equirl import cyclic
    >>> layer, f = RegularLinear(cyclic(4), 2, 3), torch.randn(5, 8)
    >>> torch.allclose(layer(regular(cyclic(4), 2)(1, f)), regular(cyclic(4), 3)(1, layer(f)), atol=1e-6)
    True
    """

    basis: Tensor
    characters: Tensor

    def __init__(self, group: Group, c_in: int, c_out: int, fourier: bool | None = None) -> None:
        super().__init__(regular(group, positive("c_in", c_in)), c_in * len(group), positive("c_out", c_out))
        wide = len(group) > 1 and min(c_in, c_out) * len(group) >= FOURIER_WIDTH
        self.fourier = group.is_abelian and wide if fourier is None else fourier
        if self.fourier:
            basis, self.real = real_characters(group)
            self.pairs = (len(group) - self.real) // 2
            self.tabulate("basis", basis.T)
            lengths = np.where(np.arange(len(group)) < self.real, len(group), len(group) / 2) ** 0.5
            self.tabulate("characters", basis.T * lengths)

    def expand(self) -> tuple[Tensor, ...]:
        if not self.fourier:
            return super().expand()
        coefficients = (self.weight.view(self.channels, -1, len(self.basis)) @ self.characters).permute(2, 1, 0)
        real = coefficients[: self.real]
        a, b = coefficients[self.real :].view(self.pairs, 2, *coefficients.shape[1:]).unbind(1)
        pairs = torch.cat([torch.cat([a, -b], 2), torch.cat([b, a], 2)], 1)
        return real.contiguous(), pairs, self.bias.index_select(0, self.each)

    def forward(self, x: Tensor) -> Tensor:
        """Return regular features of shape (B, C * G)."""
        if not self.fourier:
            return super().forward(x)
        real, pairs, bias = self.expanded()
        n, order = x.shape[0], len(self.basis)
        waves = (x.view(n, x.shape[1] // order, order) @ self.basis).permute(2, 0, 1)
        done = torch.bmm(waves[: self.real], real)
        if self.pairs:
            both = waves[self.real :].reshape(self.pairs, 2, n, x.shape[1] // order).transpose(1, 2).flatten(2)
            turned = torch.bmm(both, pairs).view(self.pairs, n, 2, self.channels).transpose(1, 2).flatten(0, 1)
            done = torch.cat([done, turned])
        return (done.permute(1, 2, 0) @ self.basis.T).flatten(1) + bias


class Project(Expanded):
    """The last layer, from regular features to outputs: y = sum_{c, g} rep(g) u_c f[c, g] + b, b invariant.

    Every affine equivariant map is one of these. The bias is the average over the group of the one that is learned; a
    representation about a centre adds that.

    Args:
        rep: how the group moves outputs: (signed) permutations, matrices or `Trivial`.
        size: the number of outputs.
        channels: of the regular features.

    Raises:
        UserError: a representation that does not act on vectors of this size, or no channels.

    >>> from equirl import cyclic
    >>> mirror = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> head, f = Project(mirror, 2, channels=3), torch.randn(1, 6)
    >>> torch.allclose(head(regular(cyclic(2), 3)(1, f)), mirror(1, head(f)))
    True
    """

    centre: Tensor

    def __init__(self, rep: Representation, size: int, channels: int) -> None:
        orbit = Orbit(rep, (positive("size", size),))
        super().__init__((size, positive("channels", channels)), size, channels * len(rep.group))
        self.rep, self.orbit = rep, orbit
        centre = centre_of_samples(rep, size)
        self.centred = centre is not None
        if centre is not None:
            self.tabulate("centre", centre)

    def expand(self) -> tuple[Tensor, ...]:
        weight = self.orbit(self.weight.T).T.contiguous()
        bias = self.orbit(self.bias[None]).mean(0)
        return weight, bias + self.centre if self.centred else bias

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of shape (B, size)."""
        weight, bias = self.expanded()
        return functional.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} x {len(self.rep.group)} -> {self.rep!r}"


def shape_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return a shape, of vectors where one number was given."""
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(map(int, shape))
