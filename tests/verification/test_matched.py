"""Films of large pictures tell mirrored actions from others, and a lopsided background from a symmetric one."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from equirl import Grid, Symmetry, check_symmetry, cyclic
from equirl.representations import Permutation
from equirl.verification.matched import is_large_picture

FLIP = Grid(cyclic(2), ["identity", "flip_x"])
MIRROR = Symmetry(FLIP, Permutation(cyclic(2), [[0, 1, 2], [0, 2, 1]]))


class Ship(gym.Env[Any, Any]):
    """A ship that flies left or right from the left third of a large picture, under snow."""

    def __init__(self, fault: str = "", channels_last: bool = False) -> None:
        self.fault, self.channels_last = fault, channels_last
        self.observation_space = spaces.Box(0, 255, (48, 48, 1) if channels_last else (1, 48, 48), np.uint8)
        self.action_space = spaces.Discrete(3)

    def _seen(self) -> Any:
        picture = np.full((48, 48), 40, np.uint8)
        picture[self.np_random.integers(48, size=20), self.np_random.integers(48, size=20)] = 200
        if self.fault == "wall":
            picture[:, :8] = 90
        at = int(self.x) % 48
        picture[20:26, max(at - 2, 0) : at + 3] = 255
        return picture[..., None] if self.channels_last else picture[None]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 16.0
        return self._seen(), {}

    def step(self, action):
        push = (0, 1, -1)[action] * (0 if self.fault == "adrift" else 1)
        self.x = float(np.clip(self.x + push, 2, 45))
        return self._seen(), 0.0, False, False, {}


@pytest.mark.parametrize("channels_last", [False, True])
def test_mirrored_actions_make_mirrored_films(channels_last):
    report = check_symmetry(Ship(channels_last=channels_last), MIRROR)
    assert (report.verdict, report.tier) == ("approximate", 2), report
    assert report.numbers["resemblance"]["r"] > 0.005 > 0 > report.numbers["resemblance_with_unmoved_actions"]["r"]
    assert report.controls[0]["refuted"]


def test_actions_that_do_nothing_decide_nothing():
    assert check_symmetry(Ship("adrift"), MIRROR).verdict == "undecidable"


def test_a_wrong_axis_decides_nothing_good():
    upright = Symmetry(Grid(cyclic(2), ["identity", "flip_y"]), MIRROR.action)
    assert check_symmetry(Ship(), upright).verdict == "undecidable"


def test_a_lopsided_background_refutes():
    report = check_symmetry(Ship("wall"), MIRROR)
    assert report.verdict == "rejected"
    assert report.error == pytest.approx(16 / 48, abs=0.03)  # the wall and its image


def test_small_pictures_and_vectors_are_not_large():
    assert is_large_picture(Ship().observation_space)
    assert not is_large_picture(spaces.Box(0, 255, (3, 9, 9), np.uint8))
    assert not is_large_picture(spaces.Box(0, 255, (4, 40, 40), np.uint8))
    assert not is_large_picture(spaces.Box(-1, 1, (64,)))
