"""Tier 2: where states cannot be set, episodes from resets under mirrored sequences of actions.

In each pair one episode plays random actions a and an independent one plays g a. If the environment and its resets are
symmetric, the second episode moved back by g has the law of the first, so within pairs the two may be exchanged: the
sign of every difference may be flipped. Features are observations, rewards and survival at growing times, alone, in
pairs, and together with the action before and the rewards so far. Equal seeds would prove nothing and are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.symmetry import Symmetry
from equirl.verification.moving import Mover
from equirl.verification.statistics import sign_flip_p_value

Floats = NDArray[np.float64]

LENGTH = 64
_TIMES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_PIXELS = 20  # pictures are pooled to at most so many rows and columns
_PAIRED = 24  # vectors longer than this are compared without products of entries


@dataclass(frozen=True)
class EpisodeTest:
    """What pairs of episodes said."""

    pairs: int
    steps: int
    p_resets: float  # of equal laws of the first observation
    p_value: float  # of equal laws of all features
    difference: float  # the largest mean difference of a feature, in standard deviations
    bound: float  # 95% upper bound of the largest mean difference, in standard deviations
    unseen: float  # share of what images change that leaves the range of values ever seen there


def compare_episodes(env: gym.Env[Any, Any], symmetry: Symmetry, pairs: int, seed: int) -> EpisodeTest:
    """Return how episodes under mirrored actions differ.

    Args:
        env: the environment with its wrappers.
        symmetry: the claim.
        pairs: of episodes.
        seed: of resets, actions and flips.
    """
    rng = np.random.default_rng(seed)
    seen, action = Mover(symmetry.observation, env.observation_space), Mover(symmetry.action, env.action_space)
    elements = [g for g in range(len(symmetry.group)) if not symmetry.observation.is_identity(g)]
    first, rest, steps = [], [], 0
    shown: list[tuple[int, list[Any]]] = []
    for pair in range(pairs):
        g = elements[pair % len(elements)]
        back = symmetry.group.inverse(g)
        env.action_space.seed(int(rng.integers(2**31)))
        actions = [env.action_space.sample() for _ in range(LENGTH)]
        sides = []
        for moved in (actions, [action(g, a) for a in actions]):
            observations, rewards, alive = _played(env, moved, int(rng.integers(2**31)))
            steps += int(alive.sum())
            if moved is actions:
                shown.append((g, observations))
            else:
                observations = [seen(back, o) for o in observations]
            sides.append(_features(env, observations, rewards, alive, actions))
        difference = [ours - theirs for ours, theirs in zip(*sides, strict=True)]
        first.append(difference[0])
        rest.append(np.concatenate(difference[1:]))
    resets, all_features = np.stack(first), np.concatenate([np.stack(first), np.stack(rest)], axis=1)
    p_resets, _ = sign_flip_p_value(resets, rng)
    p_all, z = sign_flip_p_value(all_features, rng)
    largest = float(np.abs(z).max())
    apart, bound = largest / np.sqrt(pairs), (largest + 1.96) / np.sqrt(pairs)
    return EpisodeTest(pairs, steps, p_resets, p_all, float(apart), float(bound), _unseen(env, seen, shown))


def _unseen(env: gym.Env[Any, Any], move: Mover, shown: list[tuple[int, list[Any]]]) -> float:
    """Return which part of the entries that images change takes values outside all that were seen there."""
    space = env.observation_space
    seen = np.stack([_flat(space, o) for _, observations in shown for o in observations])
    low, high = seen.min(0), seen.max(0)
    slack = 0.05 * float((high - low).max())
    changed = outside = 0
    for g, observations in shown:
        for observation in observations[::8]:
            image, own = _flat(space, move(g, observation)), _flat(space, observation)
            changed += int((image != own).sum())
            outside += int(((image < low - slack) | (image > high + slack)).sum())
    return outside / max(changed, 1)


def _played(env: gym.Env[Any, Any], actions: list[Any], seed: int) -> tuple[list[Any], Floats, Floats]:
    """Return observations, rewards so far and whether the episode still runs; an ended one stays as it ended."""
    observation, _ = env.reset(seed=seed)
    observations, rewards, alive = [observation], np.zeros(LENGTH + 1), np.zeros(LENGTH + 1)
    over = False
    for t, action in enumerate(actions, 1):
        if not over:
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards[t], over = float(reward), terminated or truncated
            alive[t] = 1.0
        observations.append(observation)
    return observations, np.cumsum(rewards), alive


def _features(
    env: gym.Env[Any, Any], observations: list[Any], rewards: Floats, alive: Floats, actions: list[Any]
) -> list[Floats]:
    found = []
    for t in _TIMES:
        seen = _flat(env.observation_space, observations[t])
        parts = [seen]
        if len(seen) <= _PAIRED:
            parts.append(np.outer(seen, seen)[np.triu_indices(len(seen))])
        if t:
            before = _centred(env.action_space, actions[t - 1])
            parts += [np.outer(before, seen).ravel(), rewards[t] * seen, before * rewards[t]]
            parts.append(np.array([rewards[t], alive[t]]))
        found.append(np.concatenate(parts))
    return found


def _flat(space: gym.Space[Any], observation: Any) -> Floats:
    """Return an observation as numbers: pictures pooled, discrete ones as one-hot vectors."""
    if isinstance(space, spaces.Dict):
        parts: Floats = np.concatenate([_flat(part, observation[key]) for key, part in space.spaces.items()])
        return parts
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return np.asarray(spaces.flatten(space, observation), dtype=np.float64)
    array = np.asarray(observation, dtype=np.float64)
    if array.ndim < 3:
        return array.ravel()
    if array.shape[-1] < array.shape[-3]:
        array = np.moveaxis(array, -1, -3)
    rows, columns = (-(-size // _PIXELS) | (size > _PIXELS) for size in array.shape[-2:])  # odd, so that they centre
    return _pooled(_pooled(array, rows, -2), columns, -1).ravel()


def _pooled(array: Floats, block: int, axis: int) -> Floats:
    """Return means of blocks of odd size; the remainder is cut off evenly, so that flips commute with pooling."""
    if block == 1:
        return array
    size = array.shape[axis]
    spare = size % block
    if spare % 2:
        spare += block
    kept = np.moveaxis(array, axis, -1)[..., spare // 2 : size - spare // 2]
    means: Floats = np.moveaxis(kept.reshape(*kept.shape[:-1], -1, block).mean(-1), -1, axis)
    return means


def _centred(space: gym.Space[Any], action: Any) -> Floats:
    """Return an action as numbers of mean zero under random play."""
    if isinstance(space, spaces.Box):
        return np.asarray(action, dtype=np.float64).ravel()
    flat: Floats = np.asarray(spaces.flatten(space, action), dtype=np.float64)
    centred: Floats = flat - flat.mean()
    return centred
