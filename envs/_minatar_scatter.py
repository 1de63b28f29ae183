"""States of MinAtar's games over the whole range that their rules allow, far beyond what a policy meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Game = dict[str, Any]
Rng = np.random.Generator


def _below(rng: Rng, high: int, low: int = 0) -> int:
    """Draw a whole number from low to high, both included."""
    return int(rng.integers(low, high + 1))


def _coin(rng: Rng, chance: float = 0.5) -> bool:
    return bool(rng.random() < chance)


def _breakout(rng: Rng) -> Game:
    bricks = np.zeros((10, 10))
    bricks[1:4] = rng.random((3, 10)) < rng.choice([0.0, 0.2, 0.8, 1.0])
    ball_x, ball_y, direction = _below(rng, 9), _below(rng, 8), _below(rng, 3)
    if _coin(rng):
        ball_y = 8  # where the paddle matters
    return {
        "ball_x": ball_x,
        "ball_y": ball_y,
        "ball_dir": direction,
        "last_x": min(9, max(0, ball_x - (1 if direction in (1, 2) else -1))),
        "last_y": min(8, max(0, ball_y - (1 if direction in (2, 3) else -1))),
        "pos": min(9, max(0, ball_x + _below(rng, 2, -2))) if _coin(rng) else _below(rng, 9),
        "brick_map": bricks,
        "strike": _coin(rng),
    }


def _asterix(rng: Rng) -> Game:
    crowd = rng.random()
    return {
        "player_x": _below(rng, 9),
        "player_y": _below(rng, 8, 1),
        "entities": [
            [_below(rng, 9), row, _coin(rng), _coin(rng, 1 / 3)] if _coin(rng, crowd) else None for row in range(1, 9)
        ],
        "spawn_speed": _below(rng, 10, 1),
        "spawn_timer": 0 if _coin(rng) else _below(rng, 10),
        "move_speed": _below(rng, 5, 1),
        "move_timer": 0 if _coin(rng) else _below(rng, 5),
        "ramp_timer": -1 if _coin(rng, 0.1) else _below(rng, 100),
        "ramp_index": _below(rng, 9),
    }


def _freeway(rng: Rng) -> Game:
    cars = []
    for row in range(1, 9):
        speed = _below(rng, 5, 1)
        cars.append([_below(rng, 9), row, 0 if _coin(rng) else _below(rng, speed), speed if _coin(rng) else -speed])
    return {
        "cars": cars,
        "pos": 1 if _coin(rng, 0.2) else _below(rng, 9, 1),
        "move_timer": 0 if _coin(rng) else _below(rng, 3),
        "terminate_timer": 0 if _coin(rng, 0.05) else _below(rng, 2500),
    }


def _seaquest(rng: Rng) -> Game:
    column, row, speed = _below(rng, 9), _below(rng, 8), _below(rng, 5, 2)

    def things(most: int, *timers: int, top: int = 1) -> list[list[Any]]:
        return [
            [_below(rng, 9), _below(rng, 8, top), _coin(rng), *(_below(rng, last) for last in timers)]
            for _ in range(_below(rng, most))
        ]

    return {
        "sub_x": column,
        "sub_y": row,
        "sub_or": column == 9 or (column > 0 and _coin(rng)),  # the rear of the submarine is on the screen
        "f_bullets": things(3, top=0),
        "e_bullets": things(3),
        "e_fish": things(5, speed),
        "e_subs": things(4, speed, 10),
        "divers": things(3, 5),
        "oxygen": _below(rng, 2) if _coin(rng, 0.2) else _below(rng, 200),
        "diver_count": _below(rng, 6),
        "surface": row == 0,
        "move_speed": speed,
        "e_spawn_speed": _below(rng, 20, 1),
        "e_spawn_timer": 0 if _coin(rng, 0.3) else _below(rng, 20),
        "d_spawn_timer": 0 if _coin(rng, 0.3) else _below(rng, 30),
        "shot_timer": 0 if _coin(rng) else _below(rng, 5),
        "ramp_index": _below(rng, 9),
    }


def _space_invaders(rng: Rng) -> Game:
    aliens = (rng.random((10, 10)) < rng.choice([0.02, 0.05, 0.1])).astype(float)
    aliens[_below(rng, 8), _below(rng, 9)] = 1  # the rules need one
    return {
        "pos": _below(rng, 9),
        "alien_map": aliens,
        "f_bullet_map": (rng.random((10, 10)) < 0.05).astype(float),
        "e_bullet_map": (rng.random((10, 10)) < 0.05).astype(float),
        "alien_dir": 1 if _coin(rng) else -1,
        "enemy_move_interval": _below(rng, 12, 6),
        "alien_move_timer": 0 if _coin(rng) else _below(rng, 12),
        "alien_shot_timer": 0 if _coin(rng, 0.8) else _below(rng, 10),
        "shot_timer": 0 if _coin(rng) else _below(rng, 5),
        "ramp_index": _below(rng, 6),
    }


SCATTER: dict[str, Callable[[Rng], Game]] = {
    "asterix": _asterix,
    "breakout": _breakout,
    "freeway": _freeway,
    "seaquest": _seaquest,
    "space_invaders": _space_invaders,
}
"""For each game, a draw of the attributes that its next step depends on."""
