"""Which symmetry each known environment has, how well it holds, and the wrapper that makes it hold.

Importing this module registers every entry; the package's entry point ``equirl.symmetries`` does so on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from equirl.envs import _mujoco_mirrors as mujoco
from equirl.errors import unknown
from equirl.symmetry import Symmetry, register_symmetry, resolve_symmetry
from equirl.verification.simulators import register_simulator

VERDICTS = ("exact", "exact in law", "approximate", "locally broken", "rejected", "undecidable")


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
    same_actions: tuple[int, ...] = ()  # they do the same everywhere, so exchanging them is no error
    source: str = "measured"  # where the claim comes from
    sides: tuple[int, int] | None = None  # of the wrapper's pictures: of others the claim is not made

    @property
    def name(self) -> str:
        """The name under which the symmetry is registered: the environment's id and the variant, if any."""
        return f"{self.env_id}:{self.variant}" if self.variant else self.env_id

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry itself, for a rejected entry the claim."""
        return _maker(self)() if self.rejected else resolve_symmetry(self.name)

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


def _buttons(names: str, swap: str = "") -> list[int]:
    """Return the permutation that swaps two of the actions, which are named by one letter each."""
    return [names.index(name.translate(str.maketrans(swap, swap[::-1]))) for name in names]


def _minatar(
    game: str, minimal: str, verdict: str, note: str, *flips: tuple[Any, str], idle: str = ""
) -> Iterator[Entry]:
    """Yield a game's entries: all six actions in -v0, those that the game uses in -v1. A flip swaps two actions."""
    for version, names in enumerate(("nlurdf", minimal)):
        generators = tuple((seen, _buttons(names, swap)) for seen, swap in flips)
        name, wrapper = f"MinAtar/{game}-v{version}", "equirl.envs.minatar.ChannelsFirst"
        same = tuple(a for a, letter in enumerate(names) if letter in idle)
        yield Entry(name, generators, verdict, note, wrapper, extra="minatar", same_actions=same, sides=(10, 10))


_AROUND_CHICKEN = {"grid": "flip_x", "shift": [0, 9]}  # column c of the torus to (8 - c) mod 10
_NOT_THE_GAUGES = {"grid": "flip_x", "channels": list(range(10)), "fixed": [7, 8]}
_SWAP_MARCH = {"grid": "flip_x", "channels": [0, 1, 3, 2, 4, 5]}  # the channels of aliens that go left and right

_MINIGRID = ("Empty-8x8", "FourRooms", "DoorKey-6x6", "LavaGapS7", "SimpleCrossingS9N1", "Dynamic-Obstacles-6x6")
_TRANSPOSED = {"keys": {"image": "flip_y", "direction": [1, 0, 3, 2]}}  # right with down, left with up


def _minigrid(name: str) -> Entry:
    moving = name.startswith("Dynamic")
    return Entry(
        f"MiniGrid-{name}-v0",
        ((_TRANSPOSED, _buttons("lrf" if moving else "lrfpdtx", "lr")),),
        "exact in law" if moving else "exact",
        "transpose the world, which mirrors the agent's view" + ("; the obstacles move at random" if moving else ""),
        wrapper="equirl.envs.minigrid.ImageAndDirection",
        extra="minigrid",
        same_actions=(3, 4, 5, 6) if name.startswith("Empty") else (),
    )


_LEFT_RIGHT = "3-4 6-7 8-9 11-12 14-15 16-17"  # in ALE's full set of actions
_UP_DOWN = "2-5 6-8 7-9 10-13 14-16 15-17"


def _swaps(count: int, pairs: str) -> list[int]:
    """Return the permutation of so many actions that swaps pairs of them."""
    permutation = list(range(count))
    for pair in pairs.split():
        one, other = map(int, pair.split("-"))
        permutation[one], permutation[other] = other, one
    return permutation


_SIDES = {"Asterix": (64, 80), "Asteroids": (88, 80), "Boxing": (68, 56), "DemonAttack": (86, 80), "Enduro": (51, 76)}
_SIDES |= {"Freeway": (81, 76), "MsPacman": (86, 80), "Seaquest": (72, 76), "SpaceInvaders": (85, 78)}


def _atari(
    game: str, note: str, *flips: tuple[Any, list[int]], rejected: str = "", background_only: bool = False
) -> Entry:
    verdict = "rejected" if rejected else "undecidable" if background_only else "approximate"
    source = "the still background alone" if background_only else "measured"
    if background_only:
        note += "; play did not tell"
    wrapper = "equirl.envs.atari_games.GameFrame"
    sides = _SIDES[game]
    return Entry(f"ALE/{game}-v5", flips, verdict, note, wrapper, variant=rejected, source=source, sides=sides)


_LANDER = _signs(-1, 1, -1, 1, -1, -1, 1, 1, swap=(6, 7))
_LANDER_NOTE = "mirror left-right, swap the legs; exact in flight, hard landings depend on the solver's order"


def _mujoco(
    env_id: str, verdict: str, note: str, *maps: mujoco.Generator, variant: str = "", without: tuple[str, ...] = ()
) -> Entry:
    kwargs = {f"include_{part}_in_observation": False for part in without}
    return Entry(env_id, maps, verdict, note, extra="mujoco", variant=variant, kwargs=kwargs)


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
    Entry("LunarLander-v3", ((_LANDER, [0, 3, 2, 1]),), "approximate", _LANDER_NOTE, extra="box2d"),
    Entry("LunarLanderContinuous-v3", ((_LANDER, _signs(1, -1)),), "approximate", _LANDER_NOTE, extra="box2d"),
    _mujoco("Swimmer-v5", "exact", "mirror across the direction of swimming", mujoco.SWIMMER),
    _mujoco("Reacher-v5", "exact", "turn and mirror the plane", mujoco.REACHER_TURN, mujoco.REACHER_MIRROR),
    _mujoco("Reacher-v5", "exact", "mirror the plane alone", mujoco.REACHER_MIRROR, variant="mirror"),
    _mujoco("Walker2d-v5", "exact", "swap the two legs", mujoco.WALKER),
    _mujoco("Walker2d-v4", "rejected", "swap the two legs: one foot slides less", mujoco.WALKER, variant="swap"),
    _mujoco(
        "Ant-v5",
        "exact",
        "mirror across the direction of walking; call its front its back",
        mujoco.ANT_HALF_TURN,
        mujoco.ANT_MIRROR,
        without=("cfrc_ext",),
    ),
    _mujoco(
        "Ant-v5",
        "exact",
        "mirror across the direction of walking alone",
        mujoco.ANT_MIRROR,
        without=("cfrc_ext",),
        variant="mirror",
    ),
    _mujoco("InvertedPendulum-v5", "approximate", "mirror the rail; the pole leans by 0.001 m", mujoco.PENDULUM),
    _mujoco(
        "InvertedDoublePendulum-v5", "approximate", "mirror the rail; gravity leans by 1e-6", mujoco.DOUBLE_PENDULUM
    ),
    _mujoco(
        "Humanoid-v5",
        "rejected",
        "mirror left-right: the left knee is stiffer, the left hip's armature larger",
        mujoco.HUMANOID,
        without=("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
        variant="mirror",
    ),
    Entry("equirl/GridWorld-v0", (_TURN, _MIRROR), "exact", "every turn and mirror of the square"),
    Entry("equirl/GridWorld-v0", (_TURN,), "exact", "the quarter turns alone, at half the cost", variant="C4"),
    Entry(
        "ALE/Pong-v5",
        (("flip_y", _swaps(6, "2-3 4-5")),),
        "approximate",
        "mirror up-down, RIGHT is up; the opponent aims 10 rows off; background differs by 0%",
        wrapper="equirl.envs.atari.PongFrame",
        sides=(80, 80),
    ),
    Entry(
        "ALE/Breakout-v5",
        (("flip_x", _swaps(4, "2-3")),),
        "approximate",
        "mirror left-right; the paddle slides 8 pixels behind the right wall only; background differs by 0%",
        wrapper="equirl.envs.atari.BreakoutFrame",
        sides=(80, 72),
    ),
    _atari(
        "SpaceInvaders",
        "mirror left-right; background differs by at most 2% below the aliens, which begin on the left",
        ("flip_x", _swaps(6, "2-3 4-5")),
        background_only=True,
    ),
    _atari(
        "DemonAttack",
        "mirror left-right; background differs by 0%",
        ("flip_x", _swaps(6, "2-3 4-5")),
        background_only=True,
    ),
    _atari("MsPacman", "mirror left-right; background differs by at most 2%", ("flip_x", _swaps(9, "2-3 5-6 7-8"))),
    _atari("Asterix", "mirror left-right; background differs by 0%", ("flip_x", _swaps(9, "2-3 5-6 7-8"))),
    _atari(
        "Seaquest",
        "mirror left-right, gauges averaged with their mirror; background differs by at most 0.3%",
        ("flip_x", _swaps(18, _LEFT_RIGHT)),
    ),
    _atari(
        "Asteroids",
        "mirror left-right and up-down, both swap the turns; speeds differ by 2%; background differs by 0%",
        ("flip_x", _swaps(14, "3-4 6-7 9-10 12-13")),
        ("flip_y", _swaps(14, "3-4 6-7 9-10 12-13")),
        background_only=True,
    ),
    _atari("Boxing", "mirror up-down; background differs by at most 0.5%", ("flip_y", _swaps(18, _UP_DOWN))),
    _atari("Enduro", "mirror left-right; background differs by at most 2%", ("flip_x", _swaps(9, "2-3 5-6 7-8"))),
    _atari(
        "Freeway",
        "mirror left-right: cars drive right on one half and left on the other; background differs by 12%",
        ("flip_x", [0, 1, 2]),
        rejected="plain_flip",
    ),
    *_minatar("Breakout", "nlr", "exact in law", "mirror left-right", ("flip_x", "lr"), idle="nudf"),
    *_minatar(
        "Asterix",
        "nlurd",
        "exact in law",
        "mirror left-right and up-down",
        ("flip_x", "lr"),
        ("flip_y", "ud"),
        idle="nf",
    ),
    *_minatar(
        "Freeway",
        "nud",
        "exact in law",
        "mirror left-right about the chicken's column",
        (_AROUND_CHICKEN, ""),
        idle="nlrf",
    ),
    *_minatar("Seaquest", "nlurdf", "exact in law", "mirror left-right all but gauges", (_NOT_THE_GAUGES, "lr")),
    *_minatar("SpaceInvaders", "nlrf", "locally broken", "mirror left-right; ties shoot left", (_SWAP_MARCH, "lr")),
    Entry(
        "MinAtar/Freeway-v1",
        (("flip_x", [0, 1, 2]),),
        "rejected",
        "mirror left-right about the middle: the chicken does not stand there",
        wrapper="equirl.envs.minatar.ChannelsFirst",
        extra="minatar",
        variant="plain_flip",
        sides=(10, 10),
    ),
    Entry(
        "MinAtar/Seaquest-v1",
        (("flip_x", [0, 3, 2, 1, 4, 5]),),
        "rejected",
        "mirror left-right and the gauges with it: they fill the same way in every world",
        wrapper="equirl.envs.minatar.ChannelsFirst",
        extra="minatar",
        variant="flipped_gauges",
        sides=(10, 10),
    ),
    *(_minigrid(name) for name in _MINIGRID),
)


def entries_of(env_id: str) -> list[Entry]:
    """Return the entries of one environment, its default first; an empty list where there is none."""
    return sorted((entry for entry in ENTRIES if entry.env_id == env_id), key=lambda entry: bool(entry.variant))


def default_entry(env_id: str) -> Entry | None:
    """Return the entry that `auto` stands for: true of the environment as it is made without choosing a variant."""
    doubtful = ("rejected", "undecidable")
    return next((e for e in entries_of(env_id) if not e.variant and e.verdict not in doubtful), None)


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
    return partial(Symmetry.generated_by, *entry.generators, name=entry.name, sides=entry.sides)


for _entry in ENTRIES:
    if not _entry.rejected:
        hint = f"equirl.envs.make({_entry.name!r}) makes an environment that it fits"
        register_symmetry(_entry.name, _maker(_entry), hint)

_CLASSIC = "gymnasium.envs.classic_control"
for _module, _class in (("cartpole", "CartPole"), ("acrobot", "Acrobot"), ("pendulum", "Pendulum")):
    register_simulator(f"{_CLASSIC}.{_module}:{_class}Env", f"equirl.envs.classic_control:{_class}Simulator")
register_simulator("minatar.gym:BaseEnv", "equirl.envs.minatar:MinAtarSimulator")
register_simulator("minigrid.minigrid_env:MiniGridEnv", "equirl.envs.minigrid:MiniGridSimulator")
register_simulator("ale_py.env:AtariEnv", "equirl.envs.atari_memory:AleSimulator")
register_simulator("gymnasium.envs.mujoco.mujoco_env:MujocoEnv", "equirl.envs.mujoco:MujocoSimulator")
register_simulator("gymnasium.envs.box2d.lunar_lander:LunarLander", "equirl.envs.lunar_lander:LunarLanderSimulator")
