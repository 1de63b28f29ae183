"""What happens to a part of a picture, counted: laws of outcomes given contexts, before and after a transformation.

A picture is an array of symbols, one for each combination of channel values that occurs. A context is the patch about a
cell (and perhaps where it lies, or the whole picture); an outcome is the cell's next symbol (or reward and end).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equirl.grids import GRID_MAPS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CHUNK = 4_000_000
"""Products of two probabilities that are held in memory at once."""


class Move(NamedTuple):
    """A transformation of pictures: the grid map, and the symbol that each symbol becomes, -1 where none was seen."""

    grid: str
    symbols: Ints


class Patterns:
    """Distinct rows of symbols: patches (K, h, w), further symbols that stay in place (K, m), and a cell's place (K,).

    Args:
        patches: symbols; `Move.symbols` must cover them all.
        extras: symbols that a grid map does not displace.
        places: flat position in a picture, -1 where it does not count.
        shape: height and width of that picture.

    >>> corner = np.array([[[0, 1], [1, 1]]])
    >>> both = Patterns(np.concatenate([corner, corner[..., ::-1]]), shape=(2, 2))
    >>> both.image(Move("flip_x", np.arange(2))).tolist(), both.image(Move("flip_y", np.arange(2))).tolist()
    ([1, 0], [-1, -1])
    """

    def __init__(
        self,
        patches: NDArray[Any],
        extras: NDArray[Any] | None = None,
        places: Ints | None = None,
        shape: tuple[int, int] = (1, 1),
    ) -> None:
        count = len(patches)
        self.patches, self.shape = patches, shape
        self.extras = np.empty((count, 0), np.uint8) if extras is None else extras
        self.places = np.full(count, -1) if places is None else places

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, rows: Ints) -> Patterns:
        return Patterns(self.patches[rows], self.extras[rows], self.places[rows], self.shape)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], Ints]:
        """Hashes in ascending order, and which rows have them."""
        keys = self._hash(self.patches.reshape(len(self), -1), self.extras, self.places)
        order = np.argsort(keys)
        return keys[order], order

    def image(self, move: Move) -> Ints:
        """Return the number of each row's image, -1 where that does not occur."""
        _, height, width = self.patches.shape
        source = GRID_MAPS[move.grid](np.arange(height * width).reshape(height, width)).ravel()
        moved = move.symbols[self.patches.reshape(len(self), -1)[:, source]]
        extras = move.symbols[self.extras]
        places = moved_places(move.grid, self.shape)[self.places]
        keys = self._hash(moved, extras, places)
        own, order = self._sorted
        at = np.searchsorted(own, keys).clip(max=len(self) - 1)
        known = (own[at] == keys) & (moved >= 0).all(1) & (extras >= 0).all(1)
        return np.where(known, order[at], -1)

    @staticmethod
    def _hash(patches: NDArray[Any], extras: NDArray[Any], places: Ints) -> NDArray[np.uint64]:
        keys = mixed(places, 0)
        for column in (*patches.T, *extras.T):
            keys = mixed(keys * np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64), 1)
        return keys


def mixed(values: NDArray[Any], salt: int) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits of each value (splitmix64, Steele et al. 2014)."""
    x = values.astype(np.uint64) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def moved_places(grid: str, shape: tuple[int, int]) -> Ints:
    """Return to which flat position a grid map takes each cell; one entry more, -1, for no place."""
    source = GRID_MAPS[grid](np.arange(shape[0] * shape[1]).reshape(shape)).ravel()
    target = np.full(source.size + 1, -1)
    target[source] = np.arange(source.size)
    return target


class Differences(NamedTuple):
    """How far two laws of outcomes lie apart, each by part of the data, action before and action after (S, A, A).

    Args:
        distance: weighted sums over contexts of |p - q|^2, each unbiased, so 0 on average where p equals q.
        change: the same sums for the laws against "nothing happens", which is what could differ.
        variance: of `distance`, if p equals q.
        weight: sums of weights, about the number of independent comparisons.
    """

    distance: Floats
    change: Floats
    variance: Floats
    weight: Floats


class Table:
    """How often each outcome followed each context under each action, in two halves of the data.

    Contexts that no action met in both halves say nothing and are left out.

    Args:
        contexts: distinct contexts, K of them.
        outcomes: distinct outcomes, or their number where no transformation changes them.
        samples: context, outcome, action and half (0 or 1) of each observed step, (N, 4).
        stay: the outcome that means "nothing happens", of each context (K,).
        parts: to which part of the data each context belongs, (K,) from 0.
        sizes: how many parts and how many actions there are.
    """

    def __init__(
        self, contexts: Patterns, outcomes: Patterns | int, samples: tuple[Ints, Ints, Ints, Ints], stay: Ints,
        parts: Ints, sizes: tuple[int, int],
    ) -> None:  # fmt: skip
        self._n_parts, actions = sizes
        context, outcome, action, half = samples
        cell = (context * 2 + half) * actions + action
        met = np.bincount(cell, minlength=len(contexts) * 2 * actions).reshape(-1, 2, actions)
        kept = np.flatnonzero(met.min(1).max(1) > 0)
        self.contexts, self.parts, self.outcomes = contexts[kept], parts[kept], outcomes
        self._n_outcomes = outcomes if isinstance(outcomes, int) else len(outcomes)
        number = np.full(len(contexts), -1)
        number[kept] = np.arange(len(kept))
        chosen = np.flatnonzero(number[context] >= 0)
        context, outcome, action, half = number[context[chosen]], outcome[chosen], action[chosen], half[chosen]
        stay = stay[kept]
        pair, inverse = np.unique(context * self._n_outcomes + outcome, return_inverse=True)
        counts = np.bincount((inverse * 2 + half) * actions + action, minlength=len(pair) * 2 * actions)
        self._pair, (self._context, self._outcome) = pair, np.divmod(pair, self._n_outcomes)
        entries = counts.reshape(len(pair), 2, actions).astype(np.float64)
        self._starts = np.searchsorted(self._context, np.arange(len(kept) + 1))
        self.totals = np.add.reduceat(entries, self._starts[:-1], axis=0)
        self._laws = entries / np.maximum(self.totals, 1)[self._context]
        self._counts = entries.sum(1)
        self._squares = np.add.reduceat(self._counts**2, self._starts[:-1], axis=0)
        self._same = np.add.reduceat(self._laws.prod(1), self._starts[:-1], axis=0)
        stays = self._outcome == stay[self._context]
        at_rest = np.add.reduceat(self._laws * stays[:, None, None], self._starts[:-1], axis=0)
        self._change = self._same - at_rest.sum(1) + 1
        self.active = ~np.logical_and.reduceat(stays, self._starts[:-1])

    def compare(self, move: Move) -> Differences:
        """Return how far the law given (context, a) lies from that given (moved context, b), outcomes moved back.

        Each distance is the product of two halves' differences, (p_1 - q_1) . (p_2 - q_2), so that chance alone gives
        0 on average (the cross-validated distance of Walther et al. 2016, doi 10.1016/j.neuroimage.2015.12.012).
        """
        actions = self.totals.shape[2]
        sums = np.zeros((4, self._n_parts, actions, actions))
        if not len(self.contexts):
            return Differences(*sums)
        image = self.contexts.image(move)
        outcome_image = np.arange(self._n_outcomes) if isinstance(self.outcomes, int) else self.outcomes.image(move)
        kept = np.flatnonzero((image >= 0) & (self.active | self.active[image]))
        sizes = np.diff(self._starts)[kept]
        chunk = np.cumsum(sizes) * actions**2 // _CHUNK
        for c in np.unique(chunk):
            contexts = kept[chunk == c]
            values = self._values(contexts, image[contexts], outcome_image)
            for total, value in zip(sums, values, strict=True):
                np.add.at(total, self.parts[contexts], value)
        return Differences(*sums)

    def _values(self, k: Ints, image: Ints, outcome_image: Ints) -> tuple[Floats, Floats, Floats, Floats]:
        """Return distance, change, variance and weight, (len(k), A, A) each, of the contexts k."""
        crossed, met = self._products(k, image, outcome_image)
        own, moved = self._same[k][:, :, None], self._same[image][:, None, :]
        n, m = self.totals[k][:, :, :, None], self.totals[image][:, :, None, :]
        with np.errstate(divide="ignore"):
            noise = 1 / n + 1 / m
        weight = 1 / noise.sum(1)
        change = 0.5 * (self._change[k][:, :, None] + self._change[image][:, None, :])
        # The law that both sides would share, pooled: that of either alone looks too sure where they differ by chance.
        total = (n + m).sum(1).clip(min=2)
        squares = self._squares[k][:, :, None] + self._squares[image][:, None, :] + 2 * met
        impure = np.maximum(total - squares / total, 0.5) / (total - 1)
        spread = np.where(weight > 0, noise.prod(1), 0) * impure**2
        return weight * (own + moved - crossed), weight * change, weight**2 * spread, weight

    def _products(self, k: Ints, image: Ints, outcome_image: Ints) -> tuple[Floats, Floats]:
        """Return p_1 . q_2 + p_2 . q_1 of each context, and n . m for the counts of both halves, (len(k), A, A)."""
        sizes = self._starts[k + 1] - self._starts[k]
        first = np.cumsum(sizes) - sizes
        entry = np.repeat(self._starts[k] - first, sizes) + np.arange(sizes.sum())
        moved = outcome_image[self._outcome[entry]]
        wanted = np.repeat(image, sizes) * self._n_outcomes + moved
        at = np.searchsorted(self._pair, wanted).clip(max=len(self._pair) - 1)
        found = ((self._pair[at] == wanted) & (moved >= 0))[:, None]
        p, q = self._laws[entry], self._laws[at] * found[:, None]
        crossed = np.einsum("ea,eb->eab", p[:, 0], q[:, 1]) + np.einsum("ea,eb->eab", p[:, 1], q[:, 0])
        met = np.einsum("ea,eb->eab", self._counts[entry], self._counts[at] * found)
        return np.add.reduceat(crossed, first, axis=0), np.add.reduceat(met, first, axis=0)
