"""Regression of one step's change, reward and termination on observation and action, from logged transitions.

Ridge regression on linear, quadratic and random Fourier features (Rahimi and Recht 2007), fitted for each value of a
Discrete action; every target takes the one of the nested sets of features that validates best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.errors import UserError
from equirl.verification.transitions import Transitions

Array = NDArray[Any]

FOURIER = 300  # more of them bring little on logs of some ten thousand rows
RIDGES = (1e-6, 1e-3)
MOST_INPUTS = 64
FARTHEST = 6.0  # standard deviations from the mean at which features stop to grow: beyond, a model knows nothing


class Steps:
    """Transitions of vectors as numbers: inputs (N, d), actions (N,) or (N, k), targets (N, d + 2).

    The targets are the change of each entry of the observation, the reward, and whether the episode terminated.

    Args:
        transitions: of a Box or MultiBinary observation space with one axis.

    Raises:
        UserError: observations or actions of another kind, or more than 64 entries.

    >>> import gymnasium as gym
    >>> Steps(Transitions.record(gym.make("CartPole-v1"), 50)).targets.shape
    (50, 6)
    """

    def __init__(self, transitions: Transitions) -> None:
        seen, done = transitions.observation_space, transitions.action_space
        if len(seen.shape or ()) != 1 or not isinstance(seen, spaces.Box | spaces.MultiBinary):
            raise UserError(f"observation space {seen}: expected vectors of numbers, a Box with one axis")
        self.discrete = isinstance(done, spaces.Discrete)
        self.choices = int(done.n) if isinstance(done, spaces.Discrete) else None
        if not self.discrete and len(done.shape or ()) != 1:
            raise UserError(f"action space {done}: expected Discrete, or a vector of numbers")
        entries = seen.shape[0] + (0 if self.discrete else done.shape[0])  # type: ignore[index]
        if entries > MOST_INPUTS:
            raise UserError(f"{entries} entries of observations and actions: expected at most {MOST_INPUTS}")
        self.transitions = transitions
        self.inputs = transitions.observations.astype(np.float64)
        self.actions = transitions.actions.astype(np.int64 if self.discrete else np.float64)
        if isinstance(done, spaces.Discrete):
            self.actions = self.actions - int(done.start)
        change = transitions.next_observations.astype(np.float64) - self.inputs
        self.targets = np.column_stack([change, transitions.rewards, transitions.terminated])


class Features:
    """Linear, quadratic and Fourier features of rows (N, d), each group of columns containing the one before.

    Args:
        inputs: rows whose mean and spread set the scale.
        seed: of the Fourier features.
    """

    def __init__(self, inputs: Array, seed: int = 0) -> None:
        size = inputs.shape[1]
        self.mean, self.spread = inputs.mean(0), inputs.std(0)
        self.spread[self.spread < 1e-9 * (1 + np.abs(self.mean))] = np.inf  # a constant entry tells nothing
        self.pairs = np.triu_indices(size)
        rng = np.random.default_rng(seed)
        self.waves = rng.normal(size=(size, FOURIER)) / (2 * np.sqrt(size))
        self.phases = rng.uniform(0, 2 * np.pi, FOURIER)
        self.ends = tuple(int(end) for end in np.cumsum([1 + size, len(self.pairs[0]), FOURIER]))

    def __call__(self, inputs: Array) -> Array:
        """Return the features of rows, (N, columns)."""
        z = np.clip((inputs - self.mean) / self.spread, -FARTHEST, FARTHEST)
        first, second = self.pairs
        return np.column_stack([np.ones(len(z)), z, z[:, first] * z[:, second], np.cos(z @ self.waves + self.phases)])


class Ridge:
    """Ridge regression that chooses features and penalty for each target on the last quarter of its rows.

    Args:
        rows: features, (N, columns).
        targets: (N, targets).
        ends: number of columns of each nested set of features.
    """

    def __init__(self, rows: Array, targets: Array, ends: tuple[int, ...]) -> None:
        cut = max(1, 3 * len(rows) // 4)
        parts = [(rows[:cut], targets[:cut]), (rows[cut:], targets[cut:])]
        (gram, moment), (late_gram, late_moment) = ((x.T @ x, x.T @ y) for x, y in parts)
        best = np.full(targets.shape[1], np.inf)
        choice: list[tuple[int, float]] = [(1, 1.0)] * targets.shape[1]
        ends = tuple(end for end in ends if end <= cut / 3) or (1,)
        for end in ends:
            for ridge in RIDGES:
                guess = parts[1][0][:, :end] @ _solve(gram, moment, end, ridge)
                errors = ((guess - parts[1][1]) ** 2).mean(0) if len(guess) else np.zeros(len(best))
                for j in np.flatnonzero(errors < 0.99 * best):  # a richer set must earn its place
                    best[j], choice[j] = errors[j], (end, ridge)
        self.weights = np.zeros((rows.shape[1], targets.shape[1]))
        for end, ridge in set(choice):
            targets_of = [j for j, chosen in enumerate(choice) if chosen == (end, ridge)]
            self.weights[:end, targets_of] = _solve(
                gram + late_gram, moment[:, targets_of] + late_moment[:, targets_of], end, ridge
            )


def _solve(gram: Array, moment: Array, end: int, ridge: float) -> Array:
    scale = np.sqrt(np.maximum(gram.diagonal()[:end], 1e-12))
    normal = gram[:end, :end] / np.outer(scale, scale) + ridge * np.eye(end)
    solved: Array = np.linalg.solve(normal, moment[:end] / scale[:, None]) / scale[:, None]
    return solved


class Dynamics:
    """A model of one step: (observation, action) -> targets as in `Steps`, rare jumps capped.

    Args:
        inputs: observations, (N, d).
        actions: (N,) integers from 0, or (N, k).
        targets: (N, d + 2).
        choices: how many values a Discrete action has, None for a vector.
        seed: of the random features.
        caps: beyond what jumps are cut off; by default five times the bulk of each target.

    >>> import gymnasium as gym
    >>> steps = Steps(Transitions.record(gym.make("CartPole-v1"), 1000))
    >>> model = Dynamics(steps.inputs[:800], steps.actions[:800], steps.targets[:800], steps.choices)
    >>> error = model.capped(steps.targets) - model(steps.inputs, steps.actions)
    >>> bool(np.abs(error[800:, :4]).max() < 0.05)
    True
    """

    def __init__(
        self, inputs: Array, actions: Array, targets: Array, choices: int | None, seed: int = 0, caps: Any = None
    ) -> None:
        self.caps = caps_of(targets) if caps is None else caps
        self.discrete = choices is not None
        capped = self.capped(targets)
        joined = inputs if choices is not None else np.column_stack([inputs, actions])
        self.features = Features(joined, seed)
        values = self.features(joined)
        self.known = np.bincount(actions, minlength=choices) >= 20 if choices is not None else np.ones(1, np.bool_)
        self.weights = np.zeros((choices or 1, values.shape[1], capped.shape[1]))
        for action in np.flatnonzero(self.known):
            rows = actions == action if self.discrete else slice(None)
            self.weights[action] = Ridge(values[rows], capped[rows], self.features.ends).weights
        self.spread = capped.std(0)
        self.open = np.sqrt(((capped - self(inputs, actions)) ** 2).mean(0))

    def capped(self, targets: Array) -> Array:
        """Return targets with rare jumps cut off, and after them, where there are such jumps, the small changes."""
        more = len(self.caps) - targets.shape[-1]
        return self.clipped(np.concatenate([targets, targets[..., :more]], axis=-1))

    def clipped(self, guesses: Array) -> Array:
        """Return guesses within what targets may be."""
        found: Array = np.clip(guesses, -self.caps, self.caps)
        return found

    def __call__(self, inputs: Array, actions: Array) -> Array:
        """Return what is expected of a step, (N, targets)."""
        if not self.discrete:
            return self.clipped(self.features(np.column_stack([inputs, actions])) @ self.weights[0])
        values = self.features(inputs)
        guess = np.empty((len(inputs), self.weights.shape[2]))
        for action in np.unique(actions):
            mask = actions == action
            guess[mask] = values[mask] @ self.weights[action]
        return self.clipped(guess)

    def every(self, inputs: Array) -> Array:
        """Return what is expected of each Discrete action, (actions, N, targets)."""
        return self.clipped(self.features(inputs) @ self.weights)


def caps_of(targets: Array) -> Array:
    """Return beyond what each target is cut off, (d + 2,) or, where changes jump (contacts, crashes), (d + 2 + d,).

    Jumps would drown all else, so changes are then targets twice: cut off where they are rare, and where they are not
    small. What does nothing but jump is kept as it is.
    """
    size = np.abs(targets)
    small, bulk, most = np.quantile(size, 0.8, axis=0), np.quantile(size, 0.9, axis=0), size.max(0)
    caps = np.where(small > 0, np.minimum(5 * bulk, most), most)
    heavy = (small > 0) & (most > 10 * small)
    found: Array = np.concatenate([caps, 2 * small[:-2]]) if heavy[:-2].any() else caps
    return found


class Relations:
    """Entries of observations that quadratic functions of the others give, such as the difference of two others.

    A transformation that breaks such a relation leads to observations that never occur.

    Args:
        inputs: observations, (N, d).
        limit: largest part of an entry's spread that the relation may leave open.
    """

    def __init__(self, inputs: Array, limit: float = 0.05) -> None:
        size = inputs.shape[1]
        self.features = Features(inputs)
        values = self._values(inputs)
        gram, moment = values.T @ values, values.T @ inputs
        first, second = self.features.pairs
        spread = inputs.std(0)
        self.weights = np.zeros((values.shape[1], size))
        for i in range(size):
            free = np.concatenate([[True], np.arange(size) != i, (first != i) & (second != i)])
            self.weights[free, i] = _solve(gram[np.ix_(free, free)], moment[free][:, [i]], int(free.sum()), 1e-6)[:, 0]
        self.open = np.sqrt(((inputs - values @ self.weights) ** 2).mean(0))
        self.entries = np.flatnonzero((self.open < limit * spread) & np.isfinite(self.features.spread))
        self.spread = spread[self.entries]

    def _values(self, inputs: Array) -> Array:
        return self.features(inputs)[:, : self.features.ends[1]]

    def errors(self, inputs: Array) -> Array:
        """Return by how much observations break each relation, (N, relations)."""
        found: Array = inputs[:, self.entries] - self._values(inputs) @ self.weights[:, self.entries]
        return found
