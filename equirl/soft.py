"""Soft symmetry: a learned gate between the equivariant and the plain output, where a symmetry is broken in places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equirl.representations import Representation
from equirl.symmetrizers import Branches, Reader, Symmetrizer, reading


class SoftEquitune(Symmetrizer):
    """Lets go of a symmetry that is not exact where that pays: f_s(x) = (1 - p(x)) f_G(x) + p(x) f(x).

    The gate p(x) of 0 to 1 is a small net's reading of f's features at x, or of x itself. Its last layer starts at
    zero, so that training starts from `Equitune`, exactly; what is learned is not equivariant where p(x) is not 0
    (compare the residual pathways of Finzi et al. 2021, arXiv 2112.01388).

    Args:
        features_dim: D, the number of features (or of entries of x).
        hidden: width of the two hidden layers.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> soft, f = SoftEquitune(swap, swap, 2), lambda x: x * torch.tensor([1.0, 3.0])
    >>> soft(f, torch.tensor([[1.0, 10.0]])), soft.gate(soft.branches(f, torch.ones(1, 2)))
    (tensor([[ 2., 20.]], grad_fn=<SumBackward1>), tensor([0.], grad_fn=<_InwardBackward>))
    """

    method = "soft"
    exact = False
    learns = True
    reads_features = True

    def __init__(self, input: Representation, output: Representation, features_dim: int, hidden: int = 100) -> None:
        super().__init__(input, output)
        self.features_dim, self.score = features_dim, Reader(features_dim, hidden)

    def gate(self, branches: Branches) -> Tensor:
        """Return p(x), shape (B,)."""
        said = self.score(reading(branches, "soft symmetry")[0]).squeeze(-1)
        return _Inward.apply(said)  # type: ignore[no-any-return, no-untyped-call]

    def weights(self, branches: Branches) -> Tensor:
        gate, n = self.gate(branches), len(self.input.group)
        plain = nn.functional.one_hot(torch.tensor(0), n).to(gate)[:, None]
        return (1 - gate) / n + gate * plain


class _Inward(torch.autograd.Function):
    """Numbers cut to 0..1; the gradient of those at or beyond an end passes where it leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x <= 0) & (g > 0)) | ((x >= 1) & (g < 0))
        return g.masked_fill(outward, 0.0)
