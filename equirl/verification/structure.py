"""Which signed permutations of an observation's entries may be symmetries, judged by what acts on what and how much.

Under a symmetry g with s' = f(s, a), the derivatives obey J(g s) = g J(s) g^-1. So where a log is about as symmetric as
its environment, the mean and the size of the derivative of entry i by entry j are, up to signs, those of the images of
i and j; and entries that take each other's place have alike sizes, changes, and bounds. Entries are matched one by one
and a branch ends where two that are placed disagree, so that enumeration is never over all d! 2^d maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.verification.logs import Evidence
from equirl.verification.models import Dynamics

Array = NDArray[Any]
Pair = tuple[Array, Array]

LOOSE = (0.3, 0.1)  # derivatives agree up to this part of the larger, and this part of a standard deviation
LENIENT = 0.15  # part of the squares of two derivatives by which they may differ; opposite signs give 2
ENOUGH = 0.05  # by how much derivatives must differ in sum of squares, in variances
STRONG = (0.25, 0.6, 0.4)  # a derivative of this size, of one sign for this part and as sure as this, fixes signs


@dataclass(frozen=True, eq=False)
class EntryMap:
    """Entry i, seen from its centre, moves to entry p[i] and is multiplied by s[i].

    >>> EntryMap(np.array([1, 0]), np.array([1, -1]), np.zeros(2)).move(np.array([[3.0, 4.0]])).tolist()
    [[-4.0, 3.0]]
    """

    permutation: Array
    signs: Array
    centre: Array

    def move(self, values: Array) -> Array:
        """Return observations (N, d) moved."""
        return self.turn(values - self.centre) + self.centre

    def turn(self, values: Array) -> Array:
        """Return differences of observations (..., d) moved, for which the centre does not count."""
        moved = np.empty_like(values)
        moved[..., self.permutation] = values * self.signs
        return moved

    @property
    def key(self) -> tuple[float, ...]:
        """What tells it from others, the centre as far as it matters."""
        return (*self.permutation, *self.signs, *(self.centre * self.matters))

    @property
    def matters(self) -> Array:
        """Which entries' centres make a difference, as a mask (d,)."""
        found: Array = (self.signs < 0) | (self.centre[self.permutation] != self.centre)
        found[self.permutation] |= found  # also where such an entry goes
        return found

    def to_data(self) -> dict[str, Any]:
        """Return the map as `Symmetry.generated_by` takes it."""
        data: dict[str, Any] = {"signs": self.signs.tolist()}
        if (self.permutation != np.arange(len(self.permutation))).any():
            data["permutation"] = self.permutation.tolist()
        if self.centre.any():
            data["centre"] = [float(f"{value:.6g}") for value in self.centre]  # bounds are rounded to float32
        return data


class Slopes:
    """What acts on what, by how much and how surely: mean derivatives, and their sizes, of two models of one log.

    Units are standard deviations. Where the models of the two halves of the log differ, so may what is compared.

    Args:
        evidence: a log and the model of its first half.
        points: rows of the log at which derivatives are taken.
    """

    def __init__(self, evidence: Evidence, points: int = 300) -> None:
        steps = evidence.steps
        d = steps.inputs.shape[1]
        every = np.concatenate([evidence.learned, evidence.held])
        inputs, actions, _ = evidence.rows(evidence.rng.choice(every, min(points, len(every)), replace=False))
        spread = steps.inputs.std(0)
        self.evidence, self.fixed = evidence, spread < 1e-9 * (1 + np.abs(steps.inputs).max(0))
        self.scale = np.where(self.fixed, 1.0, spread)
        pair = [self._of(model, inputs, actions) for model in (evidence.model, evidence.second)]
        (first, one), (second, two) = pair
        rows = len(evidence.relations.entries)
        related = np.stack([self._related(inputs, j) for j in range(d)], -1).reshape(len(inputs), rows, d)
        # Two layers, of steps and of relations; relations are near exact, so no error is assigned to them.
        self.mean, self.strength, self.error = (np.zeros((2, d, d)) for _ in range(3))
        agreed = np.where(first[0] * second[0] > 0, np.sign(first[0]) * np.minimum(*np.abs([first[0], second[0]])), 0)
        changes = slice(d + 2, None) if len(agreed) > d + 2 else slice(d)  # without jumps where there are such
        self.mean[0], self.mean[1, evidence.relations.entries] = agreed[changes], related.mean(0)
        strength, error = (first[1] + second[1]) / 2, np.abs(first[1] - second[1])
        self.strength[0], self.error[0] = strength[changes], error[changes]
        self.strength[1, evidence.relations.entries] = np.sqrt((related**2).mean(0))
        # An entry that others give cannot change alone, so what its change does is anybody's guess.
        given = evidence.relations.entries
        self.error[0][:, given] += self.strength[0][:, given]
        error[:, given] += strength[:, given]
        self.pull, self.pull_strength, self.pull_error = (values[d : d + 2] for values in (agreed, strength, error))
        self.effect, self.effect_error = (one[changes] + two[changes]) / 2, np.abs(one - two)[changes]

    def _of(self, model: Dynamics, inputs: Array, actions: Array) -> tuple[tuple[Array, Array], Array]:
        """Return mean and size of derivatives (targets, d), and how much actions change each."""
        units = np.where(model.spread > 1e-9, model.spread, np.inf)
        known = self.evidence.model.known if model.discrete else None

        def expected(inputs: Array) -> Array:
            found: Array = model.every(inputs)[known] if model.discrete else model(inputs, actions)
            return found

        found = []
        for j, scale in enumerate(self.scale):
            step = np.zeros(len(self.scale))
            step[j] = 0.25 * scale
            found.append((expected(inputs + step) - expected(inputs - step)) / (0.5 * units))
        slopes = np.stack(found, -1)
        many = tuple(range(slopes.ndim - 2))
        if model.discrete:
            values = expected(inputs)
            effect = np.sqrt(((values - values.mean(0)) ** 2).mean((0, 1)))
        else:
            difference = model(inputs, actions) - model(inputs, np.roll(actions, 1, axis=0))
            effect = np.sqrt((difference**2).mean(0) / 2)
        return (slopes.mean(many), np.sqrt((slopes**2).mean(many))), effect / units

    def _related(self, inputs: Array, j: int) -> Array:
        step = np.zeros(len(self.scale))
        step[j] = 0.25 * self.scale[j]
        relations = self.evidence.relations
        found: Array = (relations.errors(inputs + step) - relations.errors(inputs - step)) / (0.5 * relations.spread)
        return found


class Structure:
    """Which maps about one centre contradict neither sizes nor bounds nor derivatives.

    Args:
        slopes: derivatives of the models of a log.
        centre: what entries are mirrored about, (d,).
    """

    def __init__(self, slopes: Slopes, centre: Array) -> None:
        self.slopes, self.centre, self.size = slopes, centre, len(centre)
        self.complete = True
        steps = slopes.evidence.steps
        away = np.sqrt(((steps.inputs - centre) ** 2).mean(0))
        own = slopes.evidence.model.spread[: self.size]
        self.sizes = np.stack([away, own, slopes.effect])
        self.size_errors = np.stack([0 * away, 0 * own, slopes.effect_error])
        space: Any = steps.transitions.observation_space
        bounded = isinstance(space, spaces.Box)
        self.low = np.asarray(space.low, float) if bounded else np.zeros(self.size)
        self.high = np.asarray(space.high, float) if bounded else np.ones(self.size)

    def maps(self, most: int) -> Iterator[EntryMap]:
        """Yield the maps but the identity that contradict nothing, at most so many; `complete` tells if that is all.

        First come those for which the sums of derivatives speak too; a log less symmetric than its environment hides
        them there, so that all others follow.
        """
        first = list(self._maps(most, strict=True))
        yield from first
        shown = {one.key for one in first}
        yield from (one for one in self._maps(most, strict=False) if one.key not in shown)

    def _maps(self, most: int, strict: bool) -> Iterator[EntryMap]:
        nodes = self._nodes()
        fits = self._fits(nodes)
        apart = self._apart(nodes) if strict else np.zeros(fits.shape)
        start, images, signs = nodes
        stack: list[tuple[Array, Array, tuple[int, ...]]] = [
            (np.ones(len(start), np.bool_), apart.diagonal() - ENOUGH, ())
        ]
        found = steps = 0
        while stack and found < most and steps < 20 * most:
            left, sums, chosen = stack.pop()
            steps += 1
            if len(chosen) == self.size:
                permutation, sign = np.empty(self.size, np.int64), np.empty(self.size, np.int64)
                picked = np.array(chosen)
                permutation[start[picked]], sign[start[picked]] = images[picked], signs[picked]
                if (permutation != np.arange(self.size)).any() or (sign < 0).any():
                    found += 1
                    yield EntryMap(permutation, sign, self.centre)
                continue
            counts = np.bincount(start[left], minlength=self.size)
            if counts.min() == 0:
                continue
            counts[start[list(chosen)]] = len(start) + 1
            entry = int(counts.argmin())  # that with the fewest choices left
            for node in np.flatnonzero(left & (start == entry))[::-1]:
                more = sums + apart[node]
                stack.append((left & fits[node] & ((more <= 0) | (start == entry)), more, (*chosen, int(node))))
        self.complete = not stack

    def _nodes(self) -> tuple[Array, Array, Array]:
        """Return all moves of one entry (from, to, sign) that nothing speaks against, those that stay first."""
        found = [
            (i, j, sign)
            for i in range(self.size)
            for j in sorted(range(self.size), key=lambda j: j != i)
            for sign in (1, -1)
            if self.allowed(i, j, sign)
        ]
        start, images, signs = np.array(found, np.int64).reshape(-1, 3).T
        return start, images, signs

    def allowed(self, i: int, j: int, sign: int) -> bool:
        """Return whether entry i may move to entry j with this sign, as far as these two tell."""
        slopes = self.slopes
        if slopes.fixed[i] or slopes.fixed[j]:
            return i == j and sign == 1
        ends = sign * (np.array([self.low[i], self.high[i]]) - self.centre[i]) + self.centre[j]
        if not np.allclose(np.sort(ends), [self.low[j], self.high[j]], rtol=1e-5, atol=1e-6):
            return False
        errors = self.size_errors[:, i] + self.size_errors[:, j]
        floors = np.array([1e-9, 1e-9, 0.1])
        if i != j and not _alike((self.sizes[:, i], self.sizes[:, j]), errors, 0.5, floors).all():
            return False
        pull = [(values[:, i], values[:, j]) for values in (slopes.pull, slopes.pull_strength, slopes.pull_error)]
        return bool(_agree(pull[0], pull[1], pull[2], np.array(sign)).all())

    def _fits(self, nodes: tuple[Array, Array, Array]) -> Array:
        """Return which two moves may be parts of one map, (moves, moves): what entries do to one another is alike."""
        slopes = self.slopes
        start, images, signs = nodes
        found = np.empty((len(start), len(start)), np.bool_)
        for node, (i, j, sign) in enumerate(zip(*nodes, strict=True)):
            parts = [(v[:, i][:, start], v[:, j][:, images]) for v in (slopes.mean, slopes.strength, slopes.error)]
            found[node] = _agree(parts[0], parts[1], parts[2], sign * signs).all(0)
            found[node] &= (start == i) == (images == j)  # one image an entry, one entry an image
            found[node] &= (start != i) | (np.arange(len(start)) == node)
        both: Array = found & found.T
        return both

    def _apart(self, nodes: tuple[Array, Array, Array]) -> Array:
        """Return by how much the mean derivatives between the entries of two moves differ after them, less their size.

        Each derivative may be too weak to tell, and yet the sum over all that an entry does, and all that is done to
        it, exceeds 0 if the map is wrong: a wrong sign gives (2 m)^2, where part of m^2 and the errors are allowed.
        """
        slopes = self.slopes
        start, images, signs = nodes
        sure = slopes.error < STRONG[2] * slopes.strength
        mean, error = np.where(sure, slopes.mean, 0.0), np.where(sure, slopes.error, 0.0)
        found = np.empty((len(start), len(start)))
        for node, (i, j, sign) in enumerate(zip(*nodes, strict=True)):
            total = np.zeros(len(start))
            for before, after in (((i, start), (j, images)), ((start, i), (images, j))):
                m, n = (mean[(slice(None), *at)] for at in (before, after))
                noise = error[(slice(None), *before)] + error[(slice(None), *after)]
                both = sure[(slice(None), *before)] & sure[(slice(None), *after)]
                total += (both * ((sign * signs * m - n) ** 2 - LENIENT * (m**2 + n**2) - noise**2)).sum(0)
            total[node] = 0.0  # an entry's hold on itself is near 1 whatever moves it
            found[node] = total
        return found


def _alike(pair: Pair, error: Array, part: float, floor: Any) -> Array:
    """Return where sizes agree up to a part of the larger, a floor, and what the two models disagree."""
    agreed: Array = np.abs(pair[0] - pair[1]) <= part * np.maximum(*pair) + floor + error
    return agreed


def _agree(means: Pair, sizes: Pair, errors: Pair, sign: Array) -> Array:
    """Return where derivatives are of like size, and where they are strong, of the signs that the map says."""
    strong = np.minimum(*sizes) > STRONG[0]
    for mean, size, error in zip(means, sizes, errors, strict=True):
        strong = strong & (np.abs(mean) > STRONG[1] * size) & (error < STRONG[2] * size)
    opposed = strong & (np.sign(means[0]) * sign != np.sign(means[1]))
    agreed: Array = _alike(sizes, errors[0] + errors[1], *LOOSE) & ~opposed
    return agreed
