"""What a search for symmetries finds: single transformations with scores, and the group that they make up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from equirl._maps import Map, compose, parse_map
from equirl.symmetry import Symmetry

Pair = tuple[Map, Map]


@dataclass(frozen=True)
class Candidate:
    """A transformation that may be a symmetry, in the plain terms that `Symmetry.generated_by` takes.

    Args:
        observation_map: how it moves observations, for instance ``{"signs": [-1, -1]}`` or ``{"grid": "rot90"}``.
        action_map: how it moves actions.
        score: how much worse the dynamics, rewards and terminations fit after it than before; smaller is better, and
            scores of one search are comparable.
        note: why it was refused, or what else a reader must know.
    """

    observation_map: Any
    action_map: Any
    score: float
    note: str = ""

    @property
    def pair(self) -> Pair:
        """Both maps, parsed, so that they compare and compose."""
        return parse_map(self.observation_map), parse_map(self.action_map)


@dataclass(frozen=True)
class Shortlist:
    """What a search over transitions found.

    Args:
        accepted: every element but the identity of one group; empty where nothing was found.
        refused: the next best, best first.
        note: in a few words why nothing was found, or what limits the answer; empty else.
        examined: how many transformations were scored.
    """

    accepted: tuple[Candidate, ...]
    refused: tuple[Candidate, ...] = ()
    note: str = ""
    examined: int = 0

    @property
    def next_best(self) -> float | None:
        """Score of the best candidate that is no element of the group, None where none was scored."""
        return min((candidate.score for candidate in self.refused), default=None)

    def symmetry(self, name: str = "") -> Symmetry | None:
        """Return the group of the accepted elements as a Symmetry, None where there are none."""
        generators = [(candidate.observation_map, candidate.action_map) for candidate in generating(self.accepted)]
        return Symmetry.generated_by(*generators, name=name) if generators else None


def closed(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the largest of the sets of candidates that are, with the identity, closed under composition.

    Grown greedily from the best score: an element joins if all products with those that joined before are candidates.
    Several candidates that move observations alike and actions differently count once, the best scored.

    >>> turn = [Candidate("rot90", [1, 2, 3, 0], 0.1), Candidate("rot180", [2, 3, 0, 1], 0.2)]
    >>> [candidate.observation_map for candidate in closed(turn)]
    ['rot180']
    """
    best: dict[Map, tuple[Candidate, Pair]] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.score):
        pair = candidate.pair
        if pair[0] != pair[0].identity():
            best.setdefault(pair[0], (candidate, pair))
    known = {pair: candidate for candidate, pair in best.values()}
    groups: list[set[Pair]] = []
    for seed in known:
        group: set[Pair] = set()
        for pair in [seed, *known]:
            grown = _generated([*group, pair], known)
            if grown is not None:
                group = grown
        groups.append(group)
    largest = max(groups, key=lambda group: (len(group), -sum(known[pair].score for pair in group)), default=set())
    return tuple(candidate for pair, candidate in known.items() if pair in largest)


def generating(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return few of the elements of a group that generate all of them, those that generate most first.

    >>> turns = [Candidate("rot90", [1, 2, 3, 0], 0.1), Candidate("rot180", [2, 3, 0, 1], 0.2)]
    >>> turns.append(Candidate("rot270", [3, 0, 1, 2], 0.3))
    >>> [candidate.observation_map for candidate in generating(turns)]
    ['rot90']
    """
    pairs = {candidate.pair: candidate for candidate in candidates}
    chosen: list[Pair] = []
    reached: set[Pair] = set()
    while len(reached) < len(pairs):
        options = [(pair, _generated([*chosen, pair], pairs)) for pair in pairs if pair not in reached]
        sizes = [(len(group) if group is not None else 0) for _, group in options]
        pair, group = options[sizes.index(max(sizes))]
        if group is None:
            raise ValueError("the candidates are not closed under composition")
        chosen.append(pair)
        reached = group
    return [pairs[pair] for pair in chosen]


def _generated(pairs: Sequence[Pair], within: Iterable[Pair]) -> set[Pair] | None:
    """Return all products of the pairs but the identity, or None where one of them lies outside."""
    allowed = within if isinstance(within, dict) else set(within)
    one = (pairs[0][0].identity(), pairs[0][1].identity())
    found: set[Pair] = set()
    fresh = list(pairs)
    while fresh:
        pair = fresh.pop()
        if pair == one or pair in found:
            continue
        if pair not in allowed:
            return None
        found.add(pair)
        fresh += [_after(generator, pair) for generator in pairs]
    return found


def _after(later: Pair, earlier: Pair) -> Pair:
    return compose(later[0], earlier[0]), compose(later[1], earlier[1])
