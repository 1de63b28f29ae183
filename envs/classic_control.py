"""Gymnasium's classic control with its state set: what `check_symmetry` steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.verification.simulators import ByObservation, Settable

State = NDArray[np.float64]


class CartPoleSimulator(Settable):
    """CartPole, whose state is its observation; a state that has fallen may be stepped as if it had just been met."""

    def write(self, state: Any) -> None:
        super().write(state)
        base: Any = self.env.unwrapped
        base.steps_beyond_terminated = None


class _Angles(ByObservation):
    """Shows angles as (cos, sin) pairs, then the velocities: state (angles, velocities) of shape (2 n,)."""

    angles = 1
    fastest: tuple[float, ...]

    def read(self) -> State:
        base: Any = self.env.unwrapped
        return np.array(base.state, dtype=np.float64)

    def write(self, state: State) -> None:
        base: Any = self.env.unwrapped
        base.state = state.copy()

    def encode(self, state: State) -> State:
        turns = state[: self.angles]
        return np.concatenate([np.stack([np.cos(turns), np.sin(turns)], 1).ravel(), state[self.angles :]])

    def decode(self, observation: Any, like: Any) -> State | None:
        pairs = np.asarray(observation, dtype=np.float64)[: 2 * self.angles].reshape(-1, 2)
        if np.abs((pairs**2).sum(1) - 1).max() > 1e-6:
            return None
        return np.concatenate([np.arctan2(pairs[:, 1], pairs[:, 0]), observation[2 * self.angles :]])

    def scatter(self, rng: np.random.Generator) -> State:
        return np.concatenate([rng.uniform(-np.pi, np.pi, self.angles), rng.uniform(-1, 1, self.angles) * self.fastest])


class AcrobotSimulator(_Angles):
    """Acrobot: two angles and their velocities."""

    angles = 2
    fastest = (4 * np.pi, 9 * np.pi)


class PendulumSimulator(_Angles):
    """Pendulum: one angle and its velocity."""

    fastest = (8.0,)
