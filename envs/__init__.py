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
from equirl.envs.minatar import register_envs as register_minatar
from equirl.envs.minigrid import register_envs as register_minigrid
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
    "register_minigrid",
]

gym.register_envs(ale_py)
register_envs()
register_minatar()


class WithSymmetry(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with the symmetry claimed for it, on pictures as SB3's policies see them: channels first."""

    stateless = True

    def __init__(self, env: gym.Env[Any, Any], symmetry: Symmetry) -> None:
        super().__init__(env)
        self.symmetry = symmetry


def make(name: str, wrapper_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Return the environment of a catalogue entry, with the keywords and the wrapper under which its symmetry holds.

    A name that is not in the catalogue is an environment's id, and that is returned as Gymnasium makes it. A false
    claim is made ready to be checked but not carried as the environment's symmetry.
    """
    register_minigrid(name)
    entry = next((entry for entry in ENTRIES if entry.name == name), None)
    if entry is None:
        return gym.make(name, **kwargs)
    env = gym.make(entry.env_id, **{**entry.kwargs, **kwargs})
    if entry.wrapper:
        env = resolve_name(entry.wrapper)(env, **(wrapper_kwargs or {}))
    return env if entry.rejected else WithSymmetry(env, entry.symmetry)


def make_to_check(name: str) -> gym.Env[Any, Any]:
    """Return the environment of `make`, Atari's games whole: else most resets would only play on after a lost life."""
    atari = name in {entry.name for entry in ENTRIES} and (entry_named(name).wrapper or "").startswith(
        f"{__name__}.atari"
    )
    return make(name, {"terminal_on_life_loss": False} if atari else None)
