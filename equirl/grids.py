"""Turns and mirrors of pictures, with what real observations add: channels, gauges, toroidal axes, layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equirl._representation import Index, Indexed, cycles, permutations_of
from equirl.errors import UserError, unknown
from equirl.groups import Group, cyclic, dihedral, whole_numbers

GRID_MAPS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "identity": lambda a: a,
    "rot90": lambda a: np.rot90(a, 1, (-2, -1)),
    "rot180": lambda a: np.rot90(a, 2, (-2, -1)),
    "rot270": lambda a: np.rot90(a, 3, (-2, -1)),
    "flip_x": lambda a: a[..., ::-1],
    "flip_y": lambda a: a[..., ::-1, :],
    "transpose": lambda a: a.swapaxes(-2, -1),
    "antitranspose": lambda a: np.rot90(a.swapaxes(-2, -1), 2, (-2, -1)),
}
"""The eight maps of a square picture: rot90 turns counter-clockwise as seen, flip_x mirrors left-right."""

_SWAP_AXES = ("rot90", "rot270", "transpose", "antitranspose")
_REVERSE_Y, _REVERSE_X = ("flip_y", "rot180"), ("flip_x", "rot180")


_PROBE = np.arange(9).reshape(3, 3)
_NAME_OF = {move(_PROBE).tobytes(): name for name, move in GRID_MAPS.items()}


def composed(later: str, earlier: str) -> str:
    """Return the name of the map that does `earlier` and then `later`.

    >>> composed("rot90", "rot180")
    'rot270'
    """
    return _NAME_OF[GRID_MAPS[later](GRID_MAPS[earlier](_PROBE)).tobytes()]


class Grid(Indexed):
    """Turns and mirrors pictures: rep(g, x)[p_g[c], m_g(i, j)] = x[c, i, j].

    Args:
        group: the group; C4 turns by quarters and D4 turns and mirrors (s is flip_x) without further arguments.
        maps: a name from `GRID_MAPS` for each element, needed for any other group.
        channels: p_g, of shape (G, C), where elements also permute the channels.
        fixed: channels that the maps leave alone (gauges, for instance).
        shift: (rows, columns): after a map that mirrors them, toroidal rows or columns move on by so many; no map may
            then swap rows with columns.
        layout: ``"CHW"``, the last two axes being the picture (any axes may lead where `channels` and `fixed` are not
            given), or ``"HWC"``.

    Raises:
        UserError: an unknown map, or maps that do not multiply as the group does.

    >>> import torch
    >>> turn = Grid(cyclic(4))
    >>> turn(1, torch.tensor([[[1, 2], [3, 4]]]))
    tensor([[[2, 4],
             [1, 3]]])
    """

    kind = "grid"
    per_element = ("maps", "channels")

    def __init__(
        self,
        group: Group,
        maps: Sequence[str] | None = None,
        channels: ArrayLike | None = None,
        fixed: Sequence[int] = (),
        shift: Sequence[int] = (0, 0),
        layout: str = "CHW",
    ) -> None:
        super().__init__(group)
        if maps is None and group not in _DEFAULT_MAPS:
            raise UserError(
                f"Grid({group}) has no default: expected maps=, a name for each of its {len(group)} elements, "
                f"among {', '.join(GRID_MAPS)}"
            )
        self.maps = _DEFAULT_MAPS[group] if maps is None else tuple(maps)
        for name in self.maps:
            if name not in GRID_MAPS:
                raise unknown("grid map", name, GRID_MAPS)
        if len(self.maps) != len(group):
            raise UserError(f"{len(self.maps)} grid maps for {group}: expected {len(group)}, one an element")
        if layout not in ("CHW", "HWC"):
            raise unknown("layout", layout, ("CHW", "HWC"))
        self.channels = None if channels is None else permutations_of(group, "channels", channels)
        self.fixed = tuple(sorted(set(whole_numbers("fixed", fixed).ravel().tolist())))
        count = None if self.channels is None else self.channels.shape[1]
        if self.fixed and (self.fixed[0] < 0 or (count is not None and self.fixed[-1] >= count)):
            last = "" if count is None else f" to {count - 1}"
            raise UserError(f"fixed {list(self.fixed)}: expected channels from 0{last}")
        self.shift: tuple[int, ...] = tuple(whole_numbers("shift", shift).ravel().tolist())
        if len(self.shift) != 2:
            raise UserError(f"shift {list(self.shift)}: expected (rows, columns)")
        self._turning = next((name for name in self.maps if name in _SWAP_AXES), None)
        if self._turning and any(self.shift):
            raise UserError(f"shift {self.shift} with {self._turning}: expected maps that keep rows and columns apart")
        self.layout = layout
        self.rank = 2 if layout == "CHW" and self.channels is None and not self.fixed else 3
        self._check_law(self._probe())

    def _probe(self) -> tuple[int, ...]:
        """Return the shape of a small picture on which different maps differ."""
        count = max(self.fixed, default=0) + 2 if self.channels is None else self.channels.shape[1]
        return ((count, 5, 5) if self.layout == "CHW" else (5, 5, count))[-self.rank :]

    def _table(self, shape: tuple[int, ...]) -> tuple[Index, Index | None]:
        picture = np.arange(np.prod(shape)).reshape(shape)
        return np.stack([self._moved_picture(picture, g).ravel() for g in range(len(self.group))]), None

    def _moved_picture(self, picture: NDArray[Any], g: int) -> NDArray[Any]:
        name, hwc = self.maps[g], self.layout == "HWC"
        before = np.moveaxis(picture, -1, 0) if hwc else picture
        after = GRID_MAPS[name](before).copy()
        turned_y, turned_x = name in _REVERSE_Y, name in _REVERSE_X
        after = np.roll(after, (self.shift[0] * turned_y, self.shift[1] * turned_x), (-2, -1))
        if self.fixed:
            after[list(self.fixed)] = before[list(self.fixed)]
        if self.channels is not None:
            after = after[np.argsort(self.channels[g])]
        return np.moveaxis(after, 0, -1) if hwc else after

    def check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) < max(self.rank, 2):
            raise UserError(f"{self!r} acts on {self.layout} pictures: got shape {tuple(shape)}")
        (*_, height, width) = shape if self.layout == "CHW" else shape[-3:-1]
        count = shape[-3 if self.layout == "CHW" else -1] if self.rank == 3 else None
        if self._turning and height != width:
            raise UserError(
                f"{self!r} has {self._turning}, which needs a square picture: got shape {tuple(shape)} "
                f"({height} x {width}); crop or pool it, or use a group of flips"
            )
        if self.channels is not None and count != self.channels.shape[1]:
            raise UserError(f"{self!r} permutes {self.channels.shape[1]} channels: got shape {tuple(shape)}")
        if count is not None and max(self.fixed, default=0) >= count:
            raise UserError(f"{self!r} leaves channels {self.fixed} fixed: got shape {tuple(shape)} with {count}")

    def in_layout(self, layout: str) -> Grid:
        """Return the same turns and mirrors of pictures in another layout, ``"CHW"`` or ``"HWC"``."""
        if layout == self.layout:
            return self
        return Grid(self.group, self.maps, self.channels, self.fixed, self.shift, layout)

    def is_identity(self, g: int) -> bool:
        index, _ = self._table(self._probe())
        return bool((index[g] == index[0]).all())

    def stacked(self, k: int) -> Grid:
        if self.channels is None and not self.fixed:
            return self
        if self.channels is None:
            raise UserError(f"{self!r} cannot be stacked without its number of channels: give channels= as well")
        blocks = np.arange(k)[:, None] * self.channels.shape[1]
        channels = (self.channels[:, None, :] + blocks).reshape(len(self.group), -1)
        fixed = [int(c + block) for (block,) in blocks for c in self.fixed]
        return Grid(self.group, self.maps, channels, fixed, self.shift, self.layout)

    def describe(self, g: int) -> str:
        moved = "" if self.channels is None else cycles(self.channels[g])
        return self.maps[g] + (f", channels {moved}" if moved not in ("", "identity") else "")

    def parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = {"maps": list(self.maps)}
        if self.channels is not None:
            data["channels"] = self.channels.tolist()
        if self.fixed:
            data["fixed"] = list(self.fixed)
        if self.shift != (0, 0):
            data["shift"] = list(self.shift)
        if self.layout != "CHW":
            data["layout"] = self.layout
        return data

    def __repr__(self) -> str:
        return f"Grid({self.group}: {', '.join(self.maps)})"


_DEFAULT_MAPS: dict[Group, tuple[str, ...]] = {
    cyclic(1): ("identity",),
    cyclic(4): ("identity", "rot90", "rot180", "rot270"),
    dihedral(4): ("identity", "rot90", "rot180", "rot270", "flip_x", "transpose", "flip_y", "antitranspose"),
}
