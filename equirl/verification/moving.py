"""Moving the observations and actions of Gymnasium spaces, as NumPy values, by the elements of a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from equirl.representations import PerKey, Representation, SignedPermutation, Trivial


class Mover:
    """Moves values of a Gymnasium space by a representation: one value, or many along a leading axis.

    Discrete values count as one-hot vectors, so entry s becomes p_g[s]. Data types stay as they are.

    Args:
        rep: how the group moves them.
        space: where they come from.

    >>> from equirl import symmetry_of
    >>> import gymnasium as gym
    >>> env = gym.make("CartPole-v1")
    >>> move = Mover(symmetry_of("CartPole-v1").action, env.action_space)
    >>> move(1, np.array([0, 0, 1])).tolist(), int(move(1, 0))
    ([1, 1, 0], 1)
    """

    def __init__(self, rep: Representation, space: gym.Space[Any]) -> None:
        self.rep, self.space = rep, space

    def __call__(self, g: int, value: Any) -> Any:
        """Return the value, or each of the values, moved by the element g."""
        return _moved(self.rep, self.space, g, value)


def _moved(rep: Representation, space: gym.Space[Any], g: int, value: Any) -> Any:
    if isinstance(rep, Trivial) or g == 0:
        return value
    if isinstance(space, spaces.Dict) and isinstance(rep, PerKey):
        if not isinstance(value, Mapping):
            raise TypeError(f"{type(value).__name__}: expected a mapping")
        return {key: _moved(rep.keys[key], part, g, value[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete) and isinstance(rep, SignedPermutation):
        start = int(space.start)
        return rep.indices[g][np.asarray(value) - start] + start
    if isinstance(space, spaces.MultiDiscrete) and isinstance(rep, SignedPermutation):
        return _moved_choices(rep, space, g, np.asarray(value))
    array = np.asarray(value)
    moved = rep(g, torch.from_numpy(np.ascontiguousarray(array)))
    return moved.numpy().astype(array.dtype, copy=False)


def _moved_choices(rep: SignedPermutation, space: spaces.MultiDiscrete, g: int, value: Any) -> Any:
    """Move each choice's value within the concatenated one-hot vectors of all choices."""
    sizes = space.nvec.ravel()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flat = value.reshape(*value.shape[: value.ndim - space.nvec.ndim], -1) - space.start.ravel() + starts
    entries = rep.indices[g][flat]
    block = np.searchsorted(starts, entries, side="right") - 1
    moved = np.empty_like(flat)
    np.put_along_axis(moved, block, entries - np.take(starts, block), axis=-1)
    return (moved + space.start.ravel()).reshape(value.shape)
