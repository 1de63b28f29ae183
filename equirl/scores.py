"""Scores of poses, c_g(x) with c_{h g}(h x) = c_g(x): what learned canonicalization chooses a pose by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from equirl._representation import eager
from equirl.errors import UserError, unknown
from equirl.groups import positive
from equirl.networks import NativeCNN
from equirl.representations import Grid, PerKey, Representation

Shape = Sequence[int] | Mapping[str, Sequence[int]]
"""Of one input, or of each entry of a dictionary."""


class Scores(nn.Module, ABC):
    """Scores of poses, c_g(x) of shape (G, B) with c_{h g}(h x) = c_g(x).

    Args:
        rep: how the group moves x.
    """

    def __init__(self, rep: Representation) -> None:
        super().__init__()
        self.rep = rep

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the scores."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, x: Any) -> Tensor:
        """Return c_g(x), shape (G, B)."""

    def loss(self, x: Any) -> Tensor | None:
        """Return a loss of these scores' own, where they have one."""
        return None

    def _poses(self, x: Tensor) -> Tensor:
        """Return g^-1 x of all g, stacked as (G * B, ...), as `_scaled` says."""
        return self._scaled(self.rep.orbit(x)[self.rep.inverses(x.device)].flatten(0, 1))

    def _scaled(self, x: Tensor) -> Tensor:
        """Return inputs in the data type of the scores' weights, bytes as numbers from 0 to 1."""
        y = x.to(self.dtype)
        return y if x.dtype != torch.uint8 else y / 255


class RegularScores(Scores):
    """Scores by a network that is equivariant itself, one number an element (arXiv 2310.01647).

    Args:
        rep: how the group moves inputs.
        net: from (B, ...) to (B, G), column h g at h x being column g at x: a `NativeCNN` or `NativeMLP` with G
            features behind it, or one of another library.
        shape: of one input, on which the network is tried.

    Raises:
        UserError: a network whose output is not one number an element, or does not move so.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> RegularScores(swap, nn.Identity(), (2,))(torch.tensor([[3.0, 5.0]])).T
    tensor([[3., 5.]])
    """

    def __init__(self, rep: Representation, net: nn.Module, shape: Sequence[int]) -> None:
        super().__init__(rep)
        self.net = net
        mode, n = net.training, len(rep.group)
        kind = next((p.dtype for p in net.parameters()), torch.float32)
        with torch.no_grad():
            x = torch.rand(2, *shape, dtype=kind, generator=torch.Generator().manual_seed(0))
            net.eval()
            made = net(x)
            if made.shape != (2, n):
                got = tuple(made.shape[1:])
                raise UserError(
                    f"scores of shape {got} an input: expected ({n},), one number an element of {rep.group}"
                )
            moved = net(rep.orbit(x).flatten(0, 1)).view(n, 2, n)
            expected = torch.stack([made[:, rep.group.table[rep.group.inverse(g)].tolist()] for g in range(n)])
            error = float((moved - expected).abs().max() / made.abs().max().clamp(min=1e-6))
            net.train(mode)
        if not error <= 1e-2:
            raise UserError(
                f"scores that move otherwise than {rep.group} by {error:.2g} of their size: expected h g at "
                "h x to be g at x"
            )

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.net.parameters()), torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.net(self._scaled(x)).T)


class GridScores(RegularScores):
    """Scores of pictures by a small group-convolution network, at one of its forwards (arXiv 2310.01647).

    Args:
        rep: how the group moves pictures.
        shape: (channels, H, W), of uint8 in 0..255 or of floating-point numbers.
        width: a factor for the channels of the convolutions.
        kind: "small" or "nature", as `NativeCNN` names its convolutions; by default the one that fits the sides.

    Raises:
        UserError: what `NativeCNN` refuses.

    >>> from equirl import cyclic
    >>> turn = Grid(cyclic(4))
    >>> scores, x = GridScores(turn, (3, 9, 9)), torch.rand(2, 3, 9, 9)
    >>> torch.allclose(scores(turn(1, x)), scores(x).roll(1, 0), atol=1e-5)
    True
    """

    def __init__(self, rep: Grid, shape: Sequence[int], width: float = 0.5, kind: str | None = None) -> None:
        kind = kind or ("nature" if min(shape[1:]) >= 36 else "small")
        *layers, _ = NativeCNN(rep, shape, len(rep.group), kind, width)  # one regular feature, before its rectifier
        super().__init__(rep, nn.Sequential(*layers), shape)


class CentroidScores(Scores):
    """Scores of pictures by where the mass of each channel lies: c_g(x) = sum_k <a_k, centroid_k(g^-1 x)>.

    A pose is chosen by a handful of weights a, so that it is learned from little: in a grid world, for instance, the
    pose in which the goal lies to the upper left of the agent. Centroids are in units of half a side from the middle;
    channels of other signs count by their size. They cost one product with a matrix of as many columns as elements.

    At the start neighbouring channels have opposite signs, so that a pose is chosen by how they lie to one another more
    than by where they lie, along a direction that no turn and no mirror of the square leaves as it is.

    Args:
        rep: how the group moves pictures.
        shape: (channels, H, W).
        rate: how much faster than with weights of size 1 an optimizer such as Adam changes them.

    >>> from equirl import cyclic
    >>> turn = Grid(cyclic(4))
    >>> scores, x = CentroidScores(turn, (3, 9, 9)), torch.rand(2, 3, 9, 9)
    >>> torch.allclose(scores(turn(1, x)), scores(x).roll(1, 0), atol=1e-5)
    True
    """

    places: Tensor

    def __init__(self, rep: Grid, shape: Sequence[int], rate: float = 3.0) -> None:
        super().__init__(rep)
        if not isinstance(rep, Grid) or rep.layout != "CHW" or len(shape) != 3:
            raise UserError(f"centroids of shape {tuple(shape)} under {rep!r}: expected pictures of layout 'CHW'")
        rep.check_shape(shape)
        if not rate > 0:
            raise UserError(f"rate {rate!r}: expected a number above 0")
        self.rate = rate
        signs = (-1.0) ** torch.arange(shape[0])[:, None]
        self.weight = nn.Parameter(signs * torch.tensor([math.sin(math.pi / 8), math.cos(math.pi / 8)]) / rate)
        rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in shape[1:])
        places = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))])
        self.register_buffer("places", places.float(), persistent=False)
        self._kept: tuple[Tensor, Tensor] | None = None  # weights, and what was made of them without gradients

    def forward(self, x: Tensor) -> Tensor:
        mass = x.abs() if x.is_floating_point() else x.to(self.dtype)
        mass = mass.flatten(2)
        mass = mass / mass.sum(2, keepdim=True).clamp(min=1e-6)
        return self._templates().to(mass.dtype) @ mass.flatten(1).T

    def _templates(self) -> Tensor:
        """Return g T with <T, x> = sum_k <a_k, centroid_k(x)>, shape (G, C * H * W): <T, g^-1 x> = <g T, x>.

        Without gradients they are kept, and compared by all bits of the weights, which optimizers change in silence.
        """
        learning, kept = torch.is_grad_enabled(), self._kept
        keeps = not learning and eager(self.weight.device.type)
        if keeps and kept is not None:
            weight, templates = kept
            same = (weight.dtype, weight.device) == (self.weight.dtype, self.weight.device)
            if same and torch.equal(weight, self.weight):
                return templates
        with torch.inference_mode(False), torch.set_grad_enabled(learning):
            template = torch.einsum("cd,dhw->chw", self.rate * self.weight, self.places)
            made: Tensor = self.rep.orbit(template[None]).flatten(1)
            if keeps:
                self._kept = self.weight.detach().clone(), made
        return made


class OrbitScores(Scores):
    """Scores of any input by one small network that sees every pose.

    It returns one number of each, or |G|:

        c_g(x) = s(g^-1 x),    or    c_g(x) = sum_p s_{p^-1 g}(p^-1 x),

    where s_k(y) says how far y looks as if moved by k, so that each pose is judged by all views.

    Args:
        rep: how the group moves inputs.
        net: s, from (B, ...) to (B, 1) or (B,), or to (B, G).
        shape: of one input, to try the network at once; else it is tried by the first.

    Raises:
        UserError: a network that returns another number of numbers an input.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> OrbitScores(swap, nn.Linear(2, 1))(torch.rand(5, 2)).shape
    torch.Size([2, 5])
    >>> scores, x = OrbitScores(swap, nn.Linear(2, 2)), torch.rand(5, 2)
    >>> torch.allclose(scores(swap(1, x)), scores(x).flip(0), atol=1e-6)
    True
    """

    between: Tensor

    def __init__(self, rep: Representation, net: nn.Module, shape: Sequence[int] | None = None) -> None:
        super().__init__(_of_one_tensor(rep))
        self.net = net
        self.register_buffer("between", torch.tensor(rep.group.table[rep.group.inverses].tolist()), persistent=False)
        _try(self, shape)

    def forward(self, x: Tensor) -> Tensor:
        scored, n = self.net(self._poses(x)), len(self.rep.group)
        if scored.numel() == n * len(x):
            return cast("Tensor", scored.reshape(n, -1))
        if scored.numel() != n * n * len(x):
            shape = tuple(scored.shape)
            raise UserError(f"a network of scores returns shape {shape}: expected one number an input, or {n}")
        places = self.between[:, None].expand(-1, len(x), -1)
        return cast("Tensor", scored.reshape(n, -1, n).gather(2, places).sum(0).T)


class ReferenceScores(Scores):
    """Scores by any network u and a vector that is learned: c_g(x) = cos(u(g^-1 x), v) (arXiv 2405.14089).

    Its loss, mean over pairs g != h of |cos(u(g x), u(h x))|, keeps the poses of an input apart. The paper's term for
    artefacts is none here: it compares u of an input that is moved and moved back with u of the input itself, and
    representations restore inputs exactly.

    Args:
        rep: how the group moves inputs.
        net: u, from (B, ...) to (B, ...).
        features_dim: how many numbers u returns.
        shape: of one input, to try the network at once; else it is tried by the first.

    Raises:
        UserError: a network that returns another number of features.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> scores, x = ReferenceScores(swap, nn.Linear(2, 8), 8), torch.rand(5, 2)
    >>> torch.allclose(scores(swap(1, x)), scores(x).flip(0), atol=1e-6), scores.loss(x).shape
    (True, torch.Size([]))
    """

    def __init__(
        self, rep: Representation, net: nn.Module, features_dim: int, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__(_of_one_tensor(rep))
        self.net = net
        self.reference = nn.Parameter(functional.normalize(torch.randn(positive("features_dim", features_dim)), dim=0))
        _try(self, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._directions(x) @ functional.normalize(self.reference, dim=0)

    def loss(self, x: Tensor) -> Tensor:
        u = self._directions(x).transpose(0, 1)  # (B, G, F)
        n = u.shape[1]
        return ((u @ u.mT).abs().sum() - len(u) * n) / max(len(u) * n * (n - 1), 1)

    def _directions(self, x: Tensor) -> Tensor:
        """Return u(g^-1 x) at length 1, shape (G, B, F)."""
        u = self.net(self._poses(x)).flatten(1)
        if u.shape[1] != len(self.reference):
            raise UserError(f"features_dim {len(self.reference)}: expected {u.shape[1]}, as the network returns")
        return functional.normalize(u, dim=1).view(len(self.rep.group), -1, u.shape[1])


class KeyScores(Scores):
    """Scores of dictionaries, sums of those of their entries: c_g(x) = sum_k c^k_g(x[k]).

    Args:
        rep: how the group moves each entry.
        parts: scores of some entries; the others have no part in the choice.

    Raises:
        UserError: an unknown key, or scores of another representation.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> scores = KeyScores(PerKey(cyclic(2), {"a": swap, "b": swap}), {"a": OrbitScores(swap, nn.Linear(2, 1))})
    >>> scores({"a": torch.rand(5, 2), "b": torch.rand(5, 2)}).shape
    torch.Size([2, 5])
    """

    def __init__(self, rep: PerKey, parts: Mapping[str, Scores]) -> None:
        super().__init__(rep)
        for key, part in parts.items():
            if key not in rep.keys:
                raise unknown("key", key, rep.keys)
            if part.rep != rep.keys[key]:
                raise UserError(f"scores of {part.rep!r} on key {key!r}: expected those of {rep.keys[key]!r}")
        self.names = list(parts)
        self.parts = nn.ModuleList(parts.values())  # keys may hold dots, which names of modules may not

    @property
    def dtype(self) -> torch.dtype:
        return next((part.dtype for part in self._scorers()), torch.get_default_dtype())

    def _scorers(self) -> list[Scores]:
        return [cast("Scores", part) for part in self.parts]

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        found = [part(x[name]) for name, part in zip(self.names, self.parts, strict=True)]
        if found:
            return torch.stack(found).sum(0)
        first = next(iter(x.values()))
        return torch.zeros(len(self.rep.group), len(first), dtype=self.dtype, device=first.device)

    def loss(self, x: Mapping[str, Tensor]) -> Tensor | None:
        pairs = zip(self.names, self._scorers(), strict=True)
        own = [loss for name, part in pairs if (loss := part.loss(x[name])) is not None]
        return torch.stack(own).sum() if own else None


def _try(scores: Scores, shape: Sequence[int] | None) -> None:
    """Let scores read an input of a shape, so that a network that does not fit is refused at construction."""
    if shape is None:
        return
    mode = scores.training
    with torch.no_grad():
        scores.eval()(torch.zeros(2, *shape, dtype=scores.dtype))
    scores.train(mode)


def _of_one_tensor(rep: Representation) -> Representation:
    if isinstance(rep, PerKey):
        raise UserError(f"scores of {rep!r} by one network: expected KeyScores, with scores of each entry")
    return rep
