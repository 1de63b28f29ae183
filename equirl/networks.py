"""Fresh networks that are equivariant by construction, assembled like the plain ones that SB3 builds.

They end in regular features, which any `Project` behind them turns into action values, actions or a value:

    cnn = NativeCNN(Grid(cyclic(4)), (3, 9, 9), features_dim=128)  # in place of the features extractor
    head = NativeMLP(cnn.rep, cnn.features_dim, [64], output=actions, size=4)  # in place of create_mlp

At the widths of a plain network they have about 1/G of its weights and cost about as much.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from equirl._expanded import acting
from equirl.convolutions import Collapse, LiftConv, RegularConv, regular_grid
from equirl.errors import UserError, unknown
from equirl.layers import Lift, Project, RegularLinear, channels_for, regular, shape_of
from equirl.representations import Grid, Permutation, Representation

__all__ = [
    "Collapse",
    "Lift",
    "LiftConv",
    "NativeCNN",
    "NativeMLP",
    "Project",
    "RegularConv",
    "RegularLinear",
    "acting",
    "channels_for",
    "regular",
    "regular_grid",
]

# (channels, kernel, stride, padding) of each convolution, at width 1
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "small": ((32, 3, 1, 1),) * 3,
    "nature": ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)),
}
"""The plain networks that `NativeCNN` follows: `SmallCNN` of equirl.agents, and NatureCNN (Mnih et al. 2015)."""


class NativeMLP(nn.Sequential):
    """Linear layers between nonlinearities, all equivariant; the counterpart of SB3's create_mlp.

    Args:
        input: how the group moves samples; `NativeCNN.rep` or `regular(...)` where they are regular features.
        shape: of a sample, or its number of entries.
        net_arch: widths of the hidden layers, C * G each.
        activation_fn: the nonlinearity behind each of them; it must act on each number by itself.
        output: how the same group moves the outputs; regular features, the last hidden layer, where left out.
        size: the number of outputs.
        width: a factor for all of `net_arch`.

    Raises:
        UserError: two groups, a representation that does not fit, or neither layers nor an output.

    >>> import torch
    >>> from equirl import Permutation, SignedPermutation, cyclic
    >>> state = SignedPermutation(cyclic(2), [[0, 1], [0, 1]], [[1, 1], [-1, -1]])
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> net, x = NativeMLP(state, 2, [64, 64], output=swap, size=2), torch.randn(5, 2)
    >>> torch.allclose(net(-x), net(x).flip(1), atol=1e-6), sum(p.numel() for p in net.parameters())
    (True, 2242)
    """

    def __init__(
        self,
        input: Representation,
        shape: int | Sequence[int],
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        output: Representation | None = None,
        size: int | None = None,
        width: float = 1.0,
    ) -> None:
        group = input.group
        if (output is None) != (size is None):
            raise UserError(f"output {output!r} and size {size!r}: expected both or neither")
        if output is not None and output.group != group:
            raise UserError(f"inputs move by {group} and outputs by {output.group}: expected one group")
        channels = _regular_channels(input, shape)
        layers: list[nn.Module] = []
        for features in net_arch:
            wide = channels_for(round(width * features), group)
            linear = Lift(input, shape, wide) if channels is None else RegularLinear(group, channels, wide)
            layers += [linear, activation_fn()]
            channels, input = wide, regular(group, wide)
        if output is not None and size is not None:
            if channels is None:  # a linear map: through as many channels as outputs, all of them pass
                layers.append(Lift(input, shape, size))
                channels = size
            layers.append(Project(output, size, channels))
        if channels is None:
            raise UserError("net_arch [] without an output: expected layers")
        super().__init__(*layers)
        self.rep = regular(group, channels) if output is None else output
        self.features_dim = channels * len(group) if size is None else size


class NativeCNN(nn.Sequential):
    """Convolutions and a linear layer from pictures to regular features, all equivariant, with ReLU behind each.

    Args:
        rep: how the group moves pictures.
        shape: (channels, H, W), of pictures, as floating-point numbers.
        features_dim: number of features, C * G; rounded to a multiple of G.
        kind: "small", three 3x3 convolutions, or "nature", NatureCNN's.
        width: a factor for the channels of the convolutions.

    Raises:
        UserError: an unknown kind, or pictures on which its strides do not commute with the group.

    >>> import torch
    >>> from equirl import cyclic
    >>> turn = Grid(cyclic(4))
    >>> net, x = NativeCNN(turn, (3, 9, 9), features_dim=32), torch.rand(2, 3, 9, 9)
    >>> torch.allclose(net(turn(1, x)), net.rep(1, net(x)), atol=1e-6), net.features_dim
    (True, 32)
    """

    def __init__(
        self, rep: Grid, shape: Sequence[int], features_dim: int, kind: str = "small", width: float = 1.0
    ) -> None:
        if kind not in CONVOLUTIONS:
            raise unknown("kind of network", kind, CONVOLUTIONS)
        channels = channels_for(features_dim, rep.group)
        layers: list[nn.Module] = []
        shapes = [tuple(shape)]
        for planes, *places in CONVOLUTIONS[kind]:
            layer = RegularConv if layers else LiftConv
            try:
                convolution = layer(rep, shapes[-1], channels_for(round(width * planes), rep.group), *places)
            except UserError as error:
                raise UserError(f"{error}{_fitting(kind, shapes[0])}") from None
            layers += [convolution, nn.ReLU()]
            shapes.append(convolution.out_shape)
        super().__init__(*layers, Collapse(rep, shapes[-1], channels), nn.ReLU())
        self.rep: Permutation = regular(rep.group, channels)
        self.features_dim = channels * len(rep.group)


def _regular_channels(rep: Representation, shape: int | Sequence[int]) -> int | None:
    """Return C where samples are regular features (C * G), else None."""
    size, *more = shape_of(shape)
    channels, rest = divmod(0 if more else size, len(rep.group))
    return channels if channels and not rest and rep == regular(rep.group, channels) else None


def _fitting(kind: str, shape: tuple[int, ...]) -> str:
    """Return which sides near those of a picture all strides of a network divide, where its own are not among them."""
    sides = [side for side in range(1, 2 * max(shape[1:], default=0) + 64) if _divides(kind, side)]
    if set(shape[1:]) <= set(sides):
        return ""
    near = sorted(sides, key=lambda side: abs(side - shape[1]))[:3]
    return f"; all layers of {kind!r} fit {', '.join(map(str, sorted(near)))} rows and columns"


def _divides(kind: str, side: int) -> bool:
    for _, kernel, stride, padding in CONVOLUTIONS[kind]:
        rest = side + 2 * padding - kernel
        if rest < 0 or rest % stride:
            return False
        side = rest // stride + 1
    return True
