"""How mirrors and turns move what Gymnasium's MuJoCo environments show, as generators of symmetries.

Positions and velocities of joints follow the order of the model's file. A mirror keeps the polar vectors' parts in its
plane and negates the axial ones' (angular velocities, hinge axes, the vector part of quaternions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Generator = tuple[dict[str, Any], dict[str, Any]]


def _map(*parts: tuple[Sequence[int], Sequence[int]]) -> dict[str, Any]:
    """Return the map that moves blocks of entries one after the other, each by its own permutation and signs."""
    permutation: list[int] = []
    for moved, _ in parts:
        start = len(permutation)
        permutation += [start + entry for entry in moved]
    return {"permutation": permutation, "signs": [sign for _, signs in parts for sign in signs]}


def _signs(*signs: int) -> tuple[Sequence[int], Sequence[int]]:
    return range(len(signs)), signs


SWIMMER: Generator = (_map(_signs(-1, -1, -1, 1, -1, -1, -1, -1)), _map(_signs(-1, -1)))
"""Across the direction of swimming: three angles; velocities along, across, and of the angles."""

PENDULUM: Generator = (_map(_signs(-1, -1, -1, -1)), _map(_signs(-1)))

DOUBLE_PENDULUM: Generator = (_map(_signs(-1, -1, -1, 1, 1, -1, -1, -1, -1)), _map(_signs(-1)))
"""Place, two sines, two cosines, three velocities, the force of the rail's end."""

REACHER_TURN: Generator = (
    _map(([2, 1, 0, 3], [1, 1, -1, 1]), ([1, 0], [1, -1]), _signs(1, 1), ([1, 0], [1, -1])),
    _map(_signs(1, 1)),
)
"""A quarter turn of the plane: cosine and sine of the first joint, target, velocities, from target to tip."""

REACHER_MIRROR: Generator = (_map(_signs(1, 1, -1, -1, 1, -1, -1, -1, 1, -1)), _map(_signs(-1, -1)))

_LEGS = ([3, 4, 5, 0, 1, 2], [1] * 6)
WALKER: Generator = (_map(_signs(1, 1), _LEGS, _signs(1, 1, 1), _LEGS), _map(_LEGS))
"""Not a mirror: the two legs are alike and lie in one plane, so they change names."""


def _ant(
    quaternion: tuple[Sequence[int], Sequence[int]],
    leg_to: Sequence[int],
    hip: int,
    ankle: int,
    velocity: Sequence[int],
    spin: Sequence[int],
) -> Generator:
    legs = ([2 * to + part for to in leg_to for part in (0, 1)], [hip, ankle] * 4)
    slot = [1, 2, 3, 0]  # of each leg among the actions, which begin with the fourth
    actions = [2 * slot[leg_to[(leg - 1) % 4]] + part for leg in range(4) for part in (0, 1)]
    return (
        _map(_signs(1), quaternion, legs, _signs(*velocity), _signs(*spin), legs),
        _map((actions, [hip, ankle] * 4)),
    )


ANT_MIRROR = _ant(_signs(1, -1, 1, -1), [3, 2, 1, 0], -1, 1, [1, -1, 1], [-1, 1, -1])
"""Across the direction of walking: legs 1 and 4, 2 and 3 change places."""

ANT_HALF_TURN = _ant(([3, 2, 1, 0], [1, -1, 1, -1]), [2, 3, 0, 1], 1, -1, [1, 1, 1], [-1, -1, 1])
"""The ant stays where it is and its legs change names, 1 with 3 and 2 with 4, as if its front were its back.

The torso's frame turns by 180 degrees, q -> q k; done twice this gives -q, the same attitude, so the order is 4.
"""

_HUMANOID_JOINTS = (
    [0, 1, 2, 7, 8, 9, 10, 3, 4, 5, 6, 14, 15, 16, 11, 12, 13],
    [-1, 1, -1, *[1] * 8, -1, -1, 1, -1, -1, 1],
)
HUMANOID: Generator = (
    _map(_signs(1), _signs(1, -1, 1, -1), _HUMANOID_JOINTS, _signs(1, -1, 1, -1, 1, -1), _HUMANOID_JOINTS),
    _map((_HUMANOID_JOINTS[0], [1, -1, -1, *_HUMANOID_JOINTS[1][3:]])),  # the abdomen's y comes first here
)
"""Left and right change places: height, attitude, joints and all velocities, without inertias and forces."""
