"""Environments that carry a checked symmetry: importing this package registers ``equirl/GridWorld-v0`` and Atari's.

>>> env = make("equirl/GridWorld-v0", size=5, n_walls=3)
>>> env.get_wrapper_attr("symmetry").group
D4
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import ale_py
import gymnasium as gym

from equirl.envs.catalogue import ENTRIES, Entry, entries_of, entry_named
from equirl.envs.gridworld import GridWorldEnv, GridWorldVectorEnv, register_envs
from equirl.symmetry import Symmetry

__all__ = [
    "ENTRIES",
    "Entry",
    "GridWorldEnv",
    "GridWorldVectorEnv",
    "WithSymmetry",
    "entries_of",
    "entry_named",
    "make",
]

gym.register_envs(ale_py)
register_envs()


class WithSymmetry(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with the symmetry claimed for it, on pictures as SB3's policies see them: channels first."""

    def __init__(self, env: gym.Env[Any, Any], symmetry: Symmetry) -> None:
        super().__init__(env)
        self.symmetry = symmetry


def make(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return ``gym.make(env_id)`` inside the wrapper that makes its catalogued symmetry hold, with that symmetry.

    An environment that is not in the catalogue is returned as Gymnasium makes it.
    """
    env = gym.make(env_id, **kwargs)
    entries = entries_of(env_id)
    if not entries:
        return env
    entry = entries[0]
    return WithSymmetry(resolve_name(entry.wrapper)(env) if entry.wrapper else env, entry.symmetry)
