"""Tier 1 for environments that publish their transition table: every state and action, exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from equirl.symmetry import Symmetry
from equirl.verification.moving import Mover

Law = dict[tuple[int, float, bool], float]


def table_of(env: gym.Env[Any, Any]) -> Any | None:
    """Return ``unwrapped.P``, where ``P[s][a]`` lists (probability, next state, reward, terminated), or None."""
    table = getattr(env.unwrapped, "P", None)
    discrete = isinstance(env.observation_space, spaces.Discrete) and isinstance(env.action_space, spaces.Discrete)
    return table if table is not None and discrete else None


def broken_pairs(env: gym.Env[Any, Any], table: Any, symmetry: Symmetry) -> list[list[tuple[int, int, float]]]:
    """Return for each element the state-action pairs at which P(g s' | g s, g a) is not P(s' | s, a).

    Each is (state, action, total variation): half the sum over next state, reward and termination of the difference.
    """
    state, action = Mover(symmetry.observation, env.observation_space), Mover(symmetry.action, env.action_space)
    found = []
    for g in range(len(symmetry.group)):
        broken = []
        for s in range(len(table)):
            for a in range(len(table[s])):
                here = _law(table[s][a], [int(state(g, np.array(t))) for _, t, _, _ in table[s][a]])
                there = table[int(state(g, np.array(s)))][int(action(g, np.array(a)))]
                distance = _total_variation(here, _law(there, [int(t) for _, t, _, _ in there]))
                if distance > 1e-9:
                    broken.append((s, a, distance))
        found.append(broken)
    return found


def _law(outcomes: Sequence[Any], states: Sequence[int]) -> Law:
    law: Law = defaultdict(float)
    for (probability, _, reward, terminated), state in zip(outcomes, states, strict=True):
        law[state, float(reward), bool(terminated)] += float(probability)
    return law


def _total_variation(first: Law, second: Law) -> float:
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in {*first, *second}) / 2
