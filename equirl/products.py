"""Products of groups: representations of each factor put together, and a group taken apart into its factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl._representation import Representation
from equirl.errors import UserError
from equirl.grids import Grid, composed
from equirl.groups import Group, group_named
from equirl.permutations import Permutation, SignedPermutation
from equirl.representations import Matrix, PerKey, Tokens, Trivial


def product(first: Representation, second: Representation) -> Representation:
    """Return the representation of the product group in which each factor acts as before: (g, h) x = g (h x).

    Args:
        first: of the factor whose elements are g.
        second: of the factor whose elements are h.

    Raises:
        UserError: some g and h do not commute, g h x != h g x, or the two act on different tensors.

    >>> from equirl import cyclic
    >>> product(Grid(cyclic(2), ["identity", "flip_x"]), Grid(cyclic(2), ["identity", "flip_y"]))
    Grid(C2xC2: identity, flip_y, flip_x, rot180)
    """
    group, n, m = first.group * second.group, len(first.group), len(second.group)
    later = first.along(group, [g for g in range(n) for _ in range(m)])
    earlier = second.along(group, [h for _ in range(n) for h in range(m)])
    return _both(later, earlier, f"{first!r} and {second!r}")


def _both(later: Representation, earlier: Representation, what: str) -> Representation:
    """Return the representation that moves x by `earlier` and then by `later`, both of one group."""
    if isinstance(earlier, Trivial):
        return later
    if isinstance(later, Trivial):
        return earlier
    if isinstance(later, PerKey) and isinstance(earlier, PerKey) and later.keys.keys() == earlier.keys.keys():
        parts = {key: _both(rep, earlier.keys[key], what) for key, rep in later.keys.items()}
        return PerKey(later.group, parts)
    make = _composition(later, earlier)
    if make is None:
        raise UserError(f"{what}: expected two representations of one kind that act on the same tensors")
    try:
        return make()
    except UserError as error:
        raise UserError(f"{what} do not commute: {error}") from None


def _composition(later: Representation, earlier: Representation) -> Callable[[], Representation] | None:
    """Return what makes the composition of two representations of one kind, None where they do not fit."""
    group = later.group
    match later, earlier:
        case Grid(), Grid() if _options(later) == _options(earlier):
            names = [composed(*pair) for pair in zip(later.maps, earlier.maps, strict=True)]
            if later.channels is None or earlier.channels is None:
                channels = earlier.channels if later.channels is None else later.channels
            elif later.channels.shape == earlier.channels.shape:
                channels = _after(later.channels, earlier.channels)
            else:
                return None
            return partial(Grid, group, names, channels, *_options(later))
        case Permutation(), Permutation() if later.size == earlier.size:
            return partial(Permutation, group, _after(later.indices, earlier.indices))
        case SignedPermutation(), SignedPermutation() if later.size == earlier.size:
            signs = _after(later.signs, earlier.indices) * earlier.signs
            indices, one, other = _after(later.indices, earlier.indices), _centre(later), _centre(earlier)
            centre = np.where(one != 0, one, other)
            for each in (later, earlier):  # one may be still where the other moves, but not move about another point
                if not np.array_equal(
                    _centre(SignedPermutation(group, each.indices, each.signs, centre)), _centre(each)
                ):
                    return None
            return partial(SignedPermutation, group, indices, signs, centre)
        case Tokens(), Tokens() if later.logits.size == earlier.logits.size:
            return partial(Tokens, group, _after(later.logits.indices, earlier.logits.indices))
        case Matrix(), Matrix() if later.size == earlier.size:
            return partial(Matrix, group, later.matrices @ earlier.matrices)
    return None


def _after(later: NDArray[np.int64], earlier: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return row by row what `later` says of where `earlier` leads."""
    return np.take_along_axis(later, earlier, axis=1)


def _centre(rep: SignedPermutation) -> NDArray[np.float64]:
    return np.zeros(rep.size) if rep.centre is None else rep.centre


def _options(rep: Grid) -> tuple[Any, ...]:
    return rep.fixed, rep.shift, rep.layout


class Factors:
    """A group taken apart: each element is one product g_1 ... g_N of commuting elements, one of each factor.

    Args:
        group: the group.
        elements: of each factor, the identity first; by default those of a product such as ``cyclic(2) * cyclic(2)``,
            and the whole group where it is none.

    Raises:
        UserError: elements that form no subgroup, factors that do not commute, or whose products are not all elements.

    >>> from equirl import cyclic, symmetric
    >>> Factors(cyclic(4) * symmetric(3)).orders
    (4, 6)
    """

    def __init__(self, group: Group, elements: Sequence[Sequence[int]] | None = None) -> None:
        self.group = group
        if elements is None:
            elements = _of_name(group)
        if not all(isinstance(each, Sequence) and len(each) and not isinstance(each, str) for each in elements):
            raise UserError(f"factors {elements!r}: expected lists of elements of {group}, one a factor")
        self.elements = tuple(tuple(map(int, each)) for each in elements)
        self.orders = tuple(len(group.subgroup(each)) for each in self.elements)
        self._check()
        self.table = self._products()
        if sorted(self.table.ravel().tolist()) != list(range(len(group))):
            raise UserError(
                f"factors of orders {self.orders}: expected their products to be {group}'s elements, each once"
            )

    def _check(self) -> None:
        table, names = self.group.table, self.group.names
        for i, one in enumerate(self.elements):
            for other in self.elements[i + 1 :]:
                pair = next(((g, h) for g in one for h in other if table[g, h] != table[h, g]), None)
                if pair is not None:
                    said = " and ".join(names[g] for g in pair)
                    raise UserError(f"factors of {self.group} that do not commute: {said}; expected factors that do")

    def _products(self) -> NDArray[np.int64]:
        """Return the products of one element each, an axis a factor."""
        found = np.zeros((), dtype=np.int64)
        for each in self.elements:
            found = self.group.table[found[..., None], np.array(each)]
        return found

    def split(self, chosen: Sequence[int]) -> NDArray[np.int64]:
        """Return the elements k h, shape (K, H), of products k of some factors and h of all others.

        >>> from equirl import cyclic
        >>> Factors(cyclic(2) * cyclic(2)).split([1])
        array([[0, 2],
               [1, 3]])
        """
        rest = [i for i in range(len(self.orders)) if i not in chosen]
        count = math.prod(self.orders[i] for i in chosen)
        return self.table.transpose(*chosen, *rest).reshape(count, -1)


def _of_name(group: Group) -> list[list[int]]:
    """Return the factors that a name such as C4xS3 says, or the whole group."""
    names = group.name.split("x")
    try:
        named = group_named(group.name) == group
    except UserError:
        named = False
    if not named:
        return [list(range(len(group)))]
    places = np.arange(len(group)).reshape([len(group_named(name)) for name in names])
    found = [np.moveaxis(places, axis, 0).reshape(order, -1)[:, 0].tolist() for axis, order in enumerate(places.shape)]
    return [each for each in found if len(each) > 1] or [[0]]
