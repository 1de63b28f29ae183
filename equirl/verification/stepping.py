"""Tier 1: states are set, moved by the group, and stepped on both sides.

For a state s, an action a and an element g of the claim, with the noise w and its image:

    error = |g s'(s, a, w) - s'(g s, g a, g w)|,  and the same for rewards and terminations.

Where noise cannot be moved, K next states a side are drawn and their laws compared by a permutation test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.symmetry import Symmetry
from equirl.verification.moving import Mover
from equirl.verification.simulators import Outcome, Simulator
from equirl.verification.statistics import energy, permuted_labels

Pair = tuple[NDArray[Any], NDArray[Any]]
Policy = Callable[[Any], Any]
ActionMap = Callable[[int, Any], Any]

ON_POLICY, BROAD = "on-policy", "broad"
DRAWS = 32
"""Next states drawn a side where steps are random and their noise cannot be mirrored."""

PERMUTATIONS = 999

LAW_STATES = 400
"""States of play, and as many far from it, whose laws are compared at most."""


@dataclass
class Comparison:
    """One state and action, stepped on both sides: pairs are (moved by g, from the image)."""

    origin: str
    element: int
    action: Any
    observation: Any
    now: list[Pair] = field(default_factory=list)  # the observation itself; empty where no image is known
    then: list[Pair] = field(default_factory=list)  # the next one
    rewards: tuple[float, float] = (0.0, 0.0)
    terminated: tuple[bool, bool] = (False, False)
    laws: NDArray[np.float64] | None = None  # energy distance of the laws, observed first, then shuffled


@dataclass
class Comparisons:
    """Every comparison of one claim."""

    rows: list[Comparison] = field(default_factory=list)
    missing: int = 0  # states without a known image


class Stepper:
    """Compares the two sides of a claim on states of a simulator."""

    def __init__(self, simulator: Simulator[Any], symmetry: Symmetry, seed: int) -> None:
        self.simulator, self.symmetry = simulator, symmetry
        self.observation = Mover(symmetry.observation, simulator.env.observation_space)
        self.action = Mover(symmetry.action, simulator.env.action_space)
        self.rng = np.random.default_rng(seed)
        self.interactions = 0
        self.labels = permuted_labels(DRAWS, PERMUTATIONS, self.rng)  # the same for all states, so that they add up

    def states(self, count: int, policy: Policy | None = None) -> Iterator[tuple[str, Any]]:
        """Yield states met by a policy (by random play without one) and, as many, states far from it."""
        sim, env = self.simulator, self.simulator.env
        env.action_space.seed(self._seed())
        met = 0
        while met < count:
            sim.reset(self._seed())
            over = False
            while not over and met < count:
                state = sim.read()
                yield ON_POLICY, state
                met += 1
                action = policy(sim.observe(state)) if policy else env.action_space.sample()
                _, _, terminated, truncated, _ = env.step(action)
                self.interactions += 1
                over = terminated or truncated
        for _ in range(count):
            scattered = sim.scatter(self.rng)
            if scattered is None:
                return
            yield BROAD, scattered

    def nature(self, states: list[tuple[str, Any]]) -> tuple[bool, int]:
        """Return whether steps are random, and how many differed though state, action and seed were equal."""
        random, unrepeatable = False, 0
        for _, state in states[:: max(1, len(states) // 100)]:
            action, seed = self.simulator.env.action_space.sample(), self._seed()
            first = self._step(state, action, seed)
            unrepeatable += not same(first, self._step(state, action, seed))
            random = random or any(not same(first, self._step(state, action, self._seed())) for _ in range(3))
        return random, unrepeatable

    def compare(
        self, states: list[tuple[str, Any]], move_action: ActionMap | None = None, random: bool = False
    ) -> Comparisons:
        """Step each state and its image with an action and its image.

        Args:
            states: what to compare, each with where it comes from.
            move_action: in place of the claim's own map of actions, for negative controls.
            random: whether steps draw random numbers.
        """
        found = Comparisons()
        move = move_action or self.action
        elements = [g for g in range(len(self.symmetry.group)) if not self._does_nothing(g)]
        for number, (origin, state) in enumerate(states):
            g = elements[number % len(elements)]
            action, seed = self.simulator.env.action_space.sample(), self._seed()
            image = self.simulator.image(state, self.symmetry, g)
            seen = self.simulator.observe(state)
            row = Comparison(origin, g, action, seen)
            found.rows.append(row)
            if image is None:
                found.missing += 1
                continue
            row.now = _pairs(self.observation(g, seen), self.simulator.observe(image))
            if random and not self.simulator.mirrors_noise:
                self._compare_laws(row, state, image, move(g, action))
                continue
            left = self._step(state, action, seed)
            self._note(
                row,
                left._replace(observation=self.observation(g, left.observation)),
                self._step(image, move(g, action), seed, g),
            )
        return found

    def returns(self, states: list[tuple[str, Any]], horizon: int = 100, discount: float = 0.99) -> list[Pair]:
        """Return discounted returns of the same random actions from each state, and of their images from its image."""
        found = []
        for number, (_, state) in enumerate(states):
            g = 1 + number % (len(self.symmetry.group) - 1)
            image = self.simulator.image(state, self.symmetry, g)
            if image is None:
                continue
            seed = self._seed()
            actions = [self.simulator.env.action_space.sample() for _ in range(horizon)]
            left = self._return(state, actions, discount, seed, 0)
            right = self._return(image, [self.action(g, action) for action in actions], discount, seed, g)
            found.append((np.asarray(left), np.asarray(right)))
        return found

    def _return(self, state: Any, actions: list[Any], discount: float, seed: int, g: int) -> float:
        first = self._step(state, actions[0], seed, g)
        total, over = first.reward, first.terminated
        for t, action in enumerate(actions[1:], 1):
            if over:
                break
            _, reward, over, _, _ = self.simulator.env.step(action)
            self.interactions += 1
            total += discount**t * float(reward)
        return total

    def _compare_laws(self, row: Comparison, state: Any, image: Any, moved_action: Any) -> None:
        """Draw next states on both sides, few where they are all the same, and shuffle the sides."""
        sides: tuple[list[Outcome], list[Outcome]] = ([], [])
        for draws in (2, DRAWS - 2):
            for _ in range(draws):
                sides[0].append(self._moved_step(row.element, state, row.action))
                sides[1].append(self._step(image, moved_action, self._seed()))
            outcomes = [*sides[0], *sides[1]]
            if all(same(outcomes[0], other) for other in outcomes[1:]):
                break
        self._note(row, sides[0][0], sides[1][0])
        if len(sides[0]) == DRAWS:
            distances = _distances(outcomes)
            row.laws = energy(distances, self.labels)

    @staticmethod
    def _note(row: Comparison, left: Outcome, right: Outcome) -> None:
        row.then = _pairs(left.observation, right.observation)
        row.rewards, row.terminated = (left.reward, right.reward), (left.terminated, right.terminated)

    def _moved_step(self, g: int, state: Any, action: Any) -> Outcome:
        found = self._step(state, action, self._seed())
        return found._replace(observation=self.observation(g, found.observation))

    def _step(self, state: Any, action: Any, seed: int, g: int = 0) -> Outcome:
        self.interactions += 1
        return self.simulator.step(state, action, seed, self.symmetry if g else None, g)

    def _does_nothing(self, g: int) -> bool:
        return self.symmetry.observation.is_identity(g) and self.symmetry.action.is_identity(g)

    def _seed(self) -> int:
        return int(self.rng.integers(2**31))


def same(first: Outcome, second: Outcome) -> bool:
    """Whether two outcomes are equal bit for bit."""
    return first[1:] == second[1:] and all(
        np.array_equal(ours, theirs) for ours, theirs in _pairs(first.observation, second.observation)
    )


def _pairs(ours: Any, theirs: Any) -> list[Pair]:
    """Return the parts of two observations, key by key for dictionaries."""
    if isinstance(ours, dict):
        return [pair for key in sorted(ours) for pair in _pairs(ours[key], theirs[key])]
    return [(np.asarray(ours), np.asarray(theirs))]


def _distances(outcomes: list[Outcome]) -> NDArray[np.float64]:
    """Return how far outcomes are apart: 1 for different ones, or, where all differ, the distance of their numbers."""
    keys = [(outcome.reward, outcome.terminated, *(p.tobytes() for p, _ in _parts(outcome))) for outcome in outcomes]
    names = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(names) < len(outcomes):
        numbers = np.array([names[key] for key in keys])
        different: NDArray[np.float64] = (numbers[:, None] != numbers).astype(np.float64)
        return different
    flat = np.stack(
        [
            np.concatenate([[o.reward, o.terminated], *(p.ravel().astype(np.float64) for p, _ in _parts(o))])
            for o in outcomes
        ]
    )
    spread = flat.std(0)
    flat = (flat - flat.mean(0))[:, spread > 0] / spread[spread > 0]
    apart = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(-1))
    scaled: NDArray[np.float64] = apart / max(float(apart.mean()), 1e-12)
    return scaled


def _parts(outcome: Outcome) -> list[Pair]:
    return _pairs(outcome.observation, outcome.observation)
