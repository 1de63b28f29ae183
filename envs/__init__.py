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

from equirl.envs.catalogue import ENTRIES, Entry, default_entry, entries_of, entry_named
from equirl.envs.gridworld import GridWorldEnv, GridWorldVectorEnv, register_envs
from equirl.symmetry import Symmetry

__all__ = [
    "ENTRIES",
    "Entry",
    "GridWorldEnv",
    "GridWorldVectorEnv",
    "WithSymmetry",
    "default_entry",
    "entries_of",
    "entry_named",
    "make",
]

gym.register_envs(ale_py)
register_envs()


class WithSymmetry(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with the symmetry claimed for it, on pictures as SB3's policies see them: channels first."""

    stateless = True

    def __init__(self, env: gym.Env[Any, Any], symmetry: Symmetry) -> None:
        super().__init__(env)
        self.symmetry = symmetry


def make(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return the environment of a catalogue entry, with the keywords and the wrapper under which its symmetry holds.

    A name that is not in the catalogue is an environment's id, and that is returned as Gymnasium makes it. A false claim
    is made ready to be checked but not carried as the environment's symmetry.
    """
    entry = next((entry for entry in ENTRIES if entry.name == name), None)
    if entry is None:
        return gym.make(name, **kwargs)
    env = gym.make(entry.env_id, **{**entry.kwargs, **kwargs})
    if entry.wrapper:
        env = resolve_name(entry.wrapper)(env)
    return env if entry.rejected else WithSymmetry(env, entry.symmetry)
