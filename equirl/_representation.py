"""What every representation of a group obeys, and the index tables that most of them are.

A representation ``rep`` is a value: immutable, comparable, described by plain JSON data. It obeys

    rep(g, rep(h, x)) == rep(g * h, x)          (h acts first)

and sends entry i of a permuted axis to entry ``p_g[i]``, so that ``rep(g, q)[..., p_g[a]] == q[..., a]``. Every
representation but `Matrix` moves entries of a tensor and at most changes their sign and adds an offset, so one index
table a shape holds it, and an orbit of a whole batch is one gather, whatever the data type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equirl.errors import UserError, unknown
from equirl.groups import Group, whole_numbers

Tree: TypeAlias = Tensor | dict[str, Tensor]
Index: TypeAlias = NDArray[np.int64]


class Representation(ABC):
    """One group acting on tensors of shape (B, ...), B being the batch."""

    kind: ClassVar[str]
    per_element: ClassVar[tuple[str, ...]] = ()  # those of `parameters` that are a row an element
    kinds: ClassVar[dict[str, type[Representation]]] = {}

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            Representation.kinds[cls.kind] = cls

    def __init__(self, group: Group) -> None:
        self.group = group
        self._constants: dict[Any, Any] = {}  # tables as tensors, one a shape, data type and device

    def _constant(self, key: Any, make: Callable[[], Any]) -> Any:
        if torch.compiler.is_exporting():
            return make()  # of what is no tensor with numbers
        if key not in self._constants:
            with torch.inference_mode(False):  # else what inference makes first, training could not use later
                self._constants[key] = make()
        return self._constants[key]

    def inverses(self, device: torch.device) -> Tensor:
        """Return the inverse of every element, shape (G,)."""
        made: Tensor = self._constant(device, lambda: torch.tensor(self.group.inverses.tolist(), device=device))
        return made

    @abstractmethod
    def __call__(self, g: int | Tensor, x: Any) -> Any:
        """Return x moved by the element g, or row b of x by element ``g[b]`` where g is a tensor of shape (B,)."""

    @abstractmethod
    def orbit(self, x: Any) -> Any:
        """Return every element's image of x: shape (B, ...) -> (G, B, ...), row g being ``rep(g, x)``."""

    @abstractmethod
    def undo(self, ys: Any) -> Any:
        """Return row g of ys moved by the inverse of g: shape (G, B, ...) -> (G, B, ...)."""

    @abstractmethod
    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise a `UserError` unless the representation acts on one sample of this shape (no batch)."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Return what the constructor takes beside the group, as plain JSON data."""

    @abstractmethod
    def is_identity(self, g: int) -> bool:
        """Return whether g leaves every tensor as it is."""

    @abstractmethod
    def describe(self, g: int) -> str:
        """Return in a few words what the element g does."""

    def along(self, group: Group, elements: Sequence[int]) -> Representation:
        """Return the representation of another group whose element k acts as this one's ``elements[k]`` does.

        It is one where k -> elements[k] is a homomorphism: of a subgroup into its group, of a product onto a factor.
        """
        data = self.parameters()
        rows = {name: [data[name][int(k)] for k in elements] for name in self.per_element if name in data}
        return self.from_parameters(group, data | rows)

    def __mul__(self, other: Representation) -> Representation:
        """Return the product group's representation in which each factor acts as before: (g, h) x = g (h x).

        Raises:
            UserError: some g and h do not commute, or the two act on different tensors.

        >>> from equirl import Grid, Permutation, cyclic, symmetric
        >>> (Grid(cyclic(4)) * Grid(cyclic(2), ["identity"] * 2, channels=[[0, 1], [1, 0]])).group
        C4xC2
        """
        from equirl.products import product

        return product(self, other)

    def stacked(self, k: int) -> Representation:
        """Return the representation on k frames stacked along the last axis (vectors) or the channels (images)."""
        raise UserError(f"{self!r} cannot be stacked: expected a representation on vectors or images")

    def to_data(self) -> dict[str, Any]:
        """Return the representation as plain JSON data, the group left out."""
        return {"kind": self.kind, **self.parameters()}

    @staticmethod
    def from_data(group: Group, data: Mapping[str, Any]) -> Representation:
        """Return the representation that `to_data` described.

        >>> from equirl import Permutation, cyclic
        >>> rep = Permutation(cyclic(2), [[0, 1], [1, 0]])
        >>> Representation.from_data(cyclic(2), rep.to_data()) == rep
        True
        """
        kinds = Representation.kinds
        if not isinstance(data, Mapping) or "kind" not in data:
            raise UserError(f"representation {data!r}: expected a mapping with a 'kind', one of {', '.join(kinds)}")
        if not isinstance(data["kind"], str) or data["kind"] not in kinds:
            raise unknown("kind of representation", data["kind"], kinds)
        rest = {key: value for key, value in data.items() if key != "kind"}
        try:
            return kinds[data["kind"]].from_parameters(group, rest)
        except TypeError as error:
            raise UserError(f"representation {data['kind']!r}: {error}") from None

    @classmethod
    def from_parameters(cls, group: Group, parameters: Mapping[str, Any]) -> Representation:
        """Return the representation whose `parameters` were given."""
        return cls(group, **parameters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Representation) and self.group == other.group and self.to_data() == other.to_data()

    def __hash__(self) -> int:
        return hash((self.kind, self.group))

    def __reduce__(self) -> Any:
        return Representation.from_data, (self.group, self.to_data())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group})"


def eager(device: str) -> bool:
    """Return whether tensors hold numbers of their own data types: not traced, compiled, cast or transformed."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.is_autocast_enabled(device)
        or torch._C._are_functorch_transforms_active()
    )


class Indexed(Representation):
    """Moves entries of the last `rank` axes by one gather; `_table` says from where, and with which sign."""

    rank = 1
    offsets: NDArray[np.float64] | None = None
    """What is added after the gather, of shape (G, number of entries), for those whose centre is not 0."""

    @abstractmethod
    def _table(self, shape: tuple[int, ...]) -> tuple[Index, Index | None]:
        """Return, for entries of this shape, source indices and signs, both of shape (G, number of entries)."""

    def _tables(self, x: Tensor, inverse: bool = False) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return source indices, None where no element moves any, signs in the data type of x, and offsets."""
        shape = tuple(x.shape[-self.rank :])

        def make() -> tuple[Tensor | None, Tensor | None]:
            self.check_shape(shape)
            index, signs = self._table(shape)
            order = self.group.inverses if inverse else np.arange(len(self.group))
            still = (index == np.arange(index.shape[1])).all()
            kind = x.dtype if x.is_floating_point() else torch.int8
            return (
                None if still else torch.as_tensor(index[order], device=x.device),
                None if signs is None else torch.as_tensor(signs[order], device=x.device, dtype=kind),
            )

        index, signs = self._constant((shape, x.dtype, x.device, inverse), make)
        if signs is not None and not x.is_signed():
            raise UserError(f"{self!r} changes signs: expected a signed data type, got {x.dtype}")
        if self.offsets is None:
            return index, signs, None
        return index, signs, self._constant((x.dtype, x.device, inverse), lambda: self._added(x, inverse))

    def _added(self, x: Tensor, inverse: bool) -> Tensor:
        """Return the offsets in the data type of x; adding -0 changes no number, not even a -0."""
        assert self.offsets is not None
        if not x.is_floating_point() and not (x.is_signed() and self.keeps_whole_numbers):
            kind = "signed" if self.keeps_whole_numbers else "floating"
            raise UserError(f"{self!r} moves about a centre: expected a {kind} data type, got {x.dtype}")
        rows = self.offsets[self.group.inverses] if inverse else self.offsets
        exact = torch.as_tensor(np.where(rows == 0, -0.0, rows), device=x.device)
        return (exact if x.is_floating_point() else exact.long()).to(x.dtype)

    @property
    def keeps_whole_numbers(self) -> bool:
        """Whether whole numbers stay whole, so that integer data types can be moved."""
        return self.offsets is None or not (self.offsets % 1).any()

    def __call__(self, g: int | Tensor, x: Tensor) -> Tensor:
        index, signs, offsets = self._tables(x)
        flat = x.flatten(-self.rank)
        rows = (-1, *[1] * (flat.ndim - 2), flat.shape[-1]) if isinstance(g, Tensor) else flat.shape[-1:]
        y = flat if index is None else flat.gather(-1, index[g].view(rows).expand_as(flat))
        if signs is not None:
            y = y * signs[g].view(rows)
        if offsets is not None:
            y = y + offsets[g].view(rows)
        return y.view_as(x)

    def orbit(self, x: Tensor) -> Tensor:
        return self._moved(x.expand(len(self.group), *x.shape), *self._tables(x))

    def undo(self, ys: Tensor) -> Tensor:
        return self._moved(ys, *self._tables(ys, inverse=True))

    def _moved(self, xs: Tensor, index: Tensor | None, signs: Tensor | None, offsets: Tensor | None) -> Tensor:
        flat = xs.flatten(-self.rank) if self.rank > 1 else xs
        per_row = (len(self.group), *[1] * (flat.ndim - 2), flat.shape[-1])
        ys = flat if index is None else flat.gather(-1, index.view(per_row).expand_as(flat))
        if signs is not None:
            ys = ys * signs.view(per_row)
        if offsets is not None:
            ys = ys + offsets.view(per_row)
        return ys if self.rank == 1 else ys.view(xs.shape)

    def _check_law(self, shape: tuple[int, ...]) -> None:
        """Raise unless moving by h and then by g equals moving by g * h, for all pairs."""
        index, signs = self._table(shape)
        signs = np.ones_like(index) if signs is None else signs
        for g, row in enumerate(self.group.table):
            same = (index[:, index[g]] == index[row]) & (signs[:, index[g]] * signs[g] == signs[row])
            if not same.all():
                h = int(np.argmin(same.all(axis=1)))
                names = self.group.names
                raise UserError(
                    f"not a representation of {self.group}: element {names[g]} after element {names[h]} is not "
                    f"their product {names[row[h]]}"
                )


def rows_of(group: Group, name: str, values: Any) -> Index:
    """Return whole numbers of shape (G, size), or raise a `UserError` that names them."""
    rows = whole_numbers(name, values)
    if rows.ndim != 2 or len(rows) != len(group) or not rows.size:
        raise UserError(f"{name} of shape {rows.shape}: expected ({len(group)}, size), a row an element of {group}")
    return rows


def permutations_of(group: Group, name: str, values: Any) -> Index:
    """Return permutations of shape (G, size), or raise a `UserError` that names the row that is none."""
    rows = rows_of(group, name, values)
    for row in rows:
        if sorted(row) != list(range(len(row))):
            raise UserError(f"{name} {row.tolist()}: expected a permutation, each of 0..{len(row) - 1} once")
    return rows


def centre_of(values: Any, size: int) -> NDArray[np.float64]:
    """Return a fixed point of `size` entries, or raise a `UserError` that says what it was to be.

    >>> centre_of([0.5, 0], 2)
    array([0.5, 0. ])
    """
    expected = f"expected {size} numbers, each below 1e30 in size"
    try:
        centre = np.array(values)
    except ValueError:
        raise UserError(f"centre {values!r}: {expected}") from None
    if centre.shape != (size,) or centre.dtype.kind not in "iuf" or not (np.abs(centre) < 1e30).all():
        raise UserError(f"centre {values!r}: {expected}")
    return centre.astype(np.float64)


def cycles(permutation: Sequence[int]) -> str:
    """Return a permutation in cycle notation.

    >>> cycles([0, 2, 1, 3])
    '(1 2)'
    """
    seen: set[int] = set()
    found = []
    for start in range(len(permutation)):
        cycle = []
        at = start
        while at not in seen:
            seen.add(at)
            cycle.append(str(at))
            at = int(permutation[at])
        if len(cycle) > 1:
            found.append(f"({' '.join(cycle)})")
    return "".join(found) or "identity"
