"""MiniGrid: observations without the text, and the turned and mirrored images of its worlds.

MiniGrid is that of Chevalier-Boisvert et al. 2023 (arXiv 2306.13831). Nothing here imports the package `minigrid`,
which the extra of the same name installs, before one of its environments is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from equirl.envs._minigrid_scatter import scatter_objects
from equirl.errors import UserError
from equirl.symmetry import Symmetry
from equirl.verification.simulators import Simulator, observed

Attributes = dict[str, Any]


def register_envs(env_id: str) -> None:
    """Import minigrid, which registers its environments, where the id is one of its own and not registered yet.

    Raises:
        DependencyNotInstalled: minigrid is missing.

    >>> register_envs("CartPole-v1")
    """
    if not env_id.startswith(("MiniGrid-", "BabyAI-")) or env_id in gym.registry:
        return
    try:
        import_module("minigrid")
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled(f"{error}: expected pip install 'equirl[minigrid]'") from None


class ImageAndDirection(gym.ObservationWrapper[dict[str, Any], Any, dict[str, Any]]):
    """Show what the agent sees, uint8 (3, 7, 7), and where it looks, one of 4; the text of the mission is left out.

    The picture is MiniGrid's own with the channels in front, as SB3's MultiInputPolicy takes it: columns come before
    rows, so the mirror of the view is ``flip_y``. Only environments whose mission never changes lose nothing by it.

    Raises:
        UserError: the observations have no image or no direction.

    >>> class Room(gym.Env):
    ...     image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    ...     observation_space = spaces.Dict(image=image, direction=spaces.Discrete(4))
    >>> ImageAndDirection(Room()).observation_space["image"].shape
    (3, 7, 7)
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict) or not {"image", "direction"} <= set(space.spaces):
            raise UserError(f"observations {space}: expected a Dict with image and direction, as MiniGrid's")
        width, height, channels = space["image"].shape or ()
        image = spaces.Box(0, 255, (channels, width, height), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "direction": space["direction"]})

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        image = np.ascontiguousarray(np.moveaxis(observation["image"], -1, 0))
        return {"image": image, "direction": observation["direction"]}


class Isometry(NamedTuple):
    """One of the eight turns and mirrors of a world: first swap columns with rows, then reverse either."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def place(self, column: Any, row: Any, width: int, height: int) -> tuple[int, int]:
        """Return where a cell of a world of this size comes to lie.

        >>> Isometry(transpose=True, flip_x=True).place(1, 2, width=5, height=4)
        (1, 1)
        """
        if self.transpose:
            column, row, width, height = row, column, height, width
        return int(width - 1 - column if self.flip_x else column), int(height - 1 - row if self.flip_y else row)

    def direction(self, direction: int) -> int:
        """Return what right, down, left or up (0 to 3) becomes."""
        column, row = _STEPS[direction]
        if self.transpose:
            column, row = row, column
        return _STEPS.index((-column if self.flip_x else column, -row if self.flip_y else row))


@cache
def _sources(move: Isometry, width: int, height: int) -> list[int]:
    """Return, for each cell of the moved world, the cell that comes to lie there; both row by row."""
    places = [move.place(index % width, index // width, width, height) for index in range(width * height)]
    new_width = height if move.transpose else width
    return sorted(range(width * height), key=lambda index: places[index][1] * new_width + places[index][0])


_STEPS = [(1, 0), (0, 1), (-1, 0), (0, -1)]
IDENTITY, *MOVES = [Isometry(t, x, y) for t in (False, True) for x in (False, True) for y in (False, True)]


class State(NamedTuple):
    """A world and all else that the next step depends on, but for random draws."""

    world: Attributes  # the environment's attributes
    move: Isometry = IDENTITY  # how it was made from the world that was read


class MiniGridSimulator(Simulator[State]):
    """MiniGrid as a function of world, action and seed, with the turned and mirrored images of its worlds.

    The agent sees the world from where it stands, so a turned world looks the same and a mirrored one is mirrored; the
    direction shows which it is. Random draws of cells (moving obstacles) are moved as well. BabyAI's instructions are
    not: its worlds have no known image. What a subclass keeps under a name that ends in ``_pos`` is a cell.
    """

    precision = 0.0
    mirrors_noise = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._base: Any = env.unwrapped
        self._size = {name: getattr(env.unwrapped, name) for name in ("width", "height")}
        self._move = IDENTITY
        self._claims: dict[int, tuple[Symmetry, dict[int, list[Isometry]]]] = {}

    def reset(self, seed: int) -> None:
        vars(self._base).update(self._size)  # a world that is not square may have been written transposed
        super().reset(seed)

    def read(self) -> State:
        return State(self._copied(vars(self._base)))

    def write(self, state: State) -> None:
        vars(self._base).update(self._copied(state.world))
        self._move = state.move

    def _copied(self, world: Attributes) -> Attributes:
        """Return a copy that keeps who is who; what no step changes is shared."""
        memo: dict[int, Any] = {id(self._base): self._base}
        memo[id(world["grid"])] = grid = copy(world["grid"])
        grid.grid = [thing if _is_fixed(thing) else _copy_of(thing, memo) for thing in grid.grid]
        return deepcopy({name: value for name, value in world.items() if name not in _CONSTANT}, memo)

    def observe(self, state: State) -> Any:
        shown = copy(self._base)  # beside the environment, which stays where it is
        vars(shown).update(state.world)
        return observed(self.env, shown.gen_obs())

    def image(self, state: State, symmetry: Symmetry, g: int) -> State | None:
        if symmetry.observation.is_identity(g):
            return state
        if hasattr(self._base, "instrs"):
            return None
        if id(symmetry) not in self._claims:
            self._claims[id(symmetry)] = symmetry, {}
        _, ranked = self._claims[id(symmetry)]
        if g not in ranked:
            ranked[g] = self._ranked(state, symmetry, g)
        return next(self._images(state, symmetry, g, ranked[g]), None)

    def _images(self, state: State, symmetry: Symmetry, g: int, moves: list[Isometry]) -> Iterator[State]:
        """Yield the images of the state under those of the moves that show g times its observation."""
        expected = self.claimed(state, symmetry, g)
        images = (self.moved(state, move) for move in moves)
        yield from (image for image in images if _same(self.observe(image), expected))

    def _ranked(self, state: State, symmetry: Symmetry, g: int) -> list[Isometry]:
        """Return the moves, first those that most often show what g claims: one view may be its own mirror image."""
        rng = np.random.default_rng(0)
        agreed = dict.fromkeys(MOVES, 0)
        for _ in range(20):
            probe = State(self._copied(state.world))
            scatter_objects(probe.world, rng)
            for image in self._images(probe, symmetry, g, MOVES):
                agreed[image.move] += 1
        return sorted(MOVES, key=lambda move: -agreed[move])

    def moved(self, state: State, move: Isometry) -> State:
        """Return the image of a state that was read or scattered."""
        world = self._copied(state.world)
        width, height, cells = world["width"], world["height"], world["grid"].grid

        def place(cell: Any) -> tuple[int, int]:
            return move.place(cell[0], cell[1], width, height)

        grid = copy(world["grid"])
        grid.width, grid.height = size = (height, width) if move.transpose else (width, height)
        grid.grid = [cells[index] for index in _sources(move, width, height)]
        for thing in grid.grid:
            if not _is_fixed(thing) and thing.cur_pos is not None:
                thing.cur_pos = place(thing.cur_pos)
        world.update(grid=grid, width=size[0], height=size[1], agent_dir=move.direction(world["agent_dir"]))
        for name, value in world.items():
            if name.endswith("_pos") and value is not None and np.shape(value) == (2,):
                world[name] = place(value)
        return State(world, move)

    def scatter(self, rng: np.random.Generator) -> State:
        self.reset(int(rng.integers(2**31)))
        state = self.read()
        scatter_objects(state.world, rng)
        return state

    def seed(self, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> None:
        self._base.np_random = _Cells(seed, IDENTITY if symmetry is None else self._move)


class _Cells:
    """A generator whose `integers` draws columns and rows in turn, of a moved world where a move is given."""

    def __init__(self, seed: int, move: Isometry) -> None:
        self._generator, self._move = np.random.default_rng(seed), move
        self._waiting: list[float] = []

    def integers(self, low: int, high: int | None = None, **kwargs: Any) -> Any:
        if high is None or kwargs:
            return self._generator.integers(low, high, **kwargs)
        if not self._waiting:
            row, column = self._generator.random(2).tolist()
            if self._move.transpose:
                row, column = column, row
            # 1 - 2**-53 - u is exact, and takes every value that a draw may have to another.
            self._waiting = [_TOP - row if self._move.flip_y else row, _TOP - column if self._move.flip_x else column]
        return low + int(self._waiting.pop() * (high - low))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


_TOP = 1 - 2**-53


def _copy_of(thing: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an object and of what it contains, known to the memo, in a third of the time of a deep copy."""
    memo[id(thing)] = twin = copy(thing)
    if twin.contains is not None:
        twin.contains = _copy_of(twin.contains, memo)
    return twin


def _is_fixed(thing: Any) -> bool:
    """Whether a cell is empty or holds what no step changes."""
    return thing is None or thing.type in _UNCHANGING


_UNCHANGING = ("wall", "floor", "goal", "lava")
_CONSTANT = (
    *("action_space", "actions", "observation_space", "spec", "metadata", "_np_random", "_np_random_seed"),
    *("render_mode", "render_size", "window", "clock", "screen_size", "room_grid"),
)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(value, other[key]) for key, value in one.items())
    return bool(np.array_equal(one, other))
