"""Discovery finds exactly the symmetries that the catalogue lists, and none where there is none."""

from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest

from equirl import Symmetry
from equirl.envs import entry_named, make_to_check
from equirl.envs.gridworld import GridWorldEnv
from equirl.verification import discover_symmetries
from equirl.verification.controls import plain_map

MODULE = {"box2d": "Box2D"}


def elements(symmetry: Symmetry) -> set[str]:
    """Return what every element but the identity does to observations and actions."""
    both = [(symmetry.observation, symmetry.action)]
    return {
        repr([sorted(plain_map(rep, g).items()) for rep in pair])
        for pair in both
        for g in range(1, len(symmetry.group))
    }


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        # tests/verification/test_discovery.py finds these two as well
        pytest.param("Acrobot-v1", marks=pytest.mark.slow),
        pytest.param("Pendulum-v1", marks=pytest.mark.slow),
        pytest.param("LunarLander-v3", marks=pytest.mark.slow),
        pytest.param("Reacher-v5", marks=pytest.mark.slow),
        "equirl/GridWorld-v0",
        "MinAtar/Breakout-v1",
        pytest.param("MinAtar/Asterix-v1", marks=pytest.mark.slow),
    ],
)
def test_exactly_the_listed_group_is_found(name):
    entry = entry_named(name)
    if entry.extra and not find_spec(MODULE.get(entry.extra, entry.extra)):
        pytest.skip(f"needs the extra {entry.extra}")
    found = discover_symmetries(make_to_check(name), interactions=10_000)  # by default twice as many
    assert found.symmetry is not None, found
    assert elements(found.symmetry) == elements(entry.symmetry)
    assert found.interactions <= 50_000
    assert found.report is not None
    assert found.report.verdict == entry.verdict
    names: dict[str, Symmetry] = {}
    exec(found.code(), {}, names)
    assert elements(names["symmetry"]) == elements(entry.symmetry)


class Windy(GridWorldEnv):
    """A GridWorld whose wind blows along the diagonal in some columns: no turn or mirror preserves that."""

    def step(self, action):
        row, column = (int(value) for value in self.state.agent[0])
        blows = column in (2, 3) and row != column and self.np_random.random() < 0.5
        return super().step(3 if blows else action)


@pytest.mark.parametrize(
    ("name", "interactions"),
    [
        ("MountainCar-v0", 10_000),
        ("HalfCheetah-v5", 10_000),
        pytest.param("wind", 20_000, marks=pytest.mark.slow),  # tests/verification/test_pictures.py has one that stays
    ],
)
def test_nothing_is_found_where_nothing_is(name, interactions):
    if name == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    env = gym.wrappers.TimeLimit(Windy(), 50) if name == "wind" else gym.make(name)
    found = discover_symmetries(env, interactions=interactions)
    assert found.symmetry is None, found
    assert found.code() == f"# no symmetry of {found.environment} was found"
    assert found.interactions <= 50_000
    assert found.next_best is not None
    assert np.isfinite(found.next_best)
