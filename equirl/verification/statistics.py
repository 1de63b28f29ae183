"""Intervals and tests that say how sure a finite number of comparisons can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval for the rate of an event seen `count` times in `total` (Clopper and Pearson 1934).

    >>> low, high = clopper_pearson(0, 1000)
    >>> low, round(high, 4)
    (0.0, 0.0037)
    """
    if total == 0:
        return 0.0, 1.0
    found = binomtest(count, total).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def energy(distances: Floats, labels: Floats) -> Floats:
    """Return the energy distance between two equal halves of a sample, for each row of labels +1 and -1.

        E = 2 mean d(A, B) - mean d(A, A) - mean d(B, B) = -v' D v / k^2         (Szekely and Rizzo 2004)

    With d = 0 for equal and 1 for different outcomes this is the sum of (p_A - p_B)^2 over outcomes.

    Args:
        distances: D, of shape (2 k, 2 k).
        labels: v, of shape (rows, 2 k).
    """
    k = labels.shape[1] / 2
    found: Floats = -((labels @ distances) * labels).sum(1) / k**2
    return found


def permuted_labels(k: int, permutations: int, rng: np.random.Generator) -> Floats:
    """Return the labels as they are (k of +1, then k of -1) and random shufflings of them, one a row."""
    first = np.repeat([1.0, -1.0], k)
    return np.concatenate([first[None], rng.permuted(np.tile(first, (permutations, 1)), axis=1)])


def p_value(statistics: Floats) -> float:
    """Return the share of shuffled statistics that reach the first, the observed one, which counts too."""
    return float((statistics >= statistics[0] - 1e-12).mean())


def sign_flip_p_value(differences: Floats, rng: np.random.Generator, permutations: int = 999) -> tuple[float, Floats]:
    """Return the p-value of no difference, by flipping the signs of whole pairs, and each feature's z.

    The statistic is the largest |z| over features, so that many features need no further correction (Westfall and
    Young 1993).

    Args:
        differences: one row a pair, one column a feature, shape (pairs, features).
        rng: of the flips.
        permutations: how many flips of all pairs.

    >>> p_value, z = sign_flip_p_value(np.ones((20, 1)), np.random.default_rng(0))
    >>> p_value < 0.01, z.round(2).tolist()
    (True, [4.47])
    """
    spread = np.sqrt((differences**2).mean(0))
    scaled = differences[:, spread > 0] / spread[spread > 0]
    signs = rng.choice([-1.0, 1.0], size=(permutations + 1, len(scaled)))
    signs[0] = 1.0
    largest = np.zeros(permutations + 1)
    for columns in np.array_split(scaled, max(1, scaled.shape[1] // 1000), axis=1):  # all at once would fill memory
        largest = np.maximum(largest, np.abs(signs @ columns).max(1, initial=0.0))
    z = np.zeros(differences.shape[1])
    z[spread > 0] = scaled.sum(0) / np.sqrt(len(scaled))
    return p_value(largest), z


def quantiles(values: Sequence[float] | Floats) -> dict[str, float]:
    """Return the median, the 99th percentile and the largest of some values; zeros where there are none."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return {"median": 0.0, "p99": 0.0, "max": 0.0}
    return {"median": float(np.median(array)), "p99": float(np.quantile(array, 0.99)), "max": float(array.max())}
