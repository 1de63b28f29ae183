"""Worlds of MiniGrid far beyond those that its environments lay out: objects, doors and agent anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

_PORTABLE = ("Key", "Ball", "Box")
_ALL = (*_PORTABLE, "Door", "Floor", "Wall", "Goal", "Lava")
_STEPS = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # right, down, left, up


def scatter_objects(world: dict[str, Any], rng: np.random.Generator) -> None:
    """Change a world's attributes in place: strew objects on free cells, change doors, put the agent anywhere.

    The layout stays, and so does the number of moving obstacles. The agent often stands before something or carries it.
    """
    grid = world["grid"]
    inside = [(i, j) for i in range(1, grid.width - 1) for j in range(1, grid.height - 1)]
    free = [cell for cell in inside if grid.get(*cell) is None]
    rng.shuffle(free)
    for _ in range(int(rng.integers(len(free) // 4 + 1))):
        _put(grid, _thing(rng), free.pop())
    for thing in grid.grid:
        if thing is not None and thing.type == "door":
            thing.is_open, thing.is_locked = [(True, False), (False, False), (False, True)][rng.integers(3)]
    standing = [cell for cell in inside if grid.get(*cell) is None or grid.get(*cell).can_overlap()]
    world["agent_pos"] = standing[rng.integers(len(standing))]
    world["agent_dir"] = int(rng.integers(4))
    column, row = np.add(world["agent_pos"], _STEPS[world["agent_dir"]]).tolist()
    if rng.random() < 0.7 and 0 < column < grid.width - 1 and 0 < row < grid.height - 1 and not grid.get(column, row):
        _put(grid, _thing(rng, ("Key", "Ball", "Box", "Door")), (column, row))  # what actions act on
    world["step_count"] = int(rng.integers(world["max_steps"]))
    if rng.random() < 0.5:
        world["carrying"] = _thing(rng, _PORTABLE)


def _put(grid: Any, thing: Any, cell: tuple[int, int]) -> None:
    grid.set(*cell, thing)
    thing.init_pos = thing.cur_pos = cell


def _thing(rng: np.random.Generator, kinds: Sequence[str] = _ALL) -> Any:
    objects = import_module("minigrid.core.world_object")
    colour = rng.choice(["red", "green", "blue", "purple", "yellow", "grey"]).item()
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind in ("Goal", "Lava"):
        return getattr(objects, kind)()
    if kind == "Box":
        return objects.Box(colour, contains=_thing(rng, _PORTABLE) if rng.random() < 0.5 else None)
    return getattr(objects, kind)(colour)
