"""Worlds of MiniGrid far beyond those that its environments lay out: objects, doors and agent anywhere."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np


def scatter_objects(world: dict[str, Any], rng: np.random.Generator) -> None:
    """Change a world's attributes in place: strew objects on free cells, change doors, put the agent anywhere.

    The layout stays, and so does the number of moving obstacles. The agent may carry something.
    """
    grid = world["grid"]
    inside = [(i, j) for i in range(1, grid.width - 1) for j in range(1, grid.height - 1)]
    free = [cell for cell in inside if grid.get(*cell) is None]
    rng.shuffle(free)
    for _ in range(int(rng.integers(len(free) // 3 + 1))):
        _put(grid, _thing(rng), free.pop())
    for thing in grid.grid:
        if thing is not None and thing.type == "door":
            thing.is_open, thing.is_locked = [(True, False), (False, False), (False, True)][rng.integers(3)]
    standing = [cell for cell in inside if grid.get(*cell) is None or grid.get(*cell).can_overlap()]
    world["agent_pos"] = standing[rng.integers(len(standing))]
    world["agent_dir"] = int(rng.integers(4))
    world["step_count"] = int(rng.integers(world["max_steps"]))
    if rng.random() < 0.5:
        world["carrying"] = _thing(rng, portable=True)


def _put(grid: Any, thing: Any, cell: tuple[int, int]) -> None:
    grid.set(*cell, thing)
    thing.init_pos = thing.cur_pos = cell


def _thing(rng: np.random.Generator, portable: bool = False) -> Any:
    objects = import_module("minigrid.core.world_object")
    colour = rng.choice(["red", "green", "blue", "purple", "yellow", "grey"]).item()
    kinds = ["Key", "Ball", "Box"] if portable else ["Key", "Ball", "Box", "Door", "Floor", "Wall", "Goal", "Lava"]
    kind = rng.choice(kinds).item()
    if kind in ("Goal", "Lava"):
        return getattr(objects, kind)()
    if kind == "Box":
        return objects.Box(colour, contains=_thing(rng, portable=True) if rng.random() < 0.5 else None)
    return getattr(objects, kind)(colour)
