"""Make any function equivariant: weighted averages over the orbit of its input.

Every method here is one formula with its own weights,

    f_G(x) = sum_g w_g(x) rho_Y(g)^-1 f(rho_X(g) x),    w_{g h^-1}(h x) = w_g(x),    sum_g w_g(x) = 1,

and the condition on the weights makes f_G(h x) = rho_Y(h) f_G(x). All views of a batch go through f in one call,
stacked as (G * B, ...). A symmetrizer owns no backbone: the function is an argument, ``symmetrizer(f, x)``, and may
return y of shape (B, ...) or the pair (y, features) with features of shape (B, D).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from equirl._representation import Tree
from equirl.errors import UserError, unknown
from equirl.groups import positive
from equirl.representations import Representation

Function = Callable[[Any], Any]


def _max(y: Tensor) -> Tensor:
    return _flat(y).amax(-1)


def _max_probability(y: Tensor) -> Tensor:
    return _flat(y).softmax(-1).amax(-1)


def _entropy(y: Tensor) -> Tensor:
    entropies: Tensor = torch.special.entr(_flat(y).softmax(-1)).sum(-1)
    return -entropies


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"max": _max, "max_probability": _max_probability, "entropy": _entropy}
"""What equizero maximises over the orbit, from outputs (G, B, ...) to (G, B); "entropy" is the negative entropy."""


class Branches(NamedTuple):
    """What f makes of every view of a batch."""

    outputs: Any  # f(g x), shape (G, B, ...)
    undone: Any  # g^-1 f(g x), shape (G, B, ...)
    features: Tensor | None  # shape (G, B, D)
    views: Any  # g x, shape (G, B, ...)


class Symmetrizer(nn.Module, ABC):
    """A wrapper ``symmetrizer(f, x)`` whose result is equivariant at x for the group of its representations.

    Args:
        input: how the group moves x.
        output: how the same group moves f(x); `Trivial` makes the result invariant.
    """

    method: ClassVar[str]
    exact: ClassVar[bool] = True  # whether the result is equivariant whatever was learned
    learns: ClassVar[bool] = False  # whether it has weights of its own
    reads_features: ClassVar[bool] = False
    reads_scores: ClassVar[bool] = False
    reads_mode = False  # whether training mode computes something else than evaluation mode

    def __init__(self, input: Representation, output: Representation) -> None:
        super().__init__()
        for name, rep in (("input", input), ("output", output)):
            if not isinstance(rep, Representation):
                raise UserError(f"{name} {rep!r}: expected a representation, such as Grid(cyclic(4))")
        if input.group != output.group:
            raise UserError(f"inputs move by {input.group} and outputs by {output.group}: expected one group")
        self.input, self.output = input, output

    @abstractmethod
    def weights(self, branches: Branches) -> Tensor:
        """Return w_g(x) of shape (G, B), summing to 1 over g."""

    def branches(self, f: Function, x: Any) -> Branches:
        """Return f of all views of the batch x, computed in one call."""
        views = self.input.orbit(x)
        y = f(tree_map(views, lambda view: view.flatten(0, 1)))
        y, features = y if isinstance(y, tuple) else (y, None)
        outputs = tree_map(y, self._rows)
        return Branches(outputs, self.output.undo(outputs), None if features is None else self._rows(features), views)

    def _rows(self, y: Tensor) -> Tensor:
        """Return what f made of stacked views, (G * B, ...), as (G, B, ...)."""
        if not (y.is_floating_point() or y.is_complex()):
            raise UserError(f"f returns {y.dtype}: expected a floating-point data type")
        n = len(self.input.group)
        return y.view(n, y.shape[0] // n, *y.shape[1:])

    def forward(self, f: Function, x: Any) -> Any:
        """Return f_G(x), shape (B, ...)."""
        branches = self.branches(f, x)
        return _weighted(self.weights(branches), branches.undone)

    def extra_repr(self) -> str:
        return f"{self.input!r} -> {self.output!r}"


class Identity(Symmetrizer):
    """Leaves f as it is: f_G(x) = f(x). The plain arm of every comparison."""

    method = "identity"
    exact = False

    def weights(self, branches: Branches) -> Tensor:
        weights = _template(branches)
        weights[0] = 1.0
        return weights

    def forward(self, f: Function, x: Any) -> Any:
        y = f(x)
        return y[0] if isinstance(y, tuple) else y


class Equitune(Symmetrizer):
    """Averages over the orbit: f_G(x) = 1/n sum_g rho_Y(g)^-1 f(rho_X(g) x) (Basu et al. 2023, arXiv 2210.06475).

    Args:
        orbit_samples: in training mode, average over k elements drawn for each x alone, without repeats, at k forwards
            instead of n. The mean over draws is f_G(x), and evaluation mode is exact; a squared loss gains the variance
            between views, divided by k, which also pulls the views towards one another.

    Raises:
        UserError: `orbit_samples` is no whole number from 1 to n.

    >>> from equirl import Permutation, Trivial, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> Equitune(swap, swap)(lambda x: x * torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 10.0]]))
    tensor([[ 2., 20.]])
    """

    method = "equitune"

    def __init__(self, input: Representation, output: Representation, orbit_samples: int | None = None) -> None:
        super().__init__(input, output)
        n = len(input.group)
        if orbit_samples is not None and not (type(orbit_samples) is int and 1 <= orbit_samples <= n):
            raise UserError(
                f"orbit_samples {orbit_samples!r}: expected a whole number from 1 to {n}, the group's order"
            )
        self.orbit_samples = orbit_samples
        self.reads_mode = orbit_samples is not None

    def weights(self, branches: Branches) -> Tensor:
        return _template(branches) + 1.0 / len(self.input.group)

    def forward(self, f: Function, x: Any) -> Any:
        if self.training and self.orbit_samples is not None:
            return self._sampled(f, x, self.orbit_samples)
        y = f(tree_map(self.input.orbit(x), lambda view: view.flatten(0, 1)))  # what `branches` does, by a shorter way
        undone = self.output.undo(tree_map(y[0] if isinstance(y, tuple) else y, self._rows))
        return tree_map(undone, lambda part: part.mean(0))

    def _sampled(self, f: Function, x: Any, k: int) -> Any:
        """Return the mean over k views of each x."""
        first = first_of(x)
        elements = self.drawn(len(first), k, first.device).reshape(-1)
        y = f(self.input(elements, tree_map(x, lambda part: part.repeat(k, *[1] * (part.ndim - 1)))))
        undone = self.output(self.output.inverses(first.device)[elements], y[0] if isinstance(y, tuple) else y)
        return tree_map(undone, lambda part: part.unflatten(0, (k, part.shape[0] // k)).mean(0))

    def drawn(self, count: int, k: int, device: torch.device) -> Tensor:
        """Return k elements for each of `count` inputs, each as likely as the others, none twice, shape (k, count)."""
        return torch.rand(count, len(self.input.group), device=device).topk(k, dim=1).indices.T


class LambdaEquitune(Symmetrizer):
    """Averages with learned weights: w_g(x) = softmax_g lambda(features(g x)) (Basu et al. 2023, arXiv 2305.09900).

    The net reads the features that f returns, else the view itself; it depends on x only through g x, which makes the
    result equivariant. Its last layer starts at zero, so that training starts from `Equitune`.

    Args:
        features_dim: D, the number of features (or of entries of a view).
        hidden: width of the two hidden layers.
    """

    method = "lambda"
    learns = True
    reads_features = True

    def __init__(self, input: Representation, output: Representation, features_dim: int, hidden: int = 100) -> None:
        super().__init__(input, output)
        self.features_dim, self.score = features_dim, Reader(features_dim, hidden)

    def weights(self, branches: Branches) -> Tensor:
        return self.score(reading(branches, "lambda-equitune")).squeeze(-1).softmax(0)  # type: ignore[no-any-return]


class Equizero(Symmetrizer):
    """Keeps the best view: f_0(x) = rho_Y(g*)^-1 f(g* x), g* = argmax_g score(f(g x)) (arXiv 2305.09900).

    Views whose scores tie with the best are averaged, since choosing one of them breaks the symmetry where g x = x.
    In training mode the gradient is that of the mean over all views (straight-through): m - m.detach() is added.

    Args:
        score: a name from `SCORES`, or any function from outputs (G, B, ...) to scores (G, B).
        tolerance: scores within ``tolerance * max(1, |best|)`` tie; by default 2^10 rounding errors of their data
            type, at most 1/64.
    """

    method = "equizero"
    reads_mode = True  # straight-through

    def __init__(
        self,
        input: Representation,
        output: Representation,
        score: str | Callable[[Tensor], Tensor] = "max",
        tolerance: float | None = None,
    ) -> None:
        super().__init__(input, output)
        if isinstance(score, str) and score not in SCORES:
            raise unknown("score", score, SCORES)
        if tolerance is not None and not tolerance >= 0:
            raise UserError(f"tolerance {tolerance!r}: expected a number of at least 0")
        self.score = SCORES[score] if isinstance(score, str) else score
        self.tolerance = tolerance

    def weights(self, branches: Branches) -> Tensor:
        if isinstance(branches.outputs, dict) and self.score in SCORES.values():
            raise UserError("equizero on outputs that are a dictionary: expected score=, a function of it")
        ties = tied(self.score(branches.outputs), self.tolerance)
        return ties / ties.sum(0)

    def forward(self, f: Function, x: Any, selector: Function | None = None) -> Any:
        """Return f_0(x); where a `selector` is given, its outputs choose the view and those of f fill it."""
        branches = self.branches(f, x)
        with torch.no_grad():
            weights = self.weights(branches if selector is None else self.branches(selector, x))
        unused = weights == 0  # of these, 0 times infinity would be nan
        best = _weighted(weights, tree_map(branches.undone, lambda part: part.masked_fill(_spread(unused, part), 0)))
        if not self.training:
            return best
        mean = tree_map(branches.undone, lambda part: part.mean(0))
        return tree_map(best, lambda part, m: part.detach() + (m - m.detach()).nan_to_num(), mean)  # best, bit for bit


def tree_map(tree: Tree, f: Callable[..., Tensor], *others: Any) -> Tree:
    """Apply f to a tensor, or to each entry of a dictionary of tensors."""
    if isinstance(tree, dict):
        return {key: f(value, *(other[key] for other in others)) for key, value in tree.items()}
    return f(tree, *others)


def first_of(tree: Tree) -> Tensor:
    """Return a tensor, or the first entry of a dictionary of tensors."""
    return next(iter(tree.values())) if isinstance(tree, dict) else tree


def tied(scores: Tensor, tolerance: float | None) -> Tensor:
    """Return 1 for scores (G, B) within the tolerance of the best over G, as `Equizero` says, and 0 for others."""
    best, most = scores.amax(0), 1 / 64  # half precision would tie everything
    width = min(1024 * torch.finfo(scores.dtype).eps, most) if tolerance is None else tolerance
    return (~(scores < best - width * best.abs().clamp(min=1.0))).to(scores.dtype)  # where it is nan, all


def _flat(y: Tensor) -> Tensor:
    return y.flatten(2) if y.ndim > 2 else y[..., None]


def _weighted(weights: Tensor, undone: Tree) -> Tree:
    def average(part: Tensor) -> Tensor:
        return (_spread(weights.to(part.dtype), part) * part).sum(0)

    return tree_map(undone, average)


def _spread(weights: Tensor, part: Tensor) -> Tensor:
    """Return weights (G, B) in a shape that multiplies a part (G, B, ...)."""
    return weights.view(*weights.shape, *[1] * (part.ndim - 2))


def _template(branches: Branches) -> Tensor:
    first = first_of(branches.undone)
    return torch.zeros(first.shape[:2], dtype=first.dtype, device=first.device)


class Reader(nn.Sequential):
    """A small net from features (..., D) to numbers (..., 1), which are 0 at the start."""

    def __init__(self, features_dim: int, hidden: int) -> None:
        positive("features_dim", features_dim)
        last = nn.Linear(positive("hidden", hidden), 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(features_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, read: Tensor) -> Tensor:
        weight = next(self.parameters())
        if read.shape[-1] != weight.shape[1]:
            raise UserError(f"features_dim is {weight.shape[1]}: expected {read.shape[-1]}, as f returns")
        return super().forward(read.to(weight.dtype))  # type: ignore[no-any-return, no-untyped-call]


def reading(branches: Branches, what: str) -> Tensor:
    """Return what a small net reads of every view, shape (G, B, D): f's features, else the view."""
    found = branches.views if branches.features is None else branches.features
    if isinstance(found, dict):
        raise UserError(f"{what} on a dictionary: expected f to return (y, features)")
    return _flat(found)
