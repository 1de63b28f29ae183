"""Learned canonicalization: a small network chooses the pose in which the large one sees its input, at one forward.

With scores c_g(x) that move with the input, c_{h g}(h x) = c_g(x), the pose g^-1 x of the best score is the same for x
and h x, so that any function f becomes equivariant (Mondal et al. 2023, arXiv 2310.01647):

    f_c(x) = rho_Y(g) f(rho_X(g)^-1 x),    g = argmax_g c_g(x).

Poses whose scores tie are averaged, since choosing one of them breaks the symmetry where h x = x. While it learns, the
choice has the gradient of a softmax (straight-through); f sees no orbit, neither then nor when acting.
"""

from __future__ import annotations

import math
from abc import ABC
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from equirl._representation import Tree
from equirl.errors import UserError
from equirl.representations import PerKey, Representation, Trivial
from equirl.scores import (
    CentroidScores,
    GridScores,
    KeyScores,
    OrbitScores,
    ReferenceScores,
    RegularScores,
    Scores,
)
from equirl.symmetrizers import Branches, Function, Symmetrizer, first_of, tied, tree_map

__all__ = [
    "Canonicalize",
    "CentroidScores",
    "Choice",
    "GridScores",
    "KeyScores",
    "OrbitScores",
    "Posed",
    "ReferenceScores",
    "RegularScores",
    "Scores",
    "with_loss",
]


class Choice(NamedTuple):
    """The best poses of a batch of inputs, one row a pose: one an input, and as many as tie beside them."""

    rows: Tensor  # which input a row is of, in order
    elements: Tensor  # g, of the pose g^-1 x
    inputs: int  # how many
    slopes: Tensor | None  # (G, B) zeros with the gradient of softmax_g(beta c_g(x)), while the choice learns

    @staticmethod
    def of(scores: Tensor, tolerance: float | None, beta: float, learns: bool) -> Choice:
        """Return the choice by scores (G, B)."""
        rows, elements = tied(scores.detach(), tolerance).T.nonzero(as_tuple=True)
        soft = (beta * scores).softmax(0) if learns else None
        return Choice(rows, elements, scores.shape[1], None if soft is None else soft - soft.detach())

    def poses(self, rep: Representation, x: Any) -> Any:
        """Return g^-1 x of each row."""
        inverses = rep.inverses(self.rows.device)
        whole = len(self.rows) == self.inputs
        posed = rep(inverses[self.elements], x if whole else tree_map(x, lambda part: part[self.rows]))
        if self.slopes is None:
            return posed
        slopes = self.slopes
        numbers = tree_map(x, lambda part: part if part.is_floating_point() else part.to(slopes.dtype))
        slid = tree_map(rep.orbit(numbers), lambda views: _mix(slopes, views[inverses])[self.rows])
        return tree_map(posed, lambda part, slide: part + slide, slid)

    def restored(self, rep: Representation, y: Any) -> Any:
        """Return g y of each row."""
        moved = rep(self.elements, y)
        if self.slopes is None:
            return moved
        slopes = self.slopes[:, self.rows]
        slid = tree_map(rep.orbit(y), lambda views: _mix(slopes, views.nan_to_num(math.nan, 0.0, 0.0)))
        return tree_map(moved, lambda part, slide: part + slide, slid)

    def averaged(self, y: Any) -> Any:
        """Return the mean over the rows of each input."""
        if len(self.rows) == self.inputs:
            return y
        numbers = torch.bincount(self.rows, minlength=self.inputs)

        def mean(part: Tensor) -> Tensor:
            sums = part.new_zeros(self.inputs, *part.shape[1:]).index_add(0, self.rows, part)
            return sums / numbers.to(part.dtype).view(-1, *[1] * (part.ndim - 1))

        return tree_map(y, mean)


class Posed(Symmetrizer, ABC):
    """A symmetrizer that chooses poses by scores, and adds losses of its own to the one that is differentiated.

    Args:
        input: how the group moves x.
        output: how the same group moves f(x).
        scores: c, whose representation is `input`.
        beta: sharpness of softmax_g(beta c_g), whose gradient the choice has and whose probabilities the losses read.
        prior: weight of the cross-entropy against the identity, which makes the pose of the training data, that a
            pretrained f knows, the canonical one.
        apart: weight of the scores' own loss.
        tolerance: scores within ``tolerance * max(1, |best|)`` tie; by default 2^10 rounding errors, at most 1/64.

    Raises:
        UserError: scores of another representation, or a number out of range.
    """

    learns = True
    reads_mode = True
    reads_scores: ClassVar[bool] = True

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
        if not isinstance(scores, Scores):
            raise UserError(f"scores {type(scores).__name__}: expected Scores, such as RegularScores(rep, net, shape)")
        if scores.rep != input:
            raise UserError(f"scores of {scores.rep!r} on inputs that move by {input!r}: expected one representation")
        _check_numbers(prior=prior, apart=apart, tolerance=tolerance or 0.0)
        if not beta > 0:
            raise UserError(f"beta {beta!r}: expected a number above 0")
        self.scores, self.beta, self.prior, self.apart, self.tolerance = scores, beta, prior, apart, tolerance

    @property
    def learning(self) -> bool:
        """Whether the choice has a gradient."""
        return self.training and torch.is_grad_enabled()

    def scored(self, x: Any) -> Tensor:
        """Return c_g(x), of the shape that it must have."""
        if isinstance(x, dict) and not isinstance(self.input, PerKey):
            raise UserError(f"a dictionary of {', '.join(map(str, x))}: expected a tensor, as {self.input!r} moves")
        scores: Tensor = self.scores(x)
        expected = (len(self.input.group), len(first_of(x)))
        if scores.shape != expected:
            raise UserError(f"scores of shape {tuple(scores.shape)}: expected {expected}")
        return scores

    def losses(self, x: Any, scores: Tensor, *aims: tuple[float, Tensor]) -> Tensor | None:
        """Return the sum of the weighted losses that are asked for, None if there are none.

        Aims are what softmax_g(beta c_g) is to come near to, each a weight and probabilities (G, B).
        """
        chances = (self.beta * scores).log_softmax(0)
        found = [-weight * (aim * chances).sum(0).mean() for weight, aim in aims]
        if self.prior:
            found.append(-self.prior * chances[0].mean())
        own = self.scores.loss(x) if self.apart else None
        found += [] if own is None else [self.apart * own]
        return torch.stack(found).sum() if found else None


class Canonicalize(Posed):
    """Learned canonicalization: f_c(x) = rho_Y(g) f(rho_X(g)^-1 x), g = argmax_g c_g(x) (arXiv 2310.01647).

    In training mode its own losses join the one that is differentiated, as `with_loss` says.

    A function that starts fresh knows no pose, and whichever is chosen, learns it. What it learns from best is a pose
    in which its outputs are alike, and `align` looks for that, of outputs that the group moves: with Q the result and v
    the mean of what f returns of the batch's poses,

        loss = - align 1/B sum_x sum_g p_g(x) log softmax_g(beta c_g(x)),
        p_g(x) = softmax_g(q_g(x) / (sigma temperature)),
        q_g(x) = <v, rho_Y(g)^-1 Q(x)>,    sigma^2 = 1/B sum_x var_g q_g(x).

    Args:
        input: as `Posed` says, and likewise those after it.
        align: weight of that loss; where it is not 0, the choice has no gradient but those of the losses.
        temperature: of p; the lower, the more surely p is at the best pose.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> canonical = Canonicalize(swap, swap, OrbitScores(swap, torch.nn.Linear(2, 1))).eval()
    >>> f, x = torch.nn.Linear(2, 2), torch.rand(5, 2)
    >>> torch.allclose(canonical(f, swap(1, x)), swap(1, canonical(f, x)))
    True
    """

    method = "canonical"

    def __init__(
        self,
        input: Representation,
        output: Representation,
        scores: Scores,
        beta: float = 1.0,
        prior: float = 0.0,
        apart: float = 0.0,
        tolerance: float | None = None,
        align: float = 0.0,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(input, output, scores, beta, prior, apart, tolerance)
        _check_numbers(align=align)
        if not temperature > 0:
            raise UserError(f"temperature {temperature!r}: expected a number above 0")
        self.align, self.temperature = align if _moves(output) and len(input.group) > 1 else 0.0, temperature

    def weights(self, branches: Branches) -> Tensor:
        ties = tied(self.scored(tree_map(branches.views, lambda view: view[0])), self.tolerance)
        return (ties / ties.sum(0))[self.input.inverses(ties.device)]  # the pose of g is the view of its inverse

    def forward(self, f: Function, x: Any) -> Any:
        """Return f_c(x): of one forward of as many inputs as there are, and as tied poses beside them."""
        scores = self.scored(x)
        choice = Choice.of(scores, self.tolerance, self.beta, self.learning and not self.align)
        y = f(choice.poses(self.input, x))
        y = y[0] if isinstance(y, tuple) else y
        restored = choice.averaged(choice.restored(self.output, y))
        if not self.learning:
            return restored
        aims = [(self.align, self._aligned(restored, y))] if self.align else []
        return with_loss(restored, self.losses(x, scores, *aims))

    @torch.no_grad()
    def _aligned(self, y: Any, pose: Any) -> Tensor:
        """Return p_g(x), shape (G, B), of results y and of what f returned of the poses."""
        usual = tree_map(pose, lambda part: part.mean(0))
        back = self.output.undo(tree_map(y, lambda part: part.expand(len(self.input.group), *part.shape)))
        products = [(views * usual).flatten(2).sum(2) for views, usual in _moving(self.output, back, usual)]
        alike = torch.stack(products).sum(0)
        kind = torch.finfo(alike.dtype)
        deviation = alike.var(0).mean().sqrt().clamp(min=kind.tiny)  # of the batch: who says little, pulls little
        return (alike / (deviation * self.temperature)).softmax(0)


def _moves(rep: Representation) -> bool:
    parts = rep.keys.values() if isinstance(rep, PerKey) else [rep]
    return any(not isinstance(part, Trivial) for part in parts)


def _moving(rep: Representation, *trees: Any) -> list[tuple[Tensor, ...]]:
    """Return those parts of trees that the group moves, side by side."""
    if isinstance(rep, PerKey):
        return [pair for key, part in rep.keys.items() for pair in _moving(part, *(tree[key] for tree in trees))]
    return [] if isinstance(rep, Trivial) else [trees]


def _check_numbers(**named: float) -> None:
    for name, value in named.items():
        if not value >= 0:
            raise UserError(f"{name} {value!r}: expected a number of at least 0")


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, g.new_ones(())


def with_loss(y: Tree, loss: Tensor | None) -> Tree:
    """Return y, through which whoever differentiates anything made of it differentiates the loss as well.

    It is how a network adds a loss of its own to an algorithm that computes another one, such as SB3's, without a
    change of that: d/dw (L(y) + loss), the loss counted once whatever L is. A dictionary carries it in its first entry.

    >>> w = torch.ones(1, requires_grad=True)
    >>> (5 * with_loss(2 * w, (3 * w).sum())).sum().backward()
    >>> w.grad
    tensor([13.])
    """
    if loss is None:
        return y
    if isinstance(y, dict):
        first = next(iter(y))
        return {**y, first: cast("Tensor", with_loss(y[first], loss))}
    return cast("Tensor", _WithLoss.apply(y, loss))  # type: ignore[no-untyped-call]


def _mix(weights: Tensor, views: Tensor) -> Tensor:
    """Return sum_g weights[g] views[g]."""
    return (weights.view(*weights.shape, *[1] * (views.ndim - 2)).to(views.dtype) * views).sum(0)
