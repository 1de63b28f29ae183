"""Discovery on pictures finds the groups that environments have, no more, and says why where it finds none."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from equirl.envs.gridworld import GridWorldEnv
from equirl.errors import UserError
from equirl.grids import GRID_MAPS
from equirl.verification.discovery import discover_symmetries
from equirl.verification.patches import Move, Patterns, Table
from equirl.verification.pictures import discover_pictures
from equirl.verification.transitions import Transitions

D4 = {
    "rot90": [1, 2, 3, 0],
    "rot180": [2, 3, 0, 1],
    "rot270": [3, 0, 1, 2],
    "flip_x": [0, 3, 2, 1],
    "flip_y": [2, 1, 0, 3],
    "transpose": [1, 0, 3, 2],
    "antitranspose": [3, 2, 1, 0],
}
UP, LEFT, DOWN, RIGHT = range(4)


class Wind(GridWorldEnv):
    """Sometimes moves the agent once more, as `gusts(row, column)` says: the probability of each direction."""

    def __init__(self, gusts):
        super().__init__(size=5, n_walls=2)
        self.gusts = gusts

    def step(self, action):
        row, column = self.state.agent[0]
        directions = self.gusts(row, column)
        chance = self.np_random.random()
        outcome = super().step(action)
        for direction, probability in directions.items():
            if 0 <= chance < probability and not outcome[2]:
                return super().step(direction)
            chance -= probability
        return outcome


class Bonus(GridWorldEnv):
    """Pays for one direction."""

    def __init__(self):
        super().__init__(size=5, n_walls=2)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + (action == LEFT), *rest


class Movers(gym.Env[Any, Any]):
    """A dot that runs right in the first channel and left in the second, over the edge; one action turns it around."""

    observation_space = Box(0, 255, (2, 4, 4), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column, self.channel = self.np_random.integers((4, 4, 2))
        return self.observe(), {}

    def step(self, action):
        self.channel = self.channel ^ action
        self.column = (self.column + (1, -1)[self.channel]) % 4
        return self.observe(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    def observe(self):
        picture = np.zeros((2, 4, 4), np.uint8)
        picture[self.channel, self.row, self.column] = 255
        return picture


def play(env, n=5000, seed=0):
    return Transitions.record(gym.wrappers.TimeLimit(env, 50), n, seed)


def grids(found):
    return {candidate.observation_map["grid"]: candidate.action_map for candidate in found.accepted}


def minatar(game, n):
    pytest.importorskip("minatar")
    from minatar.gym import BaseEnv

    from equirl.envs.minatar import ChannelsFirst

    return Transitions.record(ChannelsFirst(BaseEnv(game)), n)  # with all six actions, some of which do nothing


# What is there


def test_gridworld_has_all_eight_turns_and_mirrors():
    found = discover_pictures(play(GridWorldEnv(size=5, n_walls=2)))
    assert grids(found) == D4
    assert max(candidate.score for candidate in found.accepted) < 0.5
    assert str(found.symmetry().group) == "D4"


def test_breakout_has_its_mirror_and_actions_that_do_nothing_stay():
    found = discover_pictures(minatar("breakout", 12_000))
    assert grids(found) == {"flip_x": [0, 3, 2, 1, 4, 5]}
    assert min(candidate.score for candidate in found.refused) > 5


def test_asterix_has_both_mirrors():
    found = discover_pictures(minatar("asterix", 15_000))
    mirrors = {"flip_x": [0, 3, 2, 1, 4, 5], "flip_y": [0, 1, 4, 3, 2, 5], "rot180": [0, 3, 4, 1, 2, 5]}
    assert grids(found) == mirrors


def test_channels_that_a_mirror_swaps_are_found():
    found = discover_pictures(play(Movers(), 3000))
    maps = {(c.observation_map["grid"], *c.observation_map["channels"]) for c in found.accepted}
    assert maps == {("flip_x", 1, 0), ("flip_y", 0, 1), ("rot180", 1, 0)}


def test_channels_last_give_maps_in_that_layout():
    last = gym.wrappers.TransformObservation(
        GridWorldEnv(size=5, n_walls=2), lambda picture: np.moveaxis(picture, 0, -1), Box(0, 255, (5, 5, 3), np.uint8)
    )
    found = discover_pictures(play(last))
    assert {candidate.observation_map["layout"] for candidate in found.accepted} == {"HWC"}
    found.symmetry().check_spaces(last.observation_space, last.action_space)
    assert grids(found) == D4


# What is not there


def test_wind_to_one_side_leaves_the_other_mirror():
    found = discover_pictures(play(Wind(lambda row, column: {RIGHT: 0.3})))
    assert grids(found) == {"flip_y": D4["flip_y"]}


@pytest.mark.parametrize(
    "gusts",
    [
        lambda row, column: {RIGHT: 0.3, DOWN: 0.15},
        pytest.param(lambda row, column: {UP: 0.3 * (column == 3)}, marks=pytest.mark.slow),
        lambda row, column: {RIGHT: 0.3 * (row < 2)},
    ],
    ids=["slanting", "in one column", "in two rows"],
)
def test_wind_that_no_mirror_preserves_leaves_nothing(gusts):
    found = discover_pictures(play(Wind(gusts), 8000))
    assert found.accepted == ()
    assert "differ" in found.note


def test_a_reward_that_one_side_alone_gives_breaks_its_mirror():
    assert grids(discover_pictures(play(Bonus()))) == {"flip_y": D4["flip_y"]}


def test_a_fixed_goal_leaves_only_what_keeps_it_in_place():
    env = GridWorldEnv(size=5, n_walls=0)
    logged = play(env, 20_000)
    at_corner = logged.observations[:, 1, 0, 0] > 0
    assert set(grids(discover_pictures(logged.rows(np.flatnonzero(at_corner))))) == {"transpose"}


def test_freeway_has_no_mirror():
    assert discover_pictures(minatar("freeway", 4000)).accepted == ()


def test_few_transitions_accept_nothing():
    found = discover_pictures(play(GridWorldEnv(), 400))
    assert found.accepted == ()
    assert found.note


@pytest.mark.parametrize(
    ("shape", "high", "actions", "reason"),
    [
        ((3, 84, 84), 1, Discrete(2), "84 x 84"),
        ((1, 20, 20), 255, Discrete(2), "different values"),
        ((1, 5, 5), 1, Box(-1, 1, (2,)), "Discrete"),
        ((4,), 1, Discrete(2), "pictures"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(shape, high, actions, reason):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, high, (300, *shape), np.uint8, endpoint=True)
    done = np.array([actions.sample() for _ in range(300)])
    nothing = np.zeros(300)
    space = Box(0, 255, shape, np.uint8)
    logged = Transitions(pictures, done, nothing, pictures, nothing > 0, nothing.astype(int), space, actions)
    found = discover_pictures(logged)
    assert found.accepted == ()
    assert reason in found.note


def test_pictures_that_cannot_be_searched_are_refused_before_long_play():
    found = discover_symmetries(gym.make("ALE/Breakout-v5", obs_type="grayscale"), interactions=20_000)
    assert found.symmetry is None
    assert found.interactions == 100
    assert "pictures of 210 x 160 cells" in found.note


def test_too_short_a_log_is_an_error():
    logged = play(GridWorldEnv(size=3, n_walls=0), 300)
    with pytest.raises(UserError, match="100 transitions"):
        discover_pictures(logged.rows(np.arange(100)))


# The parts


@pytest.mark.parametrize("grid", list(GRID_MAPS))
def test_images_of_patterns_are_those_of_moved_pictures(grid):
    rng = np.random.default_rng(0)
    pictures = np.unique(rng.integers(0, 2, (300, 3, 3), np.uint8), axis=0)
    swap = np.array([1, 0, 2])
    image = Patterns(pictures).image(Move(grid, swap))
    everything = {picture.tobytes(): number for number, picture in enumerate(pictures)}
    moved = swap[GRID_MAPS[grid](pictures)].astype(np.uint8)
    assert image.tolist() == [everything.get(picture.tobytes(), -1) for picture in moved]


def test_distances_are_those_of_a_loop_over_contexts():
    rng = np.random.default_rng(0)
    context, outcome, action, half = (rng.integers(0, high, 400) for high in (4, 3, 2, 2))
    cells = np.arange(4).reshape(4, 1, 1)
    swap = np.array([1, 0, 2, 3])
    table = Table(
        Patterns(cells), Patterns(cells[:3]), (context, outcome, action, half), np.zeros(4, int), np.arange(4), (4, 2)
    )
    found = table.compare(Move("identity", swap))
    for k in range(4):
        for a in range(2):
            for b in range(2):
                counts = np.array(
                    [
                        [
                            [np.sum((context == c) & (action == d) & (half == h) & (outcome == y)) for y in order]
                            for h in range(2)
                        ]
                        for c, d, order in ((k, a, range(3)), (swap[k], b, swap[:3]))
                    ]
                )
                totals = counts.sum(-1)
                p, q = counts / totals[..., None]
                weight = 1 / (1 / totals).sum()
                expected = weight * np.dot(p[0] - q[0], p[1] - q[1])
                assert found.distance[k, a, b] == pytest.approx(expected)
                assert found.weight[k, a, b] == pytest.approx(weight)
