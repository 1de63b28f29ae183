"""Which channels of pictures may stand for one another after a turn or a mirror."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.verification.patches import Floats, Ints, moved_places
from equirl.verification.pixels import Pictures

Planes = list[dict[Any, tuple[Floats, float]]]
"""For each channel and value: how often each place shows it, (H * W,), and how often it comes to a place, per step."""


def planes_of(pictures: Pictures) -> Planes:
    """Return where and how often each channel shows each value but its most common one."""
    return [_planes(pictures, channel) for channel in range(pictures.values.shape[1])]


def compatible_channels(pictures: Pictures, planes: Planes, grid: str, most: int = 64) -> list[tuple[int, ...]]:
    """Return permutations of channels under which a grid map takes what is shown where to what is shown where.

    Each value but a channel's most common one must be shown about as often (within a factor of 2) and change about as
    often (3) in both channels, at places that overlap after the map: by 30%, or wholly if it never moves. A channel
    that shows one value alone stays as it is. The identity is first, and there are at most `most`.

    Args:
        pictures: the log.
        planes: what `planes_of` returns for it.
        grid: name of the grid map.
        most: how many permutations are enough.
    """
    target = moved_places(grid, pictures.shape)[:-1]
    slack = 20 / len(pictures.before)
    fits = np.array([[_fits(one, other, target, slack) for other in planes] for one in planes])
    constant = np.array([not plane for plane in planes])
    fits[constant], fits[:, constant] = False, False
    return _permutations(fits | np.diag(constant), most)


def _planes(pictures: Pictures, channel: int) -> dict[Any, tuple[Floats, float]]:
    kinds = pictures.values[:, channel]
    shown = {value: (kinds == value)[pictures.before] for value in np.unique(kinds).tolist()}
    usual = max(shown, key=lambda value: int(shown[value].sum()))
    planes = {}
    for value, before in shown.items():
        arrives = ~before & (kinds == value)[pictures.after]
        if value != usual and (before.any() or arrives.any()):
            planes[value] = before.mean(0).ravel(), float(arrives.sum() / len(arrives))
    return planes


def _fits(
    one: dict[Any, tuple[Floats, float]], other: dict[Any, tuple[Floats, float]], target: Ints, slack: float
) -> bool:
    """Return whether a channel with the planes `one` may become that with the planes `other`."""
    if one.keys() != other.keys():
        return False
    for value, (map_, arrivals) in one.items():
        there, arrivals_there = other[value]
        moved = np.empty_like(map_)
        moved[target] = map_
        for a, b, factor in ((moved.sum(), there.sum(), 2), (arrivals, arrivals_there, 3)):
            if a > factor * b + slack or b > factor * a + slack:
                return False
        still = bool(np.isin(map_, (0, 1)).all())
        if np.minimum(moved, there).sum() < (0.95 if still else 0.3) * min(moved.sum(), there.sum()):
            return False
    return True


def _permutations(fits: NDArray[np.bool_], most: int) -> list[tuple[int, ...]]:
    """Return permutations p with fits[i, p[i]] for all i, in lexicographic order."""
    found: list[tuple[int, ...]] = []

    def extend(begun: tuple[int, ...]) -> None:
        if len(found) >= most:
            return
        if len(begun) == len(fits):
            found.append(begun)
            return
        for image in np.flatnonzero(fits[len(begun)]):
            if int(image) not in begun:
                extend((*begun, int(image)))

    extend(())
    return found
