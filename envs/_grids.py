"""The rules of GridWorld, for many grids at once."""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from equirl.errors import UserError

STEP_REWARD = -0.01
GOAL_REWARD = 1.0
_TILE = 32  # pixels along the side of a drawn cell
_FLOOR, _LINE = (246, 244, 239), (224, 220, 211)
_WALL, _GOAL, _AGENT = (71, 85, 105), (226, 160, 63), (37, 99, 168)
_AIR, _STREAK = (231, 239, 243), (196, 215, 225)  # the floor of windy cells, and what blows over it


class State(NamedTuple):
    """All that the rules depend on, in N grids: walls (N, n, n) bool, goal and agent (N, 2) as row and column."""

    walls: NDArray[np.bool_]
    goal: NDArray[np.int64]
    agent: NDArray[np.int64]


class Grids:
    """The rules, for N grids at once.

    The board holds the observation inside a border of walls one cell wide, so that no move needs a bounds check.
    A position is an index into the flattened board, counted in the wall plane of its own grid.
    """

    def __init__(self, num: int, size: int, n_walls: int, wind: float) -> None:
        check_whole("size", size, 3)
        check_whole("n_walls", n_walls, 0, size * size - 2)
        _check_share("wind", wind)
        width = size + 2
        self.size, self.n_walls, self.width, self.plane = size, n_walls, width, width * width
        self.board = np.zeros((num, 3, width, width), np.uint8)
        self.flat = self.board.reshape(-1)
        self.inside = self.board[:, :, 1:-1, 1:-1]
        self.origin = np.arange(num) * 3 * self.plane
        self.cells = np.arange(self.plane).reshape(width, width)[1:-1, 1:-1].reshape(-1)
        self.moves = np.array([-width, -1, width, 1])  # up, left, down, right
        # A generator of their own, always seeded alike, draws the windy cells: no episode and no other draw matters.
        windy = self.cells[np.random.default_rng(0).permutation(size * size)[: round(wind * size * size)]]
        self.windy = np.isin(np.arange(self.plane), windy)
        self.blows = bool(self.windy.any())
        self.goal = self.origin.copy()
        self.agent = self.origin.copy()
        self.ready = False

    def sample(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> None:
        """Draw new layouts for the given grids, again and again for those whose goal is out of reach."""
        while rows.size:
            count = np.arange(rows.size)
            order = rng.random((rows.size, self.cells.size)).argsort(axis=1)
            cells = self.cells[order[:, : self.n_walls + 2]]
            free = np.zeros((rows.size, self.plane), np.bool_)
            free[:, self.cells] = True
            free[count[:, None], cells[:, 2:]] = False
            good = connected(free, cells[:, 0], cells[:, 1], self.width)
            self.place(rows[good], free[good], cells[good, 0], cells[good, 1])
            rows = rows[~good]

    def place(
        self, rows: NDArray[np.int64], free: NDArray[np.bool_], goal: NDArray[np.int64], agent: NDArray[np.int64]
    ) -> None:
        """Lay out the given grids; `free`, `goal` and `agent` refer to one plane of the board, border included."""
        self.board[rows, 0] = np.where(free, 0, 255).reshape(-1, self.width, self.width)
        self.board[rows, 1:] = 0
        self.goal[rows] = self.origin[rows] + goal
        self.agent[rows] = self.origin[rows] + agent
        self.flat[self.goal[rows] + self.plane] = 255
        self.flat[self.agent[rows] + 2 * self.plane] = 255
        self.ready = True

    def step(self, actions: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Move every agent and return which of them now stand on their goal."""
        if not self.ready:
            raise ResetNeeded("call reset() before the first step()")
        if actions.shape != self.agent.shape or actions.dtype.kind not in "iu" or (actions >> 2).any():
            expected = f"{self.agent.size} whole number(s) from 0 to 3"
            raise UserError(f"actions {np.array2string(actions, threshold=8)}: expected {expected}")
        target = self.agent + self.moves[actions]
        agent = np.where(self.flat[target] == 255, self.agent, target)
        if self.blows:
            target = agent + (self.windy[self.agent - self.origin] & (agent != self.goal))
            agent = np.where(self.flat[target] == 255, agent, target)
        self.flat[self.agent + 2 * self.plane] = 0
        self.flat[agent + 2 * self.plane] = 255
        self.agent = agent
        reached: NDArray[np.bool_] = agent == self.goal
        return reached

    def observe(self) -> NDArray[np.uint8]:
        """Return the observations, a new array (N, 3, n, n)."""
        return self.inside.copy()

    def get_state(self) -> State:
        """Return a copy of the state."""
        if not self.ready:
            raise ResetNeeded("call reset() before reading the state")
        goal, agent = (np.stack(np.divmod(p - self.origin, self.width), -1) - 1 for p in (self.goal, self.agent))
        return State(self.inside[:, 0] > 0, goal, agent)

    def set_state(self, state: State) -> None:
        """Put every grid into the given state."""
        num, size = len(self.origin), self.size
        shapes = {"walls": (num, size, size), "goal": (num, 2), "agent": (num, 2)}
        for (name, shape), part in zip(shapes.items(), state, strict=True):
            if np.shape(part) != shape:
                raise UserError(f"state.{name} has shape {np.shape(part)}: expected {shape}")
        rows = np.arange(num)
        free = np.pad(np.asarray(state.walls) == 0, ((0, 0), (1, 1), (1, 1))).reshape(num, -1)
        places = []
        for name, part in (("goal", state.goal), ("agent", state.agent)):
            at = np.asarray(part)
            if at.dtype.kind not in "iu" or at.min() < 0 or at.max() >= size:
                raise UserError(f"state.{name} leaves the grid: expected whole rows and columns from 0 to {size - 1}")
            places.append((at[:, 0] + 1) * self.width + at[:, 1] + 1)
            if not free[rows, places[-1]].all():
                raise UserError(f"state.{name} lies on a wall: expected a free cell")
        self.place(rows, free, *places)

    def frames(self) -> NDArray[np.uint8]:
        """Return one picture of each grid, (N, 32 n, 32 n, 3)."""
        walls, goal, agent = np.moveaxis(self.inside > 0, 1, 0)
        windy = self.windy[self.cells].reshape(self.size, self.size)
        pixels = _tiles()[walls + 2 * goal + 4 * agent + 8 * windy].swapaxes(2, 3)
        side = self.size * _TILE
        frames: NDArray[np.uint8] = pixels.reshape(-1, side, side, 3)
        return frames


def connected(
    free: NDArray[np.bool_], start: NDArray[np.int64], end: NDArray[np.int64], width: int
) -> NDArray[np.bool_]:
    """Return whether a path over free cells joins start to end, by a flood fill of all grids (N, width * width)."""
    count = np.arange(len(free))
    reached = np.zeros_like(free)
    reached[count, start] = True
    while True:
        grown = reached.copy()
        # The border is never free, so a shift of the flattened plane cannot leak from one row's end to the next.
        for shift in (1, width):
            grown[:, shift:] |= reached[:, :-shift]
            grown[:, :-shift] |= reached[:, shift:]
        grown &= free
        met: NDArray[np.bool_] = grown[count, end]
        if met.all() or np.array_equal(grown, reached):
            return met
        reached = grown


@cache
def _tiles() -> NDArray[np.uint8]:
    """Return the picture of a cell for each of its contents, (16, 32, 32, 3): bits 0 to 3 wall, goal, agent, wind."""
    offset = np.abs(np.arange(_TILE) - (_TILE - 1) / 2)
    across, down = offset[None, :], offset[:, None]
    border = np.maximum(across, down) > _TILE / 2 - 1
    streaks = np.zeros((_TILE, _TILE))
    for row, start, end in ((7, 9, 25), (15, 4, 20), (23, 12, 28)):
        streaks[row : row + 2, start:end] = np.linspace(0, 1, end - start)  # they gain strength to the right
    shapes = (
        (3, _AIR, ~border),
        (3, _STREAK, streaks),
        (0, _WALL, ~border),
        (1, _GOAL, np.clip(12.5 - across - down, 0, 1)),
        (2, _AGENT, np.clip(10 - np.hypot(across, down), 0, 1)),
    )
    tiles = np.full((16, _TILE, _TILE, 3), _FLOOR, np.float64)
    tiles[:, border] = _LINE
    for bit, colour, coverage in shapes:
        has = (np.arange(16) >> bit & 1).astype(np.bool_)
        tiles[has] += coverage[..., None] * (colour - tiles[has])
    return tiles.round().astype(np.uint8)


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"{name} {value!r}: expected a number from 0 to 1")


def check_whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    """Raise a `UserError` unless the value is a whole number within the limits."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        limits = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise UserError(f"{name} is {value!r}: expected a whole number {limits}")
