"""Proof that the symmetry is real: how far a function is from commuting with a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from equirl._representation import Tree
from equirl.errors import UserError
from equirl.representations import Permutation, Representation, Trivial
from equirl.symmetrizers import first_of


@torch.no_grad()
def equivariance_error(f: Callable[[Any], Any], input: Representation, output: Representation, x: Any) -> float:
    """Return the largest deviation from equivariance over all elements and a batch, in units of the output.

        max_{g, b} |f(g x_b) - g f(x_b)| / max(1, max_b |f(x_b)|)

    The views pass one element at a time, by the slow and obvious way, so that this is a check on the fast one.

    Args:
        f: a function from (B, ...) to (B, ...), or to dictionaries of these, or to (y, features).
        input: how the group moves inputs.
        output: how the same group moves outputs.
        x: a batch of shape (B, ...), or a dictionary of batches.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> equivariance_error(lambda x: 2 * x, swap, swap, torch.tensor([[1.0, 5.0]]))
    0.0
    >>> equivariance_error(lambda x: x * torch.tensor([1.0, 0.0]), swap, swap, torch.tensor([[1.0, 5.0]]))
    5.0
    """
    still = _output(f(_some(x)))
    worst = []
    for g in range(len(input.group)):
        moved = zip(_parts(_output(f(input(g, x)))), _parts(output(g, still)), strict=True)
        worst += [(ours - theirs).abs().max() for ours, theirs in moved]
    scale = torch.stack([part.abs().max() for part in _parts(still)]).max().clamp(min=1.0)
    return float(torch.stack(worst).max() / scale)  # torch's max, unlike Python's, is nan where an output is


@torch.no_grad()
def greedy_disagreement(
    f: Callable[[Any], Any],
    input: Representation,
    output: Representation,
    x: Any,
    tolerance: float | Tensor | None = None,
) -> float:
    """Return how often the greedy action at g x is not g times the greedy action at x, over g != e and a batch.

    Args:
        f: action values, from (B, ...) to (B, actions); or the actions themselves where there is a `tolerance`.
        input: how the group moves observations.
        output: how the same group moves action values, or actions.
        x: a batch of observations.
        tolerance: actions are the same where no entry differs by more, one number or one an entry.

    Raises:
        UserError: action values whose representation is no permutation.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> greedy_disagreement(lambda x: x, swap, swap, torch.tensor([[1.0, 5.0]]))
    0.0
    >>> greedy_disagreement(lambda x: 0 * x, swap, swap, torch.tensor([[1.0, 5.0]]))
    1.0
    >>> greedy_disagreement(lambda x: x + 1e-3, swap, swap, torch.tensor([[1.0, 5.0]]), tolerance=0.01)
    0.0
    """
    if tolerance is None and not isinstance(output, Permutation | Trivial):
        raise UserError(f"greedy actions under {output!r}: expected a permutation of action values")

    def act(x: Any) -> Tensor:
        found: Tensor = _output(f(x))
        return found if tolerance is not None else one_hot(found.argmax(-1), found.shape[-1])

    still, allowed = act(_some(x)), 0 if tolerance is None else tolerance
    # so that nan, which no comparison holds of, agrees with nothing
    right = [((act(input(g, x)) - output(g, still)).abs() <= allowed).all(-1) for g in range(1, len(input.group))]
    return float((~torch.stack(right)).double().mean()) if right else 0.0


def _output(y: Any) -> Any:
    return y[0] if isinstance(y, tuple) else y


def _some(x: Any) -> Any:
    if not len(first_of(x)):
        raise UserError("no inputs to check: expected a batch of at least one")
    return x


def _parts(tree: Tree) -> list[Tensor]:
    return [tree[key].double() for key in sorted(tree)] if isinstance(tree, dict) else [tree.double()]
