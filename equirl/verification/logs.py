"""Whether logged transitions agree with a claimed symmetry: the check that needs no environment.

A model is fitted on one half of the log. On the other half, its residual on the images of transitions is compared with
its residual on the transitions themselves:

    rho_g = max over targets j of sqrt((mean |g y - f(g s, g a)|_j^2 + tau_j^2) / (mean |y - f(s, a)|_j^2 + tau_j^2))

where the targets y are the change of each entry of the observation, the reward, the termination, and the relations
among entries that every observation obeys; tau is 2% of a target's spread. A symmetry gives 1, up to what the log does
not cover and the model has not learned. A second model then learns from the first half and its images together. Images
under a symmetry are as good as further transitions; others contradict what is there, and its residual on the second
half, where it extrapolates less than the first model, rises:

    kappa_g = max over targets j of |y - f_g(s, a)|_j / |y - f(s, a)|_j, root mean squares with tau as above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from equirl.errors import UserError
from equirl.symmetry import Symmetry
from equirl.verification.models import Dynamics, Relations, Steps
from equirl.verification.moving import Mover
from equirl.verification.transitions import Transitions

Array = NDArray[Any]
Move = Callable[[Array, Array, Array], tuple[Array, Array, Array]]
"""From inputs, actions and targets as in `Steps` to their images."""

TOLERANCE = 0.02
"""Part of a target's spread below which differences do not count."""

REFUTED = 1.25
"""A ratio that no true symmetry reached and every wrong one passed, over the environments that were measured."""

CONTRADICTED = 1.02
"""A rise of the residual when images are learned from too that, being surely larger, tells a wrong symmetry."""

FEWEST = 1000
"""Transitions without which a model of vectors says little."""


@dataclass(frozen=True)
class Comparison:
    """How well the images of transitions under one transformation fit.

    Args:
        ratio: rho_g, that of the worst target.
        interval: 95% of a bootstrap over blocks of the log, for that target.
        worst: which target: `"entry 3"`, `"small changes of entry 3"`, `"reward"`, `"termination"` or
            `"relation of entry 3"`.
        ratios: rho_g of each target, by name.
        coverage: share of the images that lie within the log, as near to other observations as 95% of its own rows;
            where it is small the model extrapolates.
        contradiction: the rise kappa_g of the residual when images are learned from too, at least (a bound that 99.5%
            of the bootstrap exceeds), of the worst target; None where the first ratio refutes already.
    """

    ratio: float
    interval: tuple[float, float]
    worst: str
    ratios: dict[str, float]
    coverage: float
    contradiction: float | None

    @property
    def refuted(self) -> bool:
        """Whether the images fit so badly that this is no symmetry, whatever the log's chance."""
        return self.contradiction is None or self.contradiction > CONTRADICTED

    @property
    def agrees(self) -> bool:
        """Whether the images fit, and there are such observations in the log."""
        return not self.refuted and self.ratio <= REFUTED and self.coverage >= 0.1


@dataclass(frozen=True)
class LogCheck:
    """What logged transitions say about a symmetry.

    Args:
        elements: a comparison for each element but the identity, by its name.
        resolution: for each target, how far an image may be off, relative to the target's spread, before rho passes
            1.25: breaking below this is not seen.
        rows: transitions that were compared.
        blocks: parts of the log taken as independent of one another.
    """

    elements: dict[str, Comparison]
    resolution: dict[str, float]
    rows: int
    blocks: int

    @property
    def worst(self) -> Comparison:
        """The comparison of the element that fits worst."""
        return max(self.elements.values(), key=lambda comparison: comparison.ratio)

    @property
    def ratio(self) -> float:
        """The ratio of the element that fits worst."""
        return self.worst.ratio

    @property
    def coverage(self) -> float:
        """The smallest coverage of an element."""
        return min(comparison.coverage for comparison in self.elements.values())

    @property
    def refuted(self) -> bool:
        """Whether an element is surely no symmetry."""
        return any(comparison.refuted for comparison in self.elements.values())

    @property
    def agrees(self) -> bool:
        """Whether every element fits, and the log covers images of its observations."""
        return all(comparison.agrees for comparison in self.elements.values())


class Evidence:
    """A log split into a half to learn from and a half to compare on, and the model learned.

    Args:
        transitions: vectors only.
        seed: of the split and of the model's features.

    Raises:
        UserError: fewer than 1,000 transitions, or spaces that are not vectors.
    """

    def __init__(self, transitions: Transitions, seed: int = 0) -> None:
        transitions.require(FEWEST)
        self.steps, self.seed = Steps(transitions), seed
        self.blocks = blocks_of(transitions)
        self.rng = np.random.default_rng(seed)
        learned = self.rng.permutation(int(self.blocks.max()) + 1)[self.blocks] % 2 == 0
        self.held = np.flatnonzero(~learned)
        self.learned = np.flatnonzero(learned)
        self.model = Dynamics(*self.rows(self.learned), self.steps.choices, seed)
        self.relations = Relations(self.steps.inputs[learned])
        size = self.steps.inputs.shape[1]
        self.names = [*(f"entry {i}" for i in range(size)), "reward", "termination"]
        self.names += [f"small changes of entry {i}" for i in range(len(self.model.caps) - len(self.names))]
        self.names += [f"relation of entry {i}" for i in self.relations.entries]
        self.spread = np.concatenate([self.model.spread, self.relations.spread])
        self.floor = (TOLERANCE * self.spread) ** 2 + 1e-18
        self.own = self._squares(*self.rows(self.held))

    @cached_property
    def second(self) -> Dynamics:
        """A model of the other half, which shows how far a model can be trusted."""
        return Dynamics(*self.rows(self.held), self.steps.choices, self.seed)

    def rows(self, index: Array) -> tuple[Array, Array, Array]:
        """Return inputs, actions and targets of some rows."""
        return self.steps.inputs[index], self.steps.actions[index], self.steps.targets[index]

    def _squares(self, inputs: Array, actions: Array, targets: Array) -> Array:
        errors = self.model.capped(targets) - self.model(inputs, actions)
        return np.column_stack([errors, self.relations.errors(inputs)]) ** 2

    def ratios(self, squares: Array, places: Array) -> Array:
        """Return rho of each target, given squared residuals of images of the held-out rows at these places."""
        found: Array = np.sqrt((squares.mean(0) + self.floor) / (self.own[places].mean(0) + self.floor))
        return found

    def screen(self, places: Array, move: Move) -> Array:
        """Return rho of each target for images of some held-out rows, which may be few.

        The residual of all rows stands below, if larger: few rows may miss all rare events, and their images show one.
        """
        squares = self._squares(*move(*self.rows(self.held[places])))
        own = np.maximum(self.own[places].mean(0), self.own.mean(0))
        found: Array = np.sqrt((squares.mean(0) + self.floor) / (own + self.floor))
        return found

    def broken(self, inputs: Array) -> Array:
        """Return rho of the relations among the entries of observations alone."""
        own, floor = (values[..., len(self.model.caps) :] for values in (self.own, self.floor))
        squares = self.relations.errors(inputs) ** 2
        found: Array = np.sqrt((squares.mean(0) + floor) / (own.mean(0) + floor))
        return found

    def compare(self, move: Move) -> Comparison:
        """Return how well images of the log fit; where many lie outside of it, those within alone."""
        inputs, actions, targets = move(*self.rows(self.held))
        covered = self.covered(inputs)
        coverage = float(covered.mean())
        places = np.flatnonzero(covered) if 0.1 <= coverage < 0.9 else np.arange(len(inputs))
        ratios, worst, interval = self.estimate(places, inputs[places], actions[places], targets[places])
        by_name = {name: float(value) for name, value in zip(self.names, ratios, strict=True)}
        rise = self.rise(move) if interval[0] <= REFUTED else None
        return Comparison(float(ratios[worst]), interval, self.names[worst], by_name, coverage, rise)

    def estimate(
        self, places: Array, inputs: Array, actions: Array, targets: Array
    ) -> tuple[Array, int, tuple[float, float]]:
        """Return rho of each target for images of the held-out rows at these places, the worst, and its interval."""
        squares = self._squares(inputs, actions, targets)
        ratios = self.ratios(squares, places)
        worst = int(ratios.argmax())
        low, high = np.quantile(self._resampled(squares[:, [worst]], places, [worst])[:, 0], [0.025, 0.975])
        return ratios, worst, (float(low), float(high))

    def rise(self, move: Move) -> float:
        """Return by which factor the residual surely rises when images are learned from too, of the worst target."""
        both = []
        for array, image in zip(self.rows(self.learned), move(*self.rows(self.learned)), strict=True):
            both.append(np.stack([array, image], axis=1).reshape(-1, *array.shape[1:]))  # each beside its image
        model = Dynamics(both[0], both[1], both[2], self.steps.choices, self.seed, self.model.caps)
        inputs, actions, targets = self.rows(self.held)
        squares = (model.capped(targets) - model(inputs, actions)) ** 2
        found = self._resampled(squares, np.arange(len(inputs)), list(range(squares.shape[1])))
        return float(np.quantile(found, 0.005, axis=0).max())

    def _resampled(self, squares: Array, places: Array, targets: list[int], draws: int = 400) -> Array:
        """Return the ratio to the model's own residual over resampled blocks, (draws, targets)."""
        _, block = np.unique(self.blocks[self.held[places]], return_inverse=True)
        count = int(block.max()) + 1
        belongs = csr_array((np.ones(len(block)), (block, np.arange(len(block)))), shape=(count, len(block)))
        times = self.rng.multinomial(count, np.full(count, 1 / count), size=draws)
        rows = (times @ np.bincount(block))[:, None]
        floor = self.floor[targets]
        image, own = (times @ (belongs @ values) / rows for values in (squares, self.own[places][:, targets]))
        found: Array = np.sqrt((image + floor) / (own + floor))
        return found

    @cached_property
    def _cloud(self) -> tuple[Any, Array, float]:
        """Observations to measure distances from, the scale of entries, and the distance of 95% of held-out rows."""
        spread = self.steps.inputs[self.learned].std(0)
        scale = np.where(spread > 1e-12, spread, 1.0)
        some = self.rng.choice(self.learned, min(4000, len(self.learned)), replace=False)
        tree = cKDTree(self.steps.inputs[some] / scale)
        rows = self.rng.choice(self.held, min(1000, len(self.held)), replace=False)
        distances, _ = tree.query(self.steps.inputs[rows] / scale)
        return tree, scale, float(np.quantile(distances, 0.95))

    def covered(self, inputs: Array) -> Array:
        """Return for each row whether it lies as near to the log as 95% of the log's own rows do."""
        tree, scale, limit = self._cloud
        distances, _ = tree.query(inputs / scale, distance_upper_bound=limit * (1 + 1e-9) + 1e-9)
        covered: Array = np.isfinite(distances)
        return covered

    def resolution(self) -> dict[str, float]:
        """Return how far each target may be off, in its spread, before rho reaches the limit."""
        size = np.sqrt((REFUTED**2 - 1) * (self.own.mean(0) + self.floor))
        known = self.spread > 1e-9
        return {name: float(size[i] / self.spread[i]) for i, name in enumerate(self.names) if known[i]}


def check_transitions(transitions: Transitions, symmetry: Symmetry, seed: int = 0) -> LogCheck:
    """Return how well logged transitions of vectors agree with a symmetry, element by element.

    Args:
        transitions: at least 1,000 of them, on more than a handful of episodes.
        symmetry: the claim.
        seed: of the split, the model and the bootstrap.

    Raises:
        UserError: too few transitions, spaces that are no vectors, or a symmetry that does not act on them.

    >>> import gymnasium as gym
    >>> from equirl.symmetry import resolve_symmetry
    >>> found = check_transitions(Transitions.record(gym.make("CartPole-v1"), 2000), resolve_symmetry("CartPole-v1"))
    >>> found.refuted, found.agrees, bool(found.ratio < 1.2)
    (False, True, True)
    """
    symmetry.check_spaces(transitions.observation_space, transitions.action_space)
    if len(symmetry.group) == 1:
        raise UserError(f"{symmetry!r}: expected a symmetry with more than the identity")
    evidence = Evidence(transitions, seed)
    seen = Mover(symmetry.observation, transitions.observation_space)
    done = Mover(symmetry.action, transitions.action_space)
    start = int(getattr(transitions.action_space, "start", 0)) if evidence.steps.discrete else 0

    def move_by(g: int) -> Move:
        def move(inputs: Array, actions: Array, targets: Array) -> tuple[Array, Array, Array]:
            before, after = seen(g, inputs), seen(g, inputs + targets[:, :-2])
            return before, done(g, actions + start) - start, np.column_stack([after - before, targets[:, -2:]])

        return move

    elements = {symmetry.group.names[g]: evidence.compare(move_by(g)) for g in range(1, len(symmetry.group))}
    return LogCheck(elements, evidence.resolution(), len(evidence.held), int(evidence.blocks.max()) + 1)


def blocks_of(transitions: Transitions, most: int = 40) -> Array:
    """Return for each row the number of its block: its episode, or a stretch of it where that is long.

    >>> import gymnasium as gym
    >>> from dataclasses import replace
    >>> logged = Transitions.record(gym.make("CartPole-v1"), 400)
    >>> logged = replace(logged, episodes=np.zeros(400, int))
    >>> np.bincount(blocks_of(logged)).tolist() == [10] * 40
    True
    """
    length = -(-len(transitions) // most)
    order = np.argsort(transitions.episodes, kind="stable")
    episode = transitions.episodes[order]
    starts = np.flatnonzero(np.concatenate([[True], episode[1:] != episode[:-1]]))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    stretch = place // length
    fresh = np.concatenate([[True], (episode[1:] != episode[:-1]) | (stretch[1:] != stretch[:-1])])
    blocks = np.empty(len(order), np.int64)
    blocks[order] = np.cumsum(fresh) - 1
    return blocks
