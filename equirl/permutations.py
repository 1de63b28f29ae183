"""Permutations of a vector's entries, with changes of sign, about any centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from equirl._representation import Index, Indexed, centre_of, cycles, permutations_of, rows_of
from equirl.errors import UserError
from equirl.groups import Group


class SignedPermutation(Indexed):
    """Permutes the last axis and changes signs: rep(g, x)[..., p_g[i]] = s_g[i] x[..., i].

    About a centre c, which all elements leave as it is, rep(g, x)[..., p_g[i]] = c[p_g[i]] + s_g[i] (x[..., i] - c[i]).

    Args:
        group: the group.
        indices: p_g, of shape (G, size).
        signs: s_g, of shape (G, size), each -1 or 1.
        centre: c, of shape (size,), in the units of x; 0 where left out. Entries that only ever move between equal
            centres, without a change of sign, have none: theirs counts as 0.

    Raises:
        UserError: a row is no permutation, a sign is not -1 or 1, the centre is not `size` finite numbers, or the rows
            do not multiply as the group does. When moving: an unsigned data type whose sign changes, or an integer one
            that would be moved by a fraction.

    >>> import torch
    >>> from equirl import cyclic
    >>> mirror = SignedPermutation(cyclic(2), [[0, 1], [0, 1]], [[1, 1], [-1, -1]])
    >>> mirror(1, torch.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    >>> about = SignedPermutation(cyclic(2), [[0, 1], [0, 1]], [[1, 1], [-1, -1]], centre=[5, 0])
    >>> about(1, torch.tensor([1.0, -2.0])), about.describe(1)
    (tensor([9., 2.]), 'reflect 0 about 5, negate 1')
    """

    kind = "signed_permutation"
    per_element = ("indices", "signs")

    def __init__(
        self, group: Group, indices: ArrayLike, signs: ArrayLike | None = None, centre: ArrayLike | None = None
    ) -> None:
        super().__init__(group)
        self.indices = permutations_of(group, "indices", indices)
        self.signs = np.ones_like(self.indices) if signs is None else rows_of(group, "signs", signs)
        self.size = self.indices.shape[1]
        if self.signs.shape != self.indices.shape or not (np.abs(self.signs) == 1).all():
            raise UserError(f"signs {self.signs.tolist()}: expected -1 or 1 for each of the {self.size} entries")
        self._check_law((self.size,))
        self.centre = None if centre is None else centre_of(centre, self.size)
        if self.centre is not None:
            source, turned = self._table((self.size,))
            offsets = self.centre - (1 if turned is None else turned) * self.centre[source]
            moved = offsets.any(axis=0)
            self.offsets = offsets if moved.any() else None
            self.centre = np.where(moved, self.centre, 0.0) if moved.any() else None

    def _table(self, shape: tuple[int, ...]) -> tuple[Index, Index | None]:
        source = np.argsort(self.indices, axis=1)
        signs = np.take_along_axis(self.signs, source, axis=1)
        return source, (None if (signs == 1).all() else signs)

    def check_shape(self, shape: Sequence[int]) -> None:
        last = shape[-1] if len(shape) else 0
        if last != self.size:
            stack = f"; for {last // self.size} stacked frames use symmetry.stacked({last // self.size})"
            hint = stack if last > self.size and last % self.size == 0 else ""
            raise UserError(f"the symmetry {self!r} acts on {self.size} entries, got shape {tuple(shape)}{hint}")

    def is_identity(self, g: int) -> bool:
        return bool((self.indices[g] == np.arange(self.size)).all() and (self.signs[g] == 1).all())

    def stacked(self, k: int) -> SignedPermutation:
        blocks = np.arange(k)[:, None] * self.size
        indices = (self.indices[:, None, :] + blocks).reshape(len(self.group), -1)
        centre = None if self.centre is None else np.tile(self.centre, k)
        return SignedPermutation(self.group, indices, np.tile(self.signs, k), centre)

    def describe(self, g: int) -> str:
        done: dict[tuple[str, str], list[str]] = {}
        for i, sign in enumerate(self.signs[g]):
            offset = 0.0 if self.offsets is None else float(self.offsets[g, self.indices[g, i]])
            if sign < 0:
                deed = ("reflect", f" about {offset / 2:.3g}") if offset else ("negate", "")
                done.setdefault(deed, []).append(str(i))
            elif offset:
                done.setdefault(("shift", f" by {offset:.3g}"), []).append(str(i))
        words = [f"{verb} {' '.join(entries)}{rest}" for (verb, rest), entries in done.items()]
        moved = cycles(self.indices[g])
        if not words:
            return moved
        return ", ".join(words) + ("" if moved == "identity" else f", then {moved}")

    def parameters(self) -> dict[str, Any]:
        data = {"indices": self.indices.tolist(), "signs": self.signs.tolist()}
        return data if self.centre is None else {**data, "centre": self.centre.tolist()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group}, size={self.size})"


class Permutation(SignedPermutation):
    """Permutes the last axis: rep(g, q)[..., p_g[a]] = q[..., a].

    Args:
        group: the group.
        indices: p_g, of shape (G, size).

    >>> import torch
    >>> from equirl import cyclic
    >>> turn = Permutation(cyclic(4), [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]])
    >>> turn(1, torch.tensor([10, 11, 12, 13]))
    tensor([13, 10, 11, 12])
    """

    kind = "permutation"

    def __init__(self, group: Group, indices: ArrayLike) -> None:
        super().__init__(group, indices)

    @classmethod
    def regular(cls, group: Group) -> Permutation:
        """Return the group acting on itself: p_g[h] = g * h."""
        return cls(group, group.table)

    def stacked(self, k: int) -> Permutation:
        return Permutation(self.group, super().stacked(k).indices)

    def parameters(self) -> dict[str, Any]:
        return {"indices": self.indices.tolist()}
