"""Finite groups as values: a product table, inverses and names, in NumPy alone.

Elements are the integers ``0..n-1`` and 0 is the identity. ``product(g, h)`` is the element that acts as h first and
then g, so that a representation obeys ``rep(g, rep(h, x)) == rep(group.product(g, h), x)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from equirl.errors import UserError

T = TypeVar("T", bound=Hashable)

MAX_ORDER = 1024
"""The most elements that a group may have: every view of an input costs a pass through the network."""


class Group:
    """A finite group given by its product table, checked at construction.

    Args:
        table: integers of shape (n, n); ``table[g, h]`` is g * h, h acting first; element 0 is the identity.
        names: one short name an element, used in tables and TensorBoard tags.
        name: what the group is called, for instance ``"C4"``.

    Raises:
        UserError: the table is not square, not associative, lacks an identity or an inverse, or the names do not fit.

    >>> swap = Group([[0, 1], [1, 0]], names=["e", "s"], name="C2")
    >>> swap.product(1, 1), swap.inverse(1), swap == cyclic(2)
    (0, 1, True)
    """

    def __init__(self, table: Any, names: Sequence[str] | None = None, name: str = "") -> None:
        array = whole_numbers("a group table", table)
        n = len(array) if array.ndim else 0
        if array.shape != (n, n) or n == 0:
            raise UserError(f"a group table has shape {array.shape}: expected (n, n) with n at least 1")
        _check_order(n)
        if not (np.sort(array, axis=0) == np.arange(n)[:, None]).all() or not (array[0] == np.arange(n)).all():
            raise UserError("not a group table: expected row 0 to be the identity and every column a permutation")
        if not all((array[row] == row[array]).all() for row in array):
            raise UserError("not a group table: (g * h) * k and g * (h * k) differ for some elements")
        self.table: NDArray[np.int64] = array
        self.inverses: NDArray[np.int64] = np.argmin(array, axis=1)  # the h with g * h = 0
        for part in (self.table, self.inverses):
            part.setflags(write=False)
        self.names = tuple(map(str, names)) if names is not None else ("e", *(f"g{i}" for i in range(1, n)))
        self.name = name or f"G{n}"
        if len(self.names) != n or len(set(self.names)) != n:
            raise UserError(f"names {', '.join(self.names)} for {n} elements: expected one an element, all different")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.table.tobytes())

    def product(self, g: int, h: int) -> int:
        """Return g * h, the element that acts as h and then as g."""
        return int(self.table[g, h])

    def inverse(self, g: int) -> int:
        """Return the element that undoes g."""
        return int(self.inverses[g])

    def element_order(self, g: int) -> int:
        """Return the smallest k >= 1 with g^k the identity."""
        order, power = 1, g
        while power != 0:
            order, power = order + 1, self.product(power, g)
        return order

    @cached_property
    def is_abelian(self) -> bool:
        """Whether g * h = h * g for all elements."""
        return bool((self.table == self.table.T).all())

    def __mul__(self, other: Group) -> Group:
        """Return the direct product; the pair (g, h) is element ``g * len(other) + h``.

        >>> (cyclic(2) * cyclic(3)).name, len(cyclic(2) * cyclic(3))
        ('C2xC3', 6)
        """
        n, m = len(self), len(other)
        _check_order(n * m)
        table = self.table[:, None, :, None] * m + other.table[None, :, None, :]
        names = [f"({a},{b})" for a in self.names for b in other.names]
        return Group(table.reshape(n * m, n * m), names, f"{self.name}x{other.name}")

    def subgroup(self, elements: Sequence[int]) -> Group:
        """Return the group that some elements form, in this order, the identity first.

        >>> dihedral(4).subgroup([0, 1, 2, 3]), cyclic(6).subgroup([0, 3]).names
        (C4, ('e', 'r3'))
        """
        place = {int(g): i for i, g in enumerate(elements)}
        if len(place) != len(elements) or not place or elements[0] != 0 or not place.keys() <= set(range(len(self))):
            raise UserError(f"elements {list(elements)}: expected different ones of {self}, 0, the identity, first")
        products = self.table[np.ix_(elements, elements)]
        if not np.isin(products, elements).all():
            raise UserError(f"elements {list(elements)} of {self}: expected a subgroup, which holds all its products")
        table = np.vectorize(place.__getitem__)(products)
        name = next((group.name for group in _standard_groups(len(place)) if np.array_equal(group.table, table)), "")
        return Group(table, [self.names[g] for g in elements], name)

    def to_data(self) -> Any:
        """Return the group as plain JSON data: its name where that says all, else its table."""
        if _is_named(self.name):
            standard = group_named(self.name)
            if standard == self and standard.names == self.names:
                return self.name
        return {"name": self.name, "names": list(self.names), "table": self.table.tolist()}

    @staticmethod
    def from_data(data: Any) -> Group:
        """Return the group that `to_data` described."""
        if isinstance(data, str):
            return group_named(data)
        if not isinstance(data, Mapping) or "table" not in data:
            raise UserError(f"group {data!r}: expected a name such as 'C4' or a mapping with a 'table'")
        names = data.get("names")
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
            raise UserError(f"names {names!r} of a group: expected a list, one an element")
        return Group(data["table"], names, str(data.get("name", "")))

    def __reduce__(self) -> Any:
        return Group, (self.table, self.names, self.name)


def trivial() -> Group:
    """Return the group of the identity alone."""
    return cyclic(1)


def cyclic(n: int) -> Group:
    """Return the rotations by multiples of 1/n turn; element k is the k-th power of the generator.

    >>> cyclic(4).names
    ('e', 'r', 'r2', 'r3')
    """
    _check_parameter("cyclic", n, MAX_ORDER)
    k = np.arange(n)
    return Group((k[:, None] + k) % n, [_power("r", i) or "e" for i in range(n)], f"C{n}")


def dihedral(n: int) -> Group:
    """Return the 2n symmetries of a regular n-gon; element k is r^k, element n + k is r^k s (s acts first).

    >>> dihedral(4).names
    ('e', 'r', 'r2', 'r3', 's', 'rs', 'r2s', 'r3s')
    """
    _check_parameter("dihedral", n, MAX_ORDER // 2)
    g = np.arange(2 * n)
    turn, mirror = g % n, g // n
    sign = 1 - 2 * mirror  # s r = r^-1 s: a mirror to the left turns the rotation on its right around
    turns = (turn[:, None] + sign[:, None] * turn[None, :]) % n
    table = turns + n * (mirror[:, None] ^ mirror[None, :])
    return Group(table, [_power("r", i % n) + ("s" if i >= n else "") or "e" for i in range(2 * n)], f"D{n}")


def symmetric(n: int) -> Group:
    """Return all n! permutations of n things in lexicographic order, named by where they send 0..n-1.

    >>> symmetric(3).names
    ('012', '021', '102', '120', '201', '210')
    """
    _check_parameter("symmetric", n, 6)
    elements = list(permutations(range(n)))
    index = {p: i for i, p in enumerate(elements)}
    table = [[index[tuple(p[i] for i in q)] for q in elements] for p in elements]
    return Group(table, ["".join(map(str, p)) for p in elements], f"S{n}")


def group_named(name: str) -> Group:
    """Return the group of a name: C<n>, D<n>, S<n>, or a product of these with ``x`` between.

    >>> len(group_named("C2xC2"))
    4
    """
    if not _is_named(name):
        raise UserError(f"unknown group {name!r}: expected C<n>, D<n>, S<n> or a product such as 'C2xC2'")
    makers: dict[str, Callable[[int], Group]] = {"C": cyclic, "D": dihedral, "S": symmetric}
    first, *rest = (makers[part[0]](int(part[1:])) for part in name.split("x"))
    for factor in rest:
        first = first * factor
    return first


def closure(
    generators: Sequence[T], compose: Callable[[T, T], T], identity: T, limit: int = MAX_ORDER
) -> tuple[list[T], Group]:
    """Return every product of the generators, identity first, and the group that they form.

    Args:
        generators: hashable transformations, each of finite order.
        compose: ``compose(g, h)`` is the transformation that does h and then g.
        identity: the transformation that does nothing.
        limit: the largest order that is accepted.

    Raises:
        UserError: more than `limit` elements.

    >>> turn = (1, 2, 0)
    >>> elements, group = closure([turn], lambda p, q: tuple(p[i] for i in q), (0, 1, 2))
    >>> elements, group
    ([(0, 1, 2), (1, 2, 0), (2, 0, 1)], C3)
    """
    letters = [letter for letter in map(chr, range(ord("a"), ord("a") + len(generators) + 1)) if letter != "e"]
    words: dict[T, str] = {identity: ""}
    frontier = [identity]
    while frontier:
        reached: list[T] = []
        for element in frontier:
            for letter, generator in zip(letters, generators, strict=False):
                longer = compose(generator, element)
                if longer not in words:
                    words[longer] = letter + words[element]
                    reached.append(longer)
        if len(words) > limit:
            raise UserError(f"the generators make more than {limit} elements: expected a finite group of symmetries")
        frontier = reached
    elements = list(words)
    index = {element: i for i, element in enumerate(elements)}
    table = [[index[compose(g, h)] for h in elements] for g in elements]
    group = Group(table, [_compressed(word) or "e" for word in words.values()])
    for standard in _standard_groups(len(group)):
        order = _isomorphism(standard, group)
        if order is not None:
            return [elements[i] for i in order], standard
    return elements, group


def whole_numbers(what: str, values: Any) -> NDArray[np.int64]:
    """Return an array of whole numbers, or raise a `UserError` that says what it was to be."""
    try:
        array = np.array(values)
    except ValueError:
        raise UserError(f"{what} has rows of different lengths: expected equal ones") from None
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what} has entries of type {array.dtype}: expected whole numbers")
    return array.astype(np.int64)


def positive(name: str, value: int) -> int:
    """Return a whole number of at least 1, or raise a `UserError` that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} {value!r}: expected a whole number of at least 1")
    return int(value)


def _is_named(name: str) -> bool:
    return re.fullmatch("[CDS][1-9][0-9]{0,3}(x[CDS][1-9][0-9]{0,3})*", name) is not None


def _power(letter: str, k: int) -> str:
    return "" if k == 0 else letter if k == 1 else f"{letter}{k}"


def _compressed(word: str) -> str:
    """Write a run of a letter as a power: aab -> a2b."""
    runs: list[tuple[str, int]] = []
    for letter in word:
        if runs and runs[-1][0] == letter:
            runs[-1] = (letter, runs[-1][1] + 1)
        else:
            runs.append((letter, 1))
    return "".join(_power(letter, count) for letter, count in runs)


def _standard_groups(n: int) -> list[Group]:
    """Return the groups of order n that have a name, for orders at which a search for one of them is instant."""
    if n > 24:
        return []
    names = [f"C{n}", *(f"C{a}xC{n // a}" for a in range(2, n) if n % a == 0 and a * a <= n)]
    names += [f"D{n // 2}"] if n % 2 == 0 and n > 4 else []
    return [group_named(name) for name in names]


def _isomorphism(source: Group, target: Group) -> list[int] | None:
    """Return where each element of `source` goes under some isomorphism to `target`, or None."""
    n = len(source)
    orders = [target.element_order(i) for i in range(n)]
    if sorted(orders) != sorted(source.element_order(i) for i in range(n)):
        return None
    generators: list[int] = []
    reached = {0}
    for g in range(n):
        if g not in reached:
            generators.append(g)
            reached = set(_extended(source, source, generators, generators) or ())
    for images in product(range(n), repeat=len(generators)):
        if all(orders[i] == source.element_order(g) for g, i in zip(generators, images, strict=True)):
            found = _extended(source, target, generators, images)
            if found is not None and sorted(found.values()) == list(range(n)):
                return [found[g] for g in range(n)]
    return None


def _extended(source: Group, target: Group, generators: Sequence[int], images: Sequence[int]) -> dict[int, int] | None:
    """Return the homomorphism that sends generators to images, on what they generate, or None where there is none."""
    found = {0: 0}
    frontier = [0]
    for element in frontier:
        for generator, image in zip(generators, images, strict=True):
            longer, there = source.product(generator, element), target.product(image, found[element])
            if found.setdefault(longer, there) != there:
                return None
            if longer not in frontier:
                frontier.append(longer)
    return found


def _check_parameter(family: str, n: int, most: int) -> None:
    if not isinstance(n, int | np.integer) or not 1 <= n <= most:
        raise UserError(f"{family}({n!r}): expected a whole number from 1 to {most}")


def _check_order(n: int) -> None:
    if n > MAX_ORDER:
        raise UserError(f"a group of {n} elements: expected at most {MAX_ORDER}")
