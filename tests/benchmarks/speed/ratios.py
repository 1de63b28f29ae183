"""Ratios of interleaved samples: what is divided by what, and which figures of it are shown.

Sample i of every arm was taken in repetition i, so that a machine which slows down slows both sides of ratio i.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Median, smallest and largest of the ratios of all repetitions."""

    median: float
    smallest: float
    largest: float

    def __str__(self) -> str:
        return f"{short(self.median)} {short(self.smallest)}-{short(self.largest)}"


def spread(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread of samples[i] / reference[i].

    >>> spread([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])
    Spread(median=3.0, smallest=2.0, largest=4.0)
    """
    if len(samples) != len(reference):
        raise ValueError(f"{len(samples)} samples against {len(reference)}: expected one each a repetition")
    ratios = np.divide(samples, reference)
    return Spread(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def times_faster(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread of reference[i] / samples[i]: rates against the reference's rate, from seconds.

    >>> times_faster([2.0, 4.0], [1.0, 1.0])
    Spread(median=0.375, smallest=0.25, largest=0.5)
    """
    return spread(reference, samples)


def of_bound(median: float, order: int) -> float:
    """Return a time, in units of the plain network's, as a share of |G| plain forwards: time / (|G| plain time).

    >>> of_bound(3.0, 4)
    0.75
    """
    return median / order


def short(value: float) -> str:
    """Return a ratio in at most four characters where it is below a thousand.

    >>> short(0.523), short(3.14159), short(12.31), short(123.4)
    ('0.52', '3.14', '12.3', '123')
    """
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"
