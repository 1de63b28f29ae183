"""How a group moves tensors: representations on vectors, action values, images, tokens and dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from equirl._representation import Representation
from equirl.errors import UserError
from equirl.grids import Grid
from equirl.groups import Group
from equirl.permutations import Permutation, SignedPermutation

__all__ = ["Grid", "Matrix", "PerKey", "Permutation", "Representation", "SignedPermutation", "Tokens", "Trivial"]


class Trivial(Representation):
    """Every element leaves x as it is, whatever its shape: rep(g, x) = x.

    >>> from equirl import cyclic
    >>> Trivial(cyclic(2)).orbit(torch.tensor([[1.0, 2.0]])).shape
    torch.Size([2, 1, 2])
    """

    kind = "trivial"

    def __call__(self, g: int | Tensor, x: Any) -> Any:
        return x

    def orbit(self, x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: self.orbit(value) for key, value in x.items()}
        return x.expand(len(self.group), *x.shape)

    def undo(self, ys: Any) -> Any:
        return ys

    def check_shape(self, shape: Sequence[int]) -> None:
        pass

    def is_identity(self, g: int) -> bool:
        return True

    def stacked(self, k: int) -> Trivial:
        return self

    def describe(self, g: int) -> str:
        return "identity"

    def parameters(self) -> dict[str, Any]:
        return {}


class Matrix(Representation):
    """Multiplies the last axis by an invertible matrix: rep(g, x) = M_g x.

    Args:
        group: the group.
        matrices: M_g, of shape (G, size, size).

    Raises:
        UserError: the matrices do not multiply as the group does (to 1e-9 of the largest entry).

    >>> from equirl import cyclic
    >>> turn = Matrix(cyclic(2), [[[1, 0], [0, 1]], [[-1, 0], [0, -1]]])
    >>> turn(1, torch.tensor([1.0, 2.0]))
    tensor([-1., -2.])
    """

    kind = "matrix"
    per_element = ("matrices",)

    def __init__(self, group: Group, matrices: ArrayLike) -> None:
        super().__init__(group)
        try:
            self.matrices = np.array(matrices, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"matrices of {group}: expected numbers of shape ({len(group)}, size, size)") from None
        self.size = self.matrices.shape[-1] if self.matrices.ndim else 0
        if not self.size or self.matrices.shape != (len(group), self.size, self.size):
            raise UserError(f"matrices of shape {self.matrices.shape}: expected ({len(group)}, size, size)")
        products = self.matrices[:, None] @ self.matrices[None, :] - self.matrices[group.table]
        error = max(np.abs(products).max(), np.abs(self.matrices[0] - np.eye(self.size)).max())
        if not error <= 1e-9 * np.abs(self.matrices).max():
            raise UserError(
                f"not a representation of {group}: the matrices' products miss those of its elements by {error:.1e}, "
                "expected at most 1e-9 with the identity first"
            )

    def _tensor(self, x: Tensor, inverse: bool = False) -> Tensor:
        self.check_shape(x.shape)
        if not x.is_floating_point():
            raise UserError(f"{self!r} multiplies by matrices: expected a floating data type, got {x.dtype}")
        rows = self.matrices[self.group.inverses] if inverse else self.matrices
        return self._constant(  # type: ignore[no-any-return]
            (x.dtype, x.device, inverse), lambda: torch.as_tensor(rows, dtype=x.dtype, device=x.device)
        )

    def __call__(self, g: int | Tensor, x: Tensor) -> Tensor:
        matrices = self._tensor(x)[g]
        return torch.einsum("bij,b...j->b...i" if isinstance(g, Tensor) else "ij,...j->...i", matrices, x)

    def orbit(self, x: Tensor) -> Tensor:
        return torch.einsum("gij,...j->g...i", self._tensor(x), x)

    def undo(self, ys: Tensor) -> Tensor:
        return torch.einsum("gij,g...j->g...i", self._tensor(ys, inverse=True), ys)

    def check_shape(self, shape: Sequence[int]) -> None:
        if not len(shape) or shape[-1] != self.size:
            raise UserError(f"the symmetry {self!r} acts on {self.size} entries, got shape {tuple(shape)}")

    def is_identity(self, g: int) -> bool:
        return np.allclose(self.matrices[g], np.eye(self.size), rtol=0, atol=1e-9)

    def stacked(self, k: int) -> Matrix:
        return Matrix(self.group, np.stack([np.kron(np.eye(k), matrix) for matrix in self.matrices]))

    def describe(self, g: int) -> str:
        return "identity" if self.is_identity(g) else f"matrix {self.matrices[g].round(3).tolist()}"

    def parameters(self) -> dict[str, Any]:
        return {"matrices": self.matrices.tolist()}

    def __repr__(self) -> str:
        return f"Matrix({self.group}, size={self.size})"


class Tokens(Representation):
    """Permutes the vocabulary of integer tokens: rep(g, x) = p_g[x], in every position.

    Args:
        group: the group.
        indices: p_g, of shape (G, vocabulary).

    >>> from equirl import cyclic
    >>> swap = Tokens(cyclic(2), [[0, 1, 2], [0, 2, 1]])
    >>> swap(1, torch.tensor([0, 1, 1, 2]))
    tensor([0, 2, 2, 1])
    """

    kind = "tokens"
    per_element = ("indices",)

    def __init__(self, group: Group, indices: ArrayLike) -> None:
        super().__init__(group)
        self.logits = Permutation(group, indices)  # how the same element moves scores over the vocabulary

    def _tensor(self, x: Tensor, inverse: bool = False) -> Tensor:
        if x.is_floating_point() or x.dtype == torch.bool:
            raise UserError(f"{self!r} renames tokens: expected an integer data type, got {x.dtype}")
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.logits.size:
            raise UserError(
                f"tokens from {int(x.min())} to {int(x.max())}: expected 0..{self.logits.size - 1}, for {self!r}"
            )
        rows = self.logits.indices[self.group.inverses] if inverse else self.logits.indices
        return self._constant((x.device, inverse), lambda: torch.as_tensor(rows, device=x.device))  # type: ignore[no-any-return]

    def __call__(self, g: int | Tensor, x: Tensor) -> Tensor:
        table = self._tensor(x)
        if isinstance(g, Tensor):
            return table[g].gather(-1, _rows(x)).view_as(x).to(x.dtype)
        return table[g][x.long()].to(x.dtype)

    def orbit(self, x: Tensor) -> Tensor:
        return self._tensor(x)[:, x.long()].to(x.dtype)

    def undo(self, ys: Tensor) -> Tensor:
        return self._tensor(ys, inverse=True).gather(-1, _rows(ys)).view_as(ys).to(ys.dtype)

    def check_shape(self, shape: Sequence[int]) -> None:
        pass

    def is_identity(self, g: int) -> bool:
        return self.logits.is_identity(g)

    def describe(self, g: int) -> str:
        return self.logits.describe(g)

    def parameters(self) -> dict[str, Any]:
        return self.logits.parameters()

    def __repr__(self) -> str:
        return f"Tokens({self.group}, vocabulary={self.logits.size})"


def _rows(x: Tensor) -> Tensor:
    """Return tokens (N, ...) as places in a table, a row each."""
    return x.reshape(len(x), math.prod(x.shape[1:])).long()


class PerKey(Representation):
    """Moves each entry of a dictionary by its own representation of the one group.

    Args:
        group: the group.
        keys: a representation a key.

    >>> from equirl import cyclic
    >>> rep = PerKey(cyclic(2), {"speed": Permutation(cyclic(2), [[0, 1], [1, 0]]), "time": Trivial(cyclic(2))})
    >>> rep(1, {"speed": torch.tensor([[1, 2]]), "time": torch.tensor([[7]])})
    {'speed': tensor([[2, 1]]), 'time': tensor([[7]])}
    """

    kind = "per_key"

    def __init__(self, group: Group, keys: Mapping[str, Representation]) -> None:
        super().__init__(group)
        self.keys = dict(keys)
        for key, rep in self.keys.items():
            if isinstance(rep, PerKey):
                raise UserError(f"key {key!r} carries {rep!r}: expected no dictionary in a dictionary")
            if rep.group != group:
                raise UserError(f"key {key!r} carries a representation of {rep.group}: expected one of {group}")

    @classmethod
    def from_parameters(cls, group: Group, parameters: Mapping[str, Any]) -> PerKey:
        keys = parameters.get("keys")
        if not isinstance(keys, Mapping):
            raise UserError(f"keys {keys!r}: expected a mapping from each key to its representation")
        return cls(group, {key: Representation.from_data(group, data) for key, data in keys.items()})

    def along(self, group: Group, elements: Sequence[int]) -> PerKey:
        return PerKey(group, {key: rep.along(group, elements) for key, rep in self.keys.items()})

    def _get(self, x: Mapping[str, Tensor]) -> list[tuple[str, Representation, Tensor]]:
        if not isinstance(x, Mapping) or set(x) != set(self.keys):
            got = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise UserError(f"{self!r} got {got}: expected a dictionary with the keys {sorted(self.keys)}")
        return [(key, self.keys[key], value) for key, value in x.items()]

    def __call__(self, g: int | Tensor, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: rep(g, value) for key, rep, value in self._get(x)}

    def orbit(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: rep.orbit(value) for key, rep, value in self._get(x)}

    def undo(self, ys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: rep.undo(value) for key, rep, value in self._get(ys)}

    def check_shape(self, shape: Sequence[int]) -> None:
        raise UserError(f"{self!r} acts on dictionaries: expected a Dict space, got shape {tuple(shape)}")

    def is_identity(self, g: int) -> bool:
        return all(rep.is_identity(g) for rep in self.keys.values())

    def stacked(self, k: int) -> PerKey:
        return PerKey(self.group, {key: rep.stacked(k) for key, rep in self.keys.items()})

    def describe(self, g: int) -> str:
        return "; ".join(f"{key}: {rep.describe(g)}" for key, rep in self.keys.items())

    def parameters(self) -> dict[str, Any]:
        return {"keys": {key: rep.to_data() for key, rep in self.keys.items()}}

    def __repr__(self) -> str:
        return f"PerKey({self.group}, keys={sorted(self.keys)})"
