"""Which symmetry each known environment has, how well it holds, and the wrapper that makes it hold.

Importing this module registers every entry; the package's entry point ``equirl.symmetries`` does so on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from equirl.errors import unknown
from equirl.symmetry import Symmetry, register_symmetry, resolve_symmetry

VERDICTS = ("exact", "exact in law", "approximate")


@dataclass(frozen=True)
class Entry:
    """One environment's symmetry as the catalogue lists it."""

    env_id: str
    generators: tuple[tuple[Any, Any], ...]
    verdict: str
    note: str
    wrapper: str | None = None  # dotted path; the symmetry is that of the wrapped environment
    extra: str | None = None  # what installs the environment: pip install equirl[extra]
    variant: str = ""  # told apart where an environment has several entries

    @property
    def name(self) -> str:
        """The name under which the symmetry is registered: the environment's id and the variant, if any."""
        return f"{self.env_id}:{self.variant}" if self.variant else self.env_id

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry itself."""
        return resolve_symmetry(self.name)


def _signs(*signs: int, swap: tuple[int, int] | None = None) -> dict[str, Any]:
    permutation = list(range(len(signs)))
    if swap:
        permutation[swap[0]], permutation[swap[1]] = swap[1], swap[0]
    return {"signs": list(signs), "permutation": permutation}


_TURN = ("rot90", [1, 2, 3, 0])  # up, left, down, right
_MIRROR = ("flip_x", [0, 3, 2, 1])

ENTRIES: tuple[Entry, ...] = (
    Entry("CartPole-v1", ((_signs(-1, -1, -1, -1), [1, 0]),), "exact", "mirror the track, push the other way"),
    Entry("Acrobot-v1", ((_signs(1, -1, 1, -1, -1, -1), [2, 1, 0]),), "exact", "mirror both angles, negate the torque"),
    Entry("Pendulum-v1", ((_signs(1, -1, -1), _signs(-1)),), "exact", "mirror the angle, negate the torque"),
    Entry(
        "LunarLander-v3",
        ((_signs(-1, 1, -1, 1, -1, -1, 1, 1, swap=(6, 7)), [0, 3, 2, 1]),),
        "exact in law",
        "mirror left-right, swap the legs; terrain, wind and dispersion are random",
        extra="box2d",
    ),
    Entry("equirl/GridWorld-v0", (_TURN, _MIRROR), "exact", "every turn and mirror of the square"),
    Entry("equirl/GridWorld-v0", (_TURN,), "exact", "the quarter turns alone, at half the cost", variant="C4"),
    Entry(
        "ALE/Pong-v5",
        (("flip_y", [0, 1, 3, 2, 5, 4]),),
        "approximate",
        "mirror up-down; the opponent's dead band sits 4 pixels off centre",
        wrapper="equirl.envs.atari.PongFrame",
    ),
    Entry(
        "ALE/Breakout-v5",
        (("flip_x", [0, 1, 3, 2]),),
        "approximate",
        "mirror left-right; the paddle slides 8 pixels further behind the right wall",
        wrapper="equirl.envs.atari.BreakoutFrame",
    ),
)


def entries_of(env_id: str) -> list[Entry]:
    """Return the entries of one environment, the largest group first; an empty list where there is none."""
    return [entry for entry in ENTRIES if entry.env_id == env_id]


def entry_named(name: str) -> Entry:
    """Return the entry registered under a name.

    >>> entry_named("CartPole-v1").verdict
    'exact'
    """
    found = {entry.name: entry for entry in ENTRIES}
    if name not in found:
        raise unknown("catalogue entry", name, found)
    return found[name]


def _maker(entry: Entry) -> Callable[[], Symmetry]:
    return partial(Symmetry.generated_by, *entry.generators, name=entry.name)


for _entry in ENTRIES:
    register_symmetry(_entry.name, _maker(_entry))
