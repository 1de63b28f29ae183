"""What equivariant layers are made of: small weights that learn, expanded ones that act, characters of abelian groups.

A layer that commutes with the group has rows that are images of one another, so it learns one of them and expands it
by an index table. Constant tables are no parameters and never saved.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equirl._representation import Indexed, Representation, eager
from equirl.errors import UserError
from equirl.groups import Group
from equirl.representations import Matrix, Trivial


class Tables(nn.Module):
    """A module with constant tables that stay exact: a change of data type starts from float64 again."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, NDArray[np.float64]] = {}

    def tabulate(self, name: str, array: NDArray[Any]) -> None:
        """Hold an array as a buffer that is not saved; one of floats takes the data type of the module."""
        whole = np.issubdtype(array.dtype, np.integer)
        if not whole:
            self._exact[name] = array
        dtype = torch.int64 if whole else torch.get_default_dtype()
        self.register_buffer(name, torch.as_tensor(array, dtype=dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tables:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, array in self._exact.items():
            cast: Tensor = getattr(self, name)
            setattr(self, name, torch.as_tensor(array, dtype=cast.dtype, device=cast.device))
        return self


class Orbit(Tables):
    """The orbit of rows under the linear part of a representation: (C, n) -> (C * G, n), row (c, g) being rep(g) w_c.

    Args:
        rep: how the group moves samples, but no dictionaries or tokens.
        shape: of a sample, n entries in all.
        dual: move by rep(g)^-T instead, as a functional w moves: (g w) . (g x) = w . x.

    Raises:
        UserError: a representation that has no such tables, or that does not act on the shape.
    """

    index: Tensor
    signs: Tensor
    matrices: Tensor

    def __init__(self, rep: Representation, shape: tuple[int, ...], dual: bool = False) -> None:
        super().__init__()
        rep.check_shape(shape)
        self.order, self.size = len(rep.group), math.prod(shape)
        self.signed = False
        self.mixes = isinstance(rep, Matrix)
        if isinstance(rep, Matrix):
            leading = np.eye(self.size // rep.size)
            rows = rep.matrices[rep.group.inverses] if dual else rep.matrices.swapaxes(1, 2)
            blocks = np.stack([np.kron(leading, row) for row in rows])
            self.tabulate("matrices", blocks.swapaxes(0, 1).reshape(self.size, -1))
            return
        if isinstance(rep, Indexed):
            source, signs = _sources(rep, shape)
        elif isinstance(rep, Trivial):
            source, signs = np.tile(np.arange(self.size), (self.order, 1)), None
        else:
            raise UserError(
                f"{rep!r} in an equivariant layer: expected vectors or pictures, moved by one representation"
            )
        self.tabulate("index", source.ravel())
        if signs is not None:
            self.signed = True
            self.tabulate("signs", signs.ravel().astype(np.float64))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the images of rows (C, n), of shape (C * G, n)."""
        if self.mixes:
            moved = rows @ self.matrices
        else:
            moved = rows.index_select(1, self.index)
            moved = moved * self.signs if self.signed else moved
        return moved.view(-1, self.size)


def _sources(rep: Indexed, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return source indices and signs of all entries, where the representation moves only the last axes."""
    source, signs = rep._table(shape[-rep.rank :])
    copies, entries = math.prod(shape[: -rep.rank]), source.shape[1]
    spread = source[:, None, :] + entries * np.arange(copies)[:, None]
    signs = None if signs is None else np.tile(signs, copies)
    return spread.reshape(len(source), -1), signs


def centre_of_samples(rep: Representation, size: int) -> NDArray[np.float64] | None:
    """Return the point about which signs change, repeated over `size` entries; None where it is 0."""
    centre = getattr(rep, "centre", None)
    return None if centre is None else np.tile(centre, size // len(centre))


class Expanded(Tables, ABC):
    """A layer that learns a small weight and bias and acts by larger ones, which are images of these.

    Both start as torch's own layers do, by the fan-in of the expanded weight. What they expand to is kept while no
    gradients are recorded and not a bit of either has changed; SB3 updates target networks through ``.data``, which a
    tensor's version does not count, so that the bits themselves are compared. On other devices than the CPU the
    comparison would wait for the device: there they are expanded each time.
    """

    def __init__(self, shape: tuple[int, ...], entries: int, fan_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(entries))
        self.fan_in = fan_in
        self._kept: _Kept | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly, as `torch.nn.Linear` and `torch.nn.Conv2d` do."""
        gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
        bound = math.sqrt(3.0) * (gain / math.sqrt(self.fan_in))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -1 / math.sqrt(self.fan_in), 1 / math.sqrt(self.fan_in))

    @abstractmethod
    def expand(self) -> tuple[Tensor, ...]:
        """Return what weight and bias expand to."""

    def expanded(self) -> tuple[Tensor, ...]:
        """Return what weight and bias expand to, computed anew only where that matters."""
        kept, weight, bias = self._kept, self.weight, self.bias
        if torch.is_grad_enabled() or not eager(weight.device.type):
            return self.expand()
        if kept is None or not (kept.weight.holds(weight) and kept.bias.holds(bias)):
            made = self.expand()
            if not weight.is_cpu or weight.is_inference() or bias.is_inference():
                return made
            kept = self._kept = _Kept(_Snapshot(weight), _Snapshot(bias), made)
        return kept.expanded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class acting(AbstractContextManager[None]):
    """While actions are chosen: layers find out faster that their weights are as they were.

    Everywhere else they compare every bit, since SB3 updates target networks through ``.data``, which the version of a
    tensor does not count, and neither does it count fused optimizers' steps. Inside, they compare the version and some
    of the bits, which tells whatever writes to whole tensors; a write through ``.data`` to a few entries alone is not
    seen. The policies of equirl stay outside.

    >>> with torch.inference_mode(), acting():
    ...     pass
    """

    depth = threading.local()

    def __enter__(self) -> None:
        self.depth.value = getattr(self.depth, "value", 0) + 1

    def __exit__(self, *_: object) -> None:
        self.depth.value -= 1


class _Snapshot:
    """A copy of a tensor, beside the memory that it was taken of, which no other tensor can be given meanwhile."""

    def __init__(self, of: Tensor) -> None:
        self.pointer, self.strides, self.version = of.data_ptr(), of.stride(), of._version
        self.memory = of.detach()
        if of.dtype == torch.float32 and of.is_contiguous() and not (of.numel() % 2 or of.storage_offset() % 2):
            self.memory = self.memory.view(-1).view(torch.int64)  # wide words are compared twice as fast
        self.copy = self.memory.clone()
        if of.is_contiguous():
            flat = self.memory.view(-1)
            self.few = flat[:: len(flat) // 61 | 1]  # odd, so as to visit rows and columns in turn
        else:
            self.few = self.memory
        self.few_copy = self.few.clone()

    def holds(self, now: Tensor) -> bool:
        """Return whether a tensor is in the same memory, and that as it was."""
        if now.data_ptr() != self.pointer or now.stride() != self.strides or now._version != self.version:
            return False
        if getattr(acting.depth, "value", 0):
            return torch.equal(self.few, self.few_copy)
        return torch.equal(self.memory, self.copy)


class _Kept(NamedTuple):
    weight: _Snapshot
    bias: _Snapshot
    expanded: tuple[Tensor, ...]


def real_characters(group: Group) -> tuple[NDArray[np.float64], int]:
    """Return an orthogonal basis (G, G) of rows in which translations of an abelian group are blocks, and their split.

    The first rows are its real characters, whose number is returned too; then come pairs of rows, the real and the
    imaginary part of a character and hence of its conjugate, all scaled to length 1.

    Raises:
        UserError: the group is not abelian.

    >>> from equirl import cyclic
    >>> rows, real = real_characters(cyclic(4))
    >>> (2 * rows[:real]).round().astype(int).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1]]
    """
    if not group.is_abelian:
        raise UserError(f"characters of {group}: expected an abelian group")
    # A character is exp(2 pi i q) with fractions q, one an element; each new generator splits those found so far.
    found: list[dict[int, Fraction]] = [{0: Fraction(0)}]
    for generator in range(1, len(group)):
        if generator in found[0]:
            continue
        powers = [0]
        while (power := group.product(powers[-1], generator)) not in found[0]:
            powers.append(power)
        roots = [((q[power] + k) / len(powers), q) for q in found for k in range(len(powers))]
        found = [
            {group.product(h, p): (part + root * k) % 1 for k, p in enumerate(powers) for h, part in q.items()}
            for root, q in roots
        ]
    turns = sorted([q[g] for g in range(len(group))] for q in found)
    real = [q for q in turns if all((2 * part).denominator == 1 for part in q)]
    pairs = [q for q in turns if q < [-part % 1 for part in q]]
    angles = 2 * np.pi * np.array([[float(part) for part in q] for q in real + pairs])
    waves = [np.cos(angles[: len(real)]), *(part for a in angles[len(real) :] for part in (np.cos([a]), np.sin([a])))]
    rows = np.concatenate(waves)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), len(real)
