"""Convolutions that commute with turns and mirrors of pictures: kernels that are images of one another.

Group convolutions (Cohen and Welling 2016, arXiv 1602.07576) on regular pictures, stored as (B, C * G, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from equirl._expanded import Expanded, Orbit
from equirl.errors import UserError
from equirl.groups import Group, positive
from equirl.layers import Lift, ToRegular, regular, shape_of
from equirl.representations import Grid

_KEEP_ROWS = ("identity", "transpose", "flip_x")
_KEEP_COLUMNS = ("identity", "transpose", "flip_y")


def regular_grid(rep: Grid, channels: int) -> Grid:
    """Return how the group moves regular pictures (B, C * G, H, W): (h f)[c, g, x] = f[c, h^-1 g, h^-1 x]."""
    return Grid(rep.group, rep.maps, regular(rep.group, channels).indices)


class _Conv(Expanded):
    """Convolutions to regular pictures, whose kernels are turned and mirrored images of one another."""

    each: Tensor

    def __init__(
        self, rep: Grid, shape: tuple[int, ...], channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        rep.check_shape(shape)
        if len(shape) != 3:
            raise UserError(f"pictures of shape {shape}: expected (channels, rows, columns)")
        sides = [
            _strided(name, side, kernel, stride, padding, not set(rep.maps) <= set(keep))
            for name, side, keep in zip(("rows", "columns"), shape[1:], (_KEEP_ROWS, _KEEP_COLUMNS), strict=True)
        ]
        self_shape = (shape[0], kernel, kernel)
        orbit = Orbit(rep, self_shape, dual=True)
        super().__init__((positive("channels", channels), *self_shape), channels, math.prod(self_shape))
        self.rep, self.channels, self.stride, self.padding, self.orbit = rep, channels, stride, padding, orbit
        self.tabulate("each", np.repeat(np.arange(channels), len(rep.group)))
        self.out_shape = (channels * len(rep.group), *sides)

    def expand(self) -> tuple[Tensor, ...]:
        kernels = self.orbit(self.weight.flatten(1)).view(-1, *self.weight.shape[1:])
        return kernels, self.bias.index_select(0, self.each)

    def forward(self, x: Tensor) -> Tensor:
        """Return regular pictures of shape (B, C * G, H', W')."""
        kernels, bias = self.expanded()
        return functional.conv2d(x, kernels, bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        strides = f"stride={self.stride}, padding={self.padding}"
        return f"{self.rep!r}, {self.channels} x {len(self.rep.group)}, kernel={self.weight.shape[-1]}, {strides}"


class LiftConv(_Conv):
    """The first convolution, from pictures to regular ones: out[c, g] = (g K_c) * x + b_c.

    Channels that the maps leave alone (`Grid.fixed`) do not fit a convolution: they pass a `Lift` of their own, which
    adds a number to each whole channel.

    Args:
        rep: how the group moves pictures, without a `shift`, channels first.
        shape: (channels, H, W), of pictures.
        channels: C.
        kernel: side of the kernels.
        stride: step between the places of a kernel.
        padding: rows and columns of zeros on each side.

    Raises:
        UserError: strides that leave rows or columns over, which a mirrored picture loses on the other side.

    >>> import torch
    >>> from equirl import cyclic
    >>> turn = Grid(cyclic(4))
    >>> layer, x = LiftConv(turn, (3, 9, 9), channels=2, kernel=3, padding=1), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(turn(1, x)), regular_grid(turn, 2)(1, layer(x)), atol=1e-6)
    True
    """

    moving: Tensor
    still: Tensor

    def __init__(
        self, rep: Grid, shape: Sequence[int], channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        shape = shape_of(shape)
        _check_grid(rep)
        rep.check_shape(shape)
        moving, still = [c for c in range(shape[0]) if c not in rep.fixed], list(rep.fixed)
        if not moving:
            raise UserError(f"all channels of {rep!r} are fixed: expected one at least that moves; use Lift")
        first = Grid(rep.group, rep.maps, _restricted(rep, moving))
        super().__init__(first, (len(moving), *shape[1:]), channels, kernel, stride, padding)
        self.beside: Lift | None = None
        if still:
            unmoved = Grid(rep.group, ["identity"] * len(rep.group), _restricted(rep, still))
            self.beside = Lift(unmoved, (len(still), *shape[1:]), channels)
            self.tabulate("moving", np.array(moving))
            self.tabulate("still", np.array(still))

    def forward(self, x: Tensor) -> Tensor:
        """Return regular pictures of shape (B, C * G, H', W')."""
        if self.beside is None:
            return super().forward(x)
        beside: Tensor = self.beside(x[:, self.still])
        return super().forward(x[:, self.moving]) + beside[..., None, None]


class RegularConv(_Conv):
    """A convolution between regular pictures: out[c, g] = sum_{c', h} (g K[c, c', g^-1 h]) * f[c', h] + b_c.

    Every equivariant convolution with kernels of this size is one of these.

    Args:
        rep: how the group moves pictures.
        shape: (C' * G, H, W), as the layer before has it in `out_shape`.
        channels: C.
        kernel: side of the kernels.
        stride: step between the places of a kernel.
        padding: rows and columns of zeros on each side.

    Raises:
        UserError: strides that leave rows or columns over, which a mirrored picture loses on the other side.

    >>> from equirl import cyclic
    >>> RegularConv(Grid(cyclic(4)), (8, 9, 9), channels=3, kernel=3, padding=1).out_shape
    (12, 9, 9)
    """

    def __init__(
        self, rep: Grid, shape: Sequence[int], channels: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        shape = shape_of(shape)
        _check_grid(rep)
        super().__init__(regular_grid(rep, _channels_of(rep.group, shape[0])), shape, channels, kernel, stride, padding)


class Collapse(ToRegular):
    """The layer behind convolutions: out[c, g] = sum_{c', h, x} W[c, c', g^-1 h, g^-1 x] f[c', h, x] + b_c.

    Every affine equivariant map from regular pictures to regular features is one of these.

    Args:
        rep: how the group moves pictures.
        shape: (C' * G, H, W), of regular pictures.
        channels: C.

    >>> import torch
    >>> from equirl import cyclic
    >>> Collapse(Grid(cyclic(4)), (8, 3, 3), channels=2)(torch.zeros(1, 8, 3, 3)).shape
    torch.Size([1, 8])
    """

    def __init__(self, rep: Grid, shape: Sequence[int], channels: int) -> None:
        _check_grid(rep)
        shape = shape_of(shape)
        super().__init__(regular_grid(rep, _channels_of(rep.group, shape[0])), shape, channels)


def _channels_of(group: Group, features: int) -> int:
    if features % len(group):
        raise UserError(f"{features} channels of regular pictures: expected a multiple of {len(group)}, one an element")
    return features // len(group)


def _check_grid(rep: Grid) -> None:
    if not isinstance(rep, Grid) or rep.layout != "CHW" or any(rep.shift):
        raise UserError(f"{rep!r} under convolutions: expected a Grid of layout 'CHW' without a shift")


def _restricted(rep: Grid, chosen: list[int]) -> NDArray[np.int64] | None:
    """Return how the group permutes some of the channels among themselves."""
    if rep.channels is None:
        return None
    if not np.isin(rep.channels[:, chosen], chosen).all():
        raise UserError(
            f"channels {rep.fixed} stay fixed and change places with moving ones: expected one or the other"
        )
    return np.searchsorted(chosen, rep.channels[:, chosen])


def _strided(name: str, side: int, kernel: int, stride: int, padding: int, mirrored: bool) -> int:
    """Return at how many places a kernel stands, the same ones when the side is mirrored."""
    positive("kernel", kernel)
    positive("stride", stride)
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise UserError(f"padding {padding!r}: expected a whole number of at least 0")
    rest = side + 2 * padding - kernel
    if rest < 0:
        raise UserError(
            f"kernel {kernel} on {side} {name} with padding {padding}: expected at most {side + 2 * padding}"
        )
    over = rest % stride
    if over and mirrored:
        fitting = f"{side - over} or {side - over + stride}" if rest >= stride else f"{side - over + stride}"
        raise UserError(
            f"kernel {kernel}, stride {stride}, padding {padding} on {side} {name} leave {over} over, on the other "
            f"side of a mirrored picture: expected {fitting} {name}"
        )
    return rest // stride + 1
