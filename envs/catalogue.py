"""Which symmetry each known environment has, how well it holds, and the wrapper that makes it hold.

Importing this module registers every entry; the package's entry point ``equirl.symmetries`` does so on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from equirl.errors import unknown
from equirl.symmetry import Symmetry, register_symmetry, resolve_symmetry
from equirl.verification.simulators import register_simulator

VERDICTS = ("exact", "exact in law", "approximate", "locally broken", "rejected")


@dataclass(frozen=True)
class Entry:
    """One environment's symmetry as the catalogue lists it, or a claim that looks true and is rejected."""

    env_id: str
    generators: tuple[tuple[Any, Any], ...]
    verdict: str
    note: str
    wrapper: str | None = None  # dotted path; the symmetry is that of the wrapped environment
    extra: str | None = None  # what installs the environment: pip install equirl[extra]
    variant: str = ""  # told apart where an environment has several entries
    kwargs: dict[str, Any] = field(default_factory=dict)  # of gym.make, under which the symmetry holds
    source: str = "measured"  # where the verdict comes from

    @property
    def name(self) -> str:
        """The name under which the symmetry is registered: the environment's id and the variant, if any."""
        return f"{self.env_id}:{self.variant}" if self.variant else self.env_id

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry itself, for a rejected entry the claim."""
        return Symmetry.generated_by(*self.generators, name=self.name) if self.rejected else resolve_symmetry(self.name)

    @property
    def rejected(self) -> bool:
        """Whether the claim is false: listed and checked, never used."""
        return self.verdict == "rejected"


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
        "MountainCar-v0",
        (({"signs": [-1, -1], "centre": [-math.pi / 6, 0.0]}, [2, 1, 0]),),
        "rejected",
        "mirror about the valley: the hills look alike, but only the right one ends the episode, and bounds differ",
        variant="mirror",
    ),
    Entry(
        "FrozenLake-v1",
        (([4 * (s % 4) + s // 4 for s in range(16)], [3, 2, 1, 0]),),
        "exact",
        "transpose a map that is its own transpose",
        variant="symmetric",
        kwargs={"desc": ["SFFF", "FHFH", "FFFF", "FHFG"]},
    ),
    Entry(
        "FrozenLake-v1",
        (([4 * (s % 4) + s // 4 for s in range(16)], [3, 2, 1, 0]),),
        "rejected",
        "transpose the usual 4x4 map: its holes lie elsewhere",
        variant="transpose",
    ),
    Entry(
        "CliffWalking-v1",
        (([12 * (s // 12) + 11 - s % 12 for s in range(48)], [0, 3, 2, 1]),),
        "rejected",
        "mirror left-right: start and goal are not interchangeable",
        variant="mirror",
    ),
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
    """Return the entries of one environment, its default first; an empty list where there is none."""
    return sorted((entry for entry in ENTRIES if entry.env_id == env_id), key=lambda entry: bool(entry.variant))


def default_entry(env_id: str) -> Entry | None:
    """Return the entry that `auto` stands for: true of the environment as it is made without choosing a variant."""
    return next((entry for entry in entries_of(env_id) if not entry.variant and not entry.rejected), None)


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
    if not _entry.rejected:
        register_symmetry(_entry.name, _maker(_entry))

_CLASSIC = "gymnasium.envs.classic_control"
for _module, _class in (("cartpole", "CartPole"), ("acrobot", "Acrobot"), ("pendulum", "Pendulum")):
    register_simulator(f"{_CLASSIC}.{_module}:{_class}Env", f"equirl.envs.classic_control:{_class}Simulator")
