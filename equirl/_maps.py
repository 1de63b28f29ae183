"""Single transformations in plain terms, as users and catalogues write them, and how two of them compose.

A vector map is ``{"permutation": [...], "signs": [...]}`` (either may be left out) or a bare permutation; a picture map
is ``{"grid": name}``, with `channels`, `fixed`, `shift` and `layout` as in `Grid`, or a bare name; a map of a
dictionary is ``{"keys": {key: map}}``. Entry i moves to entry ``permutation[i]``, multiplied by ``signs[i]``, about 0
or about the point ``"centre": [...]``, which is the same for all generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equirl._representation import centre_of
from equirl.errors import UserError, unknown
from equirl.grids import GRID_MAPS, Grid, composed
from equirl.groups import Group, whole_numbers
from equirl.representations import PerKey, Permutation, Representation, SignedPermutation


@dataclass(frozen=True)
class VectorMap:
    """Entry i moves to entry p[i] and is multiplied by s[i], about a centre that stays (empty: about 0)."""

    permutation: tuple[int, ...]
    signs: tuple[int, ...]
    centre: tuple[float, ...] = ()

    def after(self, first: VectorMap) -> VectorMap:
        """Return the map that does `first` and then this one."""
        if len(first.permutation) != len(self.permutation):
            raise UserError(f"maps of {len(first.permutation)} and {len(self.permutation)} entries: expected one size")
        if first.centre != self.centre:
            centres = " and ".join(str(list(m.centre) or 0) for m in (first, self))
            raise UserError(f"generators about the centres {centres}: expected the same centre in each")
        pairs = list(zip(first.permutation, first.signs, strict=True))
        signs = tuple(self.signs[i] * sign for i, sign in pairs)
        return VectorMap(tuple(self.permutation[i] for i, _ in pairs), signs, self.centre)

    def identity(self) -> VectorMap:
        """Return the map of this size that does nothing."""
        return VectorMap(tuple(range(len(self.permutation))), (1,) * len(self.permutation), self.centre)

    @staticmethod
    def representation(group: Group, maps: Sequence[VectorMap]) -> Representation:
        """Return the representation that moves by ``maps[g]``."""
        permutations, signs = [m.permutation for m in maps], [m.signs for m in maps]
        rep = SignedPermutation(group, permutations, signs, maps[0].centre or None)
        only_permutes = rep.offsets is None and (rep.signs == 1).all()
        return Permutation(group, permutations) if only_permutes else rep


@dataclass(frozen=True)
class GridMap:
    """A turn or mirror of a picture together with a permutation of its channels."""

    name: str
    channels: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    def after(self, first: GridMap) -> GridMap:
        """Return the map that does `first` and then this one."""
        if first.options != self.options or len(first.channels) != len(self.channels):
            raise UserError("picture maps that differ in channels, fixed, shift or layout: expected the same in each")
        return GridMap(composed(self.name, first.name), tuple(self.channels[c] for c in first.channels), self.options)

    def identity(self) -> GridMap:
        """Return the map that does nothing to the same pictures."""
        return GridMap("identity", tuple(range(len(self.channels))), self.options)

    @staticmethod
    def representation(group: Group, maps: Sequence[GridMap]) -> Representation:
        """Return the representation that moves by ``maps[g]``."""
        channels = [m.channels for m in maps] if maps[0].channels else None
        return Grid(group, [m.name for m in maps], channels, **dict(maps[0].options))


@dataclass(frozen=True)
class KeysMap:
    """A map for each key of a dictionary."""

    keys: tuple[tuple[str, Map], ...]

    def after(self, first: KeysMap) -> KeysMap:
        """Return the map that does `first` and then this one."""
        if [key for key, _ in first.keys] != [key for key, _ in self.keys]:
            raise UserError("generators that name different keys: expected the same keys in each")
        both = zip(self.keys, first.keys, strict=True)
        return KeysMap(tuple((key, compose(later, earlier)) for (key, later), (_, earlier) in both))

    def identity(self) -> KeysMap:
        """Return the map that leaves every key as it is."""
        return KeysMap(tuple((key, value.identity()) for key, value in self.keys))

    @staticmethod
    def representation(group: Group, maps: Sequence[KeysMap]) -> Representation:
        """Return the representation that moves by ``maps[g]``."""
        keys = [key for key, _ in maps[0].keys]
        columns = {key: [dict(m.keys)[key] for m in maps] for key in keys}
        return PerKey(group, {key: representation_of(group, column) for key, column in columns.items()})


Map = VectorMap | GridMap | KeysMap


def compose(later: Map, earlier: Map) -> Map:
    """Return the map that does `earlier` and then `later`."""
    if type(later) is not type(earlier):
        raise UserError("generators that mix vectors, pictures and dictionaries: expected the same kind in each")
    return later.after(earlier)  # type: ignore[arg-type]


def representation_of(group: Group, maps: Sequence[Map]) -> Representation:
    """Return the representation whose element g moves by ``maps[g]``."""
    return type(maps[0]).representation(group, maps)  # type: ignore[arg-type]


def order_of(step: Map, limit: int = 1024) -> int:
    """Return how often a map is repeated until nothing has moved."""
    power, order = step, 1
    while power != step.identity():
        power, order = compose(step, power), order + 1
        if order > limit:
            raise UserError(f"a generator of order above {limit}: expected a finite symmetry")
    return order


def parse_map(value: Any) -> Map:
    """Return the map that plain data describe.

    >>> parse_map([1, 0])
    VectorMap(permutation=(1, 0), signs=(1, 1), centre=())
    >>> parse_map("rot90").name
    'rot90'
    """
    if isinstance(value, str):
        value = {"grid": value}
    elif isinstance(value, Sequence | np.ndarray):
        value = {"permutation": value}
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"map {value!r}: expected a permutation, a grid map's name, or a mapping that describes one")
    kind = next((kind for kind in _PARTS if kind in value), None)
    if kind is None:
        raise unknown("kind of map", next(iter(value)), _PARTS)
    for part in value:
        if part not in _PARTS[kind]:
            raise unknown(f"part of a {kind} map", part, _PARTS[kind])
    if "keys" in value:
        if not isinstance(value["keys"], Mapping) or not value["keys"]:
            raise UserError(f"keys {value['keys']!r}: expected a mapping from each key to its map")
        return KeysMap(tuple((key, parse_map(value["keys"][key])) for key in sorted(value["keys"], key=str)))
    if "grid" in value:
        if value["grid"] not in list(GRID_MAPS):
            raise unknown("grid map", value["grid"], GRID_MAPS)
        options = [(part, _frozen(part, value[part])) for part in ("fixed", "layout", "shift") if part in value]
        return GridMap(value["grid"], _permutation("channels", value.get("channels", ())), tuple(options))
    size = len(_row(kind, value[kind]))
    permutation = _permutation("permutation", value.get("permutation", range(size)))
    signs = _row("signs", value.get("signs", [1] * size))
    if not size or len(signs) != len(permutation) or any(abs(sign) != 1 for sign in signs):
        raise UserError(f"signs {list(signs)}: expected {len(permutation) or 'some'} entries, each -1 or 1")
    centre = centre_of(value["centre"], size) if "centre" in value else np.zeros(size)
    return VectorMap(permutation, signs, tuple(centre.tolist()) if centre.any() else ())


_PARTS: dict[str, tuple[str, ...]] = {
    "keys": ("keys",),
    "grid": ("grid", "channels", "fixed", "shift", "layout"),
    "permutation": ("permutation", "signs", "centre"),
    "signs": ("signs", "centre"),
}
"""The part that tells a map's kind, and all parts that such a map may have."""


def _row(part: str, values: Any) -> tuple[int, ...]:
    row = whole_numbers(part, values)
    if row.ndim != 1:
        raise UserError(f"{part} of shape {row.shape}: expected one row")
    return tuple(row.tolist())


def _permutation(part: str, values: Any) -> tuple[int, ...]:
    row = _row(part, values)
    if sorted(row) != list(range(len(row))):
        raise UserError(f"{part} {list(row)}: expected a permutation, each of 0..{len(row) - 1} once")
    return row


def _frozen(part: str, value: Any) -> Any:
    return value if isinstance(value, str) else _row(part, value)
