"""Learned canonicalization: a small network chooses the pose in which the large one sees its input, at one forward.

With scores c_g(x) that move with the input, c_{h g}(h x) = c_g(x), the pose g^-1 x of the best score is the same for x
and h x, so that any function f becomes equivariant (Mondal et al. 2023, arXiv 2310.01647):

    f_c(x) = rho_Y(g) f(rho_X(g)^-1 x),    g = argmax_g c_g(x).

Poses whose scores tie are averaged, since choosing one of them breaks the symmetry where h x = x. While it learns, the
choice has the gradient of a softmax (straight-through); f sees no orbit, neither then nor when acting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from equirl.errors import UserError
from equirl.layers import positive
from equirl.networks import NativeCNN
from equirl.representations import Grid, Representation
from equirl.symmetrizers import Branches, Function, Symmetrizer, tied


class Scores(nn.Module, ABC):
    """Scores of poses, c_g(x) of shape (G, B) with c_{h g}(h x) = c_g(x).

    Args:
        rep: how the group moves x.
    """

    def __init__(self, rep: Representation) -> None:
        super().__init__()
        self.rep = rep
        self.register_buffer("inverses", torch.tensor(rep.group.inverses.tolist()), persistent=False)

    inverses: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the scores."""
        return next(self.parameters()).dtype

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return c_g(x), shape (G, B)."""

    def loss(self, x: Tensor) -> Tensor | None:
        """Return a loss of these scores' own, where they have one."""
        return None

    def _poses(self, x: Tensor) -> Tensor:
        """Return g^-1 x of all g, stacked as (G * B, ...)."""
        return cast("Tensor", self.rep.orbit(x)[self.inverses].flatten(0, 1))


class GridScores(Scores):
    """Scores of pictures by a small group-convolution network, at one of its forwards (arXiv 2310.01647).

    Args:
        rep: how the group moves pictures.
        shape: (channels, H, W), of uint8 in 0..255 or of floating-point numbers.
        width: a factor for the channels of the convolutions.
        kind: "small" or "nature", as `NativeCNN` names its convolutions.

    Raises:
        UserError: what `NativeCNN` refuses.

    >>> from equirl import cyclic
    >>> turn = Grid(cyclic(4))
    >>> scores, x = GridScores(turn, (3, 9, 9)), torch.rand(2, 3, 9, 9)
    >>> torch.allclose(scores(turn(1, x)), scores(x).roll(1, 0), atol=1e-5)
    True
    """

    def __init__(self, rep: Grid, shape: Sequence[int], width: float = 0.5, kind: str = "small") -> None:
        super().__init__(rep)
        *layers, _ = NativeCNN(rep, shape, len(rep.group), kind, width)  # one regular feature, before its rectifier
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.net(x if x.is_floating_point() else x.to(self.dtype) / 255).T)


class OrbitScores(Scores):
    """Scores of any input by one small network that sees every pose: c_g(x) = s(g^-1 x).

    Args:
        rep: how the group moves inputs.
        net: from (B, ...) to (B, 1) or (B,).

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> OrbitScores(swap, nn.Linear(2, 1))(torch.rand(5, 2)).shape
    torch.Size([2, 5])
    """

    def __init__(self, rep: Representation, net: nn.Module) -> None:
        super().__init__(rep)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scored = self.net(self._poses(x))
        if scored.numel() != len(self.inverses) * len(x):
            raise UserError(f"a network of scores returns shape {tuple(scored.shape)}: expected one number an input")
        return cast("Tensor", scored.reshape(len(self.inverses), -1))


class ReferenceScores(Scores):
    """Scores by any network u and a vector that is learned: c_g(x) = cos(u(g^-1 x), v) (arXiv 2405.14089).

    Its loss, mean over pairs g != h of |cos(u(g x), u(h x))|, keeps the poses of an input apart. The paper's term for
    artefacts is none here: it compares u of an input that is moved and moved back with u of the input itself, and
    representations restore inputs exactly.

    Args:
        rep: how the group moves inputs.
        net: u, from (B, ...) to (B, ...).
        features_dim: how many numbers u returns.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> scores, x = ReferenceScores(swap, nn.Linear(2, 8), 8), torch.rand(5, 2)
    >>> torch.allclose(scores(swap(1, x)), scores(x).flip(0), atol=1e-6), scores.loss(x).shape
    (True, torch.Size([]))
    """

    def __init__(self, rep: Representation, net: nn.Module, features_dim: int) -> None:
        super().__init__(rep)
        self.net = net
        self.reference = nn.Parameter(functional.normalize(torch.randn(positive("features_dim", features_dim)), dim=0))

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
        return functional.normalize(u, dim=1).view(len(self.inverses), -1, u.shape[1])


class Canonicalize(Symmetrizer):
    """Learned canonicalization: f_c(x) = rho_Y(g) f(rho_X(g)^-1 x), g = argmax_g c_g(x) (arXiv 2310.01647).

    In training mode its own losses join the one that is differentiated: see `with_loss`.

    Args:
        input: how the group moves x.
        output: how the same group moves f(x).
        scores: c, whose representation is `input`.
        beta: sharpness of the softmax whose gradient the choice has, softmax_g(beta c_g).
        prior: weight of the cross-entropy of c against the identity, which makes the pose of the training data, that
            a pretrained f knows, the canonical one.
        apart: weight of the scores' own loss.
        tolerance: scores within ``tolerance * max(1, |best|)`` tie; by default 2^10 rounding errors, at most 1/64.

    Raises:
        UserError: scores of another representation, or a number out of range.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> canonical = Canonicalize(swap, swap, OrbitScores(swap, nn.Linear(2, 1))).eval()
    >>> f, x = nn.Linear(2, 2), torch.rand(5, 2)
    >>> torch.allclose(canonical(f, swap(1, x)), swap(1, canonical(f, x)))
    True
    """

    method = "canonical"
    reads_mode = True

    def __init__(
        self,
        input: Representation,
        output: Representation,
        scores: Scores,
        beta: float = 1.0,
        prior: float = 0.0,
        apart: float = 0.0,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(input, output)
        if scores.rep != input:
            raise UserError(f"scores of {scores.rep!r} on inputs that move by {input!r}: expected one representation")
        for name, value in {"beta": beta, "prior": prior, "apart": apart, "tolerance": tolerance or 0.0}.items():
            if not value >= 0 or (name == "beta" and not value):
                raise UserError(f"{name} {value!r}: expected a number {'above' if name == 'beta' else 'of at least'} 0")
        self.scores, self.beta, self.prior, self.apart, self.tolerance = scores, beta, prior, apart, tolerance

    def weights(self, branches: Branches) -> Tensor:
        ties = tied(self._scored(branches.views[0]), self.tolerance)
        return (ties / ties.sum(0))[self.scores.inverses]  # the pose of g is the view of its inverse

    def forward(self, f: Function, x: Any) -> Any:
        """Return f_c(x): of one forward of as many inputs as there are, and as tied poses beside them."""
        scores = self._scored(x)
        rows, elements = tied(scores.detach(), self.tolerance).T.nonzero(as_tuple=True)
        chosen = x if len(rows) == len(x) else x[rows]
        poses = self.input(self.scores.inverses[elements], chosen)
        slopes = None
        if self.training and torch.is_grad_enabled():
            soft = (self.beta * scores).softmax(0)
            slopes = soft - soft.detach()  # zero, with the gradient of the softmax
            seen = x if x.is_floating_point() else x.to(scores.dtype)
            poses = poses + _mix(slopes, self.input.orbit(seen)[self.scores.inverses])[rows]
        y = f(poses)
        y = y[0] if isinstance(y, tuple) else y
        restored = self.output(elements, y)
        if slopes is not None:
            restored = restored + _mix(slopes[:, rows], self.output.orbit(y))
            restored = with_loss(restored, self._loss(x, scores))
        return restored if len(rows) == len(x) else _averaged(restored, rows, len(x))

    def _scored(self, x: Any) -> Tensor:
        """Return c_g(x), of the shape that it must have."""
        if isinstance(x, dict):
            raise UserError("canonicalization of a dictionary: expected a tensor; scores read one input")
        scores: Tensor = self.scores(x)
        if scores.shape != (len(self.input.group), len(x)):
            raise UserError(f"scores of shape {tuple(scores.shape)}: expected ({len(self.input.group)}, {len(x)})")
        return scores

    def _loss(self, x: Tensor, scores: Tensor) -> Tensor | None:
        """Return the weighted sum of the losses that are asked for."""
        parts = []
        if self.prior:
            parts.append(self.prior * -scores.log_softmax(0)[0].mean())
        own = self.scores.loss(x) if self.apart else None
        if own is not None:
            parts.append(self.apart * own)
        return torch.stack(parts).sum() if parts else None


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, g.new_ones(())


def with_loss(y: Tensor, loss: Tensor | None) -> Tensor:
    """Return y, through which whoever differentiates anything made of it differentiates the loss as well.

    It is how a network adds a loss of its own to an algorithm that computes another one, such as SB3's, without a
    change of that: d/dw (L(y) + loss), the loss counted once whatever L is.

    >>> w = torch.ones(1, requires_grad=True)
    >>> (5 * with_loss(2 * w, (3 * w).sum())).sum().backward()
    >>> w.grad
    tensor([13.])
    """
    return y if loss is None else cast("Tensor", _WithLoss.apply(y, loss))  # type: ignore[no-untyped-call]


def _mix(weights: Tensor, views: Tensor) -> Tensor:
    """Return sum_g weights[g] views[g]."""
    return (weights.view(*weights.shape, *[1] * (views.ndim - 2)).to(views.dtype) * views).sum(0)


def _averaged(y: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the mean of those rows of y that belong to each of `count` inputs."""
    sums = y.new_zeros(count, *y.shape[1:]).index_add(0, rows, y)
    numbers = torch.bincount(rows, minlength=count).to(y.dtype)
    return sums / numbers.view(-1, *[1] * (y.ndim - 1))
