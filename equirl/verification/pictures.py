"""Which turns and mirrors of pictures, with which channels and actions, leave logged dynamics and rewards unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from equirl.grids import GRID_MAPS
from equirl.verification.candidates import Candidate, Shortlist, closed
from equirl.verification.channels import compatible_channels, planes_of
from equirl.verification.patches import Differences, Floats, Ints, Move
from equirl.verification.pixels import Counted, Pictures, encode, tables_of
from equirl.verification.transitions import Progress, Transitions

_TURNING = ("rot90", "rot270", "transpose", "antitranspose")

_SURE = 5.0
"""Standard deviations by which a difference must exceed 0: thousands of them are looked at."""

_LEAST_WEIGHT, _LEAST_CHANGE = 20.0, 0.5
"""Comparisons, and how much must have happened in them, without which a part of the data is passed over."""

_LEAST_COVERAGE = 0.4
"""Share of what happened whose image must have been met as well."""

_MOST_DOUBT = 0.3
"""Difference between laws, as a share of what happens, that must not go unnoticed for want of data."""


_SPLITS, _DOUBTFUL = 3, (0.5, 4.0)
"""Ways to halve the data where the first gives a score in between."""

_HOPELESS = 5.0
"""Score from which a transformation is not looked at further."""


def discover_pictures(transitions: Transitions, seed: int = 0, progress: Progress | None = None) -> Shortlist:
    """Return the group of grid maps, channel permutations and action permutations that a log of pictures obeys.

    A transformation g is accepted if the law of what happens is that of what happens to its image,

        P(g y | g K, g a) = P(y | K, a),

    for each context K (the patch about a cell, the patch at a place, the whole picture) and each outcome y (the cell's
    next symbol, the next picture, reward and end). Its score is the largest difference between both sides that is
    beyond chance, as a multiple of what is tolerated, so that it is refused from 1. Refused as well is what leads to
    pictures that the log does not show, and everything while differences of 30% could hide for want of data. Actions of
    like effect are exchanged in their order only. Differences of less than 10% of what happens pass: what makes them
    may be hidden from pictures (sticky actions, timers).

    Args:
        transitions: pictures whose cells take few different values (boards, grids) with Discrete actions; see
            `encode` for its limits. A note of the shortlist says why nothing is found where they are exceeded.
        seed: decides which episodes are compared with which.
        progress: told how far the search is.

    >>> from equirl.envs.gridworld import GridWorldEnv
    >>> found = discover_pictures(Transitions.record(GridWorldEnv(size=3, n_walls=0), 800))
    >>> len(found.accepted), found.symmetry().group
    (7, D4)
    """
    transitions.require()
    pictures = encode(transitions)
    if isinstance(pictures, str):
        return Shortlist((), note=pictures)
    return _Search(pictures, seed).run(progress or (lambda what, share: None))


@dataclass
class _Costs:
    """What speaks against taking action a to action b, each (A, A).

    Args:
        score: the largest difference beyond chance, as a multiple of what is tolerated.
        where: in which part of which table that is.
        coverage: share of what happens under a whose image under b was met.
        seen: the tables compared, with the differences they show and those of their finer tables where needed.
    """

    score: Floats
    where: NDArray[np.object_]
    coverage: Floats
    seen: list[tuple[Counted, Differences, Differences | None]]


class _Search:
    """Scores every transformation of one log."""

    def __init__(self, pictures: Pictures, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self._tables: list[list[Counted]] = []
        self.identity = tuple(range(pictures.values.shape[1]))
        same = Move("identity", pictures.moved_symbols(self.identity))
        self.matched = [np.diagonal(counted.table.compare(same).change.sum(0)) for counted in self._split(0)]
        alike = self._costs("identity", self.identity).score < 1
        _, self.classes = connected_components(alike & alike.T, directed=False)

    def _split(self, number: int) -> list[Counted]:
        """Return the tables of the data, split into halves in one of several ways."""
        while len(self._tables) <= number:
            self._tables.append(tables_of(self.pictures.split(self.seed + len(self._tables))))
        return self._tables[number]

    def run(self, progress: Progress) -> Shortlist:
        pairs = list(self._transformations())
        judged = []
        for done, (grid, channels) in enumerate(pairs, 1):
            judged.append(self._judged(grid, channels))
            progress("comparing", done / len(pairs))
        accepted = closed(candidate for candidate in judged if not candidate.note)
        refused = [
            candidate if candidate.note else replace(candidate, note="its products are no symmetries")
            for candidate in sorted(judged, key=lambda candidate: candidate.score)
            if candidate not in accepted
        ]
        note = "" if accepted else "no turn or mirror takes what is shown where to what is shown where"
        if refused and not accepted:
            note = f"nearest, {_name(refused[0])}: {refused[0].note}"
        return Shortlist(_plain(accepted), _plain(refused), note, len(pairs))

    def _transformations(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        height, width = self.pictures.shape
        planes = planes_of(self.pictures)
        for grid in GRID_MAPS:
            if grid in _TURNING and height != width:
                continue
            for channels in compatible_channels(self.pictures, planes, grid):
                if (grid, channels) != ("identity", self.identity):
                    yield grid, channels

    def _judged(self, grid: str, channels: tuple[int, ...]) -> Candidate:
        """Return the transformation with its best action permutation; a note says why it is refused."""
        seen: dict[str, Any] = {"grid": grid, "channels": list(channels)}
        if self.pictures.layout == "HWC":
            seen["layout"] = "HWC"
        costs = self._costs(grid, channels)
        actions = _matched(costs.score, self.classes)
        if actions is not None and _DOUBTFUL[0] < costs.score[np.arange(len(actions)), actions].max() < _DOUBTFUL[1]:
            costs = self._costs(grid, channels, _SPLITS)
            actions = _matched(costs.score, self.classes)
        if actions is None:
            best = linear_sum_assignment(costs.score.clip(max=1e3))[1]
            score = float(costs.score[np.arange(len(best)), best].max())
            return Candidate(seen, best.tolist(), score, "no permutation takes actions to those of like effect")
        at = np.arange(len(actions)), actions
        worst = int(costs.score[at].argmax())
        score, where = float(costs.score[at][worst]), costs.where[at][worst]
        together, where_together = _together(costs, at)
        note = ""
        if score >= 1:
            note = f"action {worst} and its image {actions[worst]} differ: {where}"
        elif together >= 1:
            note = f"actions and their images differ: {where_together}"
        elif (coverage := float(costs.coverage[at].min())) < _LEAST_COVERAGE:
            note = f"leads to pictures of which {coverage:.0%} were met"
        elif (doubt := _hidden(costs, at)) > _MOST_DOUBT:
            note = f"too few transitions: differences of {min(doubt, 1):.0%} might hide"
        return Candidate(seen, actions.tolist(), max(score, together), note)

    def _costs(self, grid: str, channels: tuple[int, ...], splits: int = 1) -> _Costs:
        """Compare table by table, for each action before and each after the transformation, until all is lost."""
        move = Move(grid, self.pictures.moved_symbols(channels))
        shape = (self.pictures.n_actions,) * 2
        costs = _Costs(np.zeros(shape), np.full(shape, "", np.object_), np.ones(shape), [])
        for several, matched in zip(zip(*map(self._split, range(splits)), strict=True), self.matched, strict=True):
            counted = several[0]
            differences = _mean([one.table.compare(move) for one in several])
            finer = None
            if counted.finer is not None and (_shares(counted, differences, None)[0] >= 1).any():
                finer = _mean([one.finer.table.compare(move) for one in several if one.finer is not None])
            costs.seen.append((counted, differences, finer))
            shares, where = _shares(counted, differences, finer)
            costs.where = np.where(shares > costs.score, where, costs.where)
            costs.score = np.maximum(costs.score, shares)
            if counted.thorough:
                met = differences.change.sum(0) / matched[:, None].clip(min=1e-9)
                costs.coverage = np.minimum(costs.coverage, met)
            if (costs.score.min(1) >= _HOPELESS).any():
                break
        return costs


def _mean(splits: Sequence[Differences]) -> Differences:
    """Return the mean over ways to halve the same data; two of them share half of their pairs of steps."""
    distance, change, variance, weight = (np.mean(part, axis=0) for part in zip(*splits, strict=True))
    return Differences(distance, change, variance * (1 + (len(splits) - 1) / 2) / len(splits), weight)


def _together(costs: _Costs, at: tuple[Ints, Ints]) -> tuple[float, str]:
    """Return the largest difference that all actions show together, and where."""
    found = [(0.0, "")]
    for counted, differences, finer in costs.seen:
        both = [
            None if one is None else Differences(*(part[:, at[0], at[1]].sum(1)[:, None, None] for part in one))
            for one in (differences, finer)
        ]
        if both[0] is not None:
            shares, where = _shares(counted, both[0], both[1])
            found.append((float(shares[0, 0]), str(where[0, 0])))
    return max(found)


def _shares(
    counted: Counted, differences: Differences, finer: Differences | None
) -> tuple[Floats, NDArray[np.object_]]:
    """Return the largest difference beyond chance over parts, as a multiple of what is tolerated, and where it is."""
    most = np.zeros(differences.distance.shape[1:])
    where = np.full(most.shape, "", np.object_)
    for level in counted.levels(differences.distance):
        at = Differences(*(counted.levels(part)[level] for part in differences))
        shares = _beyond_chance(at) / counted.tolerance
        if finer is not None:
            shares = shares * ~_dismissed(at, Differences(*(counted.levels(part)[level] for part in finer)))
        worst = shares.argmax(0)
        for a, b in np.argwhere(shares.max(0) > most):
            most[a, b], where[a, b] = shares[worst[a, b], a, b], counted.name(level, int(worst[a, b]))
    return most, where


def _beyond_chance(differences: Differences) -> Floats:
    """Return differences between probabilities as a share of what happens, 0 where chance may have made them."""
    distance, change, variance, weight = differences
    sure = distance - _SURE * np.sqrt(variance)
    known = (weight > _LEAST_WEIGHT) & (change > _LEAST_CHANGE) & (sure > 0)
    return np.sqrt(np.divide(sure, change, out=np.zeros_like(sure), where=known))


def _dismissed(differences: Differences, finer: Differences) -> NDArray[np.bool_]:
    """Return where larger patches show that the law is the same, and so what differed in small ones is what led there.

    That is where they cover 30% of what happens, and show less than half of the difference.
    """
    distance, change, variance, _ = differences
    sure = distance - _SURE * np.sqrt(variance)
    most = finer.distance + 2 * np.sqrt(finer.variance)
    below: NDArray[np.bool_] = most * change < 0.5 * sure * finer.change
    return below & (finer.change > 0.3 * change)


def _hidden(costs: _Costs, at: tuple[Ints, Ints]) -> float:
    """Return the largest difference, as a share of what happens, that data of this number may hide."""
    found = []
    for counted, differences, _ in costs.seen:
        change, variance = (float(part[:, at[0], at[1]].sum()) for part in (differences.change, differences.variance))
        if counted.thorough and change > _LEAST_CHANGE:
            found.append((_SURE * variance**0.5 / change) ** 0.5)
    return min(found, default=np.inf)


def _matched(costs: Floats, classes: Ints) -> Ints | None:
    """Return the cheapest permutation that takes classes of like actions to such classes, keeping order within."""
    members = [np.flatnonzero(classes == c) for c in range(classes.max() + 1)]
    table = np.array([[costs[np.ix_(a, b)].max() if len(a) == len(b) else np.inf for b in members] for a in members])
    rows, images = linear_sum_assignment(np.where(np.isinf(table), 1e6, table.clip(max=1e3)))
    if np.isinf(table[rows, images]).any():
        return None
    actions = np.empty(len(classes), np.int64)
    for row, image in zip(rows, images, strict=True):
        actions[members[row]] = members[image]
    return actions


def _plain(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return candidates without their channels, if none of them permutes any."""
    rows = [candidate.observation_map["channels"] for candidate in candidates]
    if any(row != sorted(row) for row in rows):
        return tuple(candidates)
    plain = []
    for candidate in candidates:
        seen = {part: value for part, value in candidate.observation_map.items() if part != "channels"}
        plain.append(replace(candidate, observation_map=seen))
    return tuple(plain)


def _name(candidate: Candidate) -> str:
    channels = candidate.observation_map["channels"]
    moved = "" if channels == sorted(channels) else f" with channels to {channels}"
    return f"{candidate.observation_map['grid']}{moved}"
