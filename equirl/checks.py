"""Proof that the symmetry is real: how far a function is from commuting with a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equirl._representation import Tree
from equirl.representations import Representation


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
    still = _output(f(x))
    scale = max(1.0, max(float(part.abs().max()) for part in _parts(still)))
    worst = 0.0
    for g in range(len(input.group)):
        moved = zip(_parts(_output(f(input(g, x)))), _parts(output(g, still)), strict=True)
        worst = max(worst, *(float((ours - theirs).abs().max()) for ours, theirs in moved))
    return worst / scale


@torch.no_grad()
def greedy_disagreement(f: Callable[[Any], Any], input: Representation, output: Representation, x: Any) -> float:
    """Return how often the greedy action at g x is not g times the greedy action at x, over g != e and a batch.

    Args:
        f: action values, from (B, ...) to (B, actions).
        input: how the group moves observations.
        output: how the same group moves action values (a permutation).
        x: a batch of observations.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> greedy_disagreement(lambda x: x, swap, swap, torch.tensor([[1.0, 5.0]]))
    0.0
    >>> greedy_disagreement(lambda x: 0 * x, swap, swap, torch.tensor([[1.0, 5.0]]))
    1.0
    """
    greedy = _output(f(x)).argmax(-1)
    one_hot = torch.nn.functional.one_hot(greedy, int(_output(f(x)).shape[-1]))
    n = len(input.group)
    wrong = [(_output(f(input(g, x))).argmax(-1) != output(g, one_hot).argmax(-1)) for g in range(1, n)]
    return float(torch.stack(wrong).double().mean()) if wrong else 0.0


def _output(y: Any) -> Any:
    return y[0] if isinstance(y, tuple) else y


def _parts(tree: Tree) -> list[Tensor]:
    return [tree[key] for key in sorted(tree)] if isinstance(tree, dict) else [tree]
