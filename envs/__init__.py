"""Environments that carry a checked symmetry: importing this package registers ``equirl/GridWorld-v0`` and Atari's.

>>> env = make("equirl/GridWorld-v0", size=5, n_walls=3)
>>> env.get_wrapper_attr("symmetry").group
D4
"""

from __future__ import annotations

from importlib import import_module
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
    "wrapper_named",
]

gym.register_envs(ale_py)
register_envs()


class WithSymmetry(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that carries the symmetry claimed for it, checked against its spaces."""

    def __init__(self, env: gym.Env[Any, Any], symmetry: Symmetry) -> None:
        super().__init__(env)
        self.symmetry = symmetry


def wrapper_named(path: str) -> Any:
    """Return the wrapper of a dotted path such as ``"equirl.envs.atari.PongFrame"``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def make(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return ``gym.make(env_id)`` inside the wrapper that makes its catalogued symmetry hold, with that symmetry.

    An environment that is not in the catalogue is returned as Gymnasium makes it.
    """
    env = gym.make(env_id, **kwargs)
    entries = entries_of(env_id)
    if not entries:
        return env
    entry = entries[0]
    return WithSymmetry(wrapper_named(entry.wrapper)(env) if entry.wrapper else env, entry.symmetry)
