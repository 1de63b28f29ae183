"""Wind on the grid world: against slow rules, over pictures, and as what breaks the symmetry of the square."""

import zlib
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest

from equirl.envs.gridworld import GridWorldEnv, GridWorldVectorEnv, State, register_envs
from equirl.errors import UserError
from equirl.verification import check_symmetry

register_envs()
MOVES = ((-1, 0), (0, -1), (1, 0), (0, 1))


def windy_cells(size, wind):
    order = np.random.default_rng(0).permutation(size * size)
    return [divmod(int(cell), size) for cell in order[: round(wind * size * size)]]


def moved_slowly(walls, goal, agent, action, windy):
    """Return where the agent ends, and what the wind did: the slow reference for the rules."""

    def free(cell):
        return all(0 <= at < len(walls) for at in cell) and not walls[cell]

    ahead = (agent[0] + MOVES[action][0], agent[1] + MOVES[action][1])
    cell = ahead if free(ahead) else agent
    if agent not in windy:
        return cell, "calm"
    if cell == goal:
        return cell, "too late"
    east = (cell[0], cell[1] + 1)
    if not free(east):
        return cell, "blocked by the edge" if east[1] == len(walls) else "blocked by a wall"
    return east, "onto the goal" if east == goal else "blown"


@pytest.mark.parametrize(("size", "wind"), [(3, 0.6), (5, 0.3), (6, 1)])
def test_both_environments_follow_the_rules_cell_by_cell(size, wind):
    envs = GridWorldVectorEnv(num_envs=100, size=size, n_walls=size, wind=wind)
    single = GridWorldEnv(size=size, n_walls=size, wind=wind)
    windy = windy_cells(size, wind)
    envs.reset(seed=0)
    rng = np.random.default_rng(1)
    seen: Counter[str] = Counter()
    finished = np.zeros(100, bool)
    for _ in range(12):
        before = envs.state
        actions = rng.integers(0, 4, 100)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        for row in np.flatnonzero(~finished):
            goal, agent = tuple(before.goal[row]), tuple(before.agent[row])
            cell, what = moved_slowly(before.walls[row], goal, agent, actions[row], windy)
            seen[what] += 1
            assert np.argwhere(observations[row, 2]).tolist() == [list(cell)]
            assert np.argwhere(observations[row, 1]).tolist() == [list(goal)]
            assert np.array_equal(observations[row, 0] > 0, before.walls[row])
            assert terminated[row] == (cell == goal)
            assert rewards[row] == (1.0 if cell == goal else -0.01)
            single.state = State._make(part[[row]] for part in before)
            observation, reward, reached, *_ = single.step(actions[row])
            assert np.array_equal(observation, observations[row])
            assert (reward, reached) == (rewards[row], terminated[row])
        finished = terminated | truncated
    outcomes = ("too late", "blocked by the edge", "blocked by a wall", "onto the goal", "blown")
    assert all(seen[what] for what in outcomes + ("calm",) * (wind < 1)), seen


@pytest.mark.parametrize(
    ("size", "wind", "count"),
    [(9, 0.0, 0), (9, 0.3, 24), (9, 1, 81), (4, 0.5, 8), (5, 0.01, 0), (5, np.float32(0.1), 2)],
)
def test_a_share_of_the_cells_is_windy_whatever_the_episode(size, wind, count):
    envs = GridWorldVectorEnv(num_envs=size * size, size=size, n_walls=0, wind=wind)
    cells = np.argwhere(np.ones((size, size), bool))
    goals = (cells + np.array([1, 0])) % size  # never in the way of a move to the left
    left = np.maximum(cells[:, 1] - 1, 0)
    for seed in range(3):
        envs.reset(seed=seed)
        envs.state = State(np.zeros((size * size, size, size), bool), goals, cells)
        envs.step(np.full(size * size, 1))
        blown = envs.state.agent[:, 1] - left
        assert blown.sum() == count
        assert cells[blown == 1].tolist() == [list(cell) for cell in sorted(windy_cells(size, wind))]


@pytest.mark.parametrize("options", [{}, {"wind": 0}, {"wind": 0.0}, {"wind": 0.01}])
def test_without_windy_cells_all_is_as_it_was_before_there_was_wind(options):
    options = {"max_episode_steps": 9, "autoreset_mode": "SameStep", "render_mode": "rgb_array", **options}
    envs = GridWorldVectorEnv(num_envs=8, size=5, n_walls=5, **options)
    actions = np.random.default_rng(0)
    outcomes = [envs.reset(seed=20)[0]]
    for _ in range(60):
        outcomes += envs.step(actions.integers(0, 4, 8))[:4]
    sums = []
    for parts in (outcomes, envs.render()):
        sums.append(zlib.crc32(np.concatenate([np.ravel(part).astype("<f8") for part in parts]).tobytes()))
    assert sums == [1883665362, 1678974661]
    assert envs.np_random.integers(2**32) == 1861115912


def test_wind_draws_nothing_from_the_episodes_generator():
    calm, windy = (GridWorldVectorEnv(num_envs=5, wind=wind) for wind in (0.0, 0.5))
    first, second = (envs.reset(seed=2)[0] for envs in (calm, windy))
    assert np.array_equal(first, second)
    assert calm.np_random.bit_generator.state == windy.np_random.bit_generator.state


# The symmetry


@pytest.mark.parametrize(("wind", "holds"), [(0.0, True), (0.3, False), (1, False)])
def test_wind_breaks_the_symmetry(wind, holds):
    report = check_symmetry(gym.make("equirl/GridWorld-v0", wind=wind), states=200, controls=2)
    assert (report.tier, report.holds) == (1, holds), report


def test_the_more_wind_the_more_states_break_the_symmetry():
    def share(wind):
        """Return how many of the moves down differ from the mirror image of the mirrored ones."""
        envs, mirrored = (GridWorldVectorEnv(num_envs=3000, wind=wind) for _ in range(2))
        envs.reset(seed=3)
        walls, goal, agent = envs.state
        mirrored.state = State(walls[:, :, ::-1], goal * (1, -1) + (0, 8), agent * (1, -1) + (0, 8))
        down = np.full(3000, 2)
        return (envs.step(down)[0] != mirrored.step(down)[0][..., ::-1]).any((1, 2, 3)).mean()

    shares = [share(wind) for wind in (0.0, 0.1, 0.3, 0.6)]
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert shares[1] < 0.2


# The interface


@pytest.mark.parametrize("make", [GridWorldEnv, GridWorldVectorEnv])
@pytest.mark.parametrize("wind", [1.5, -0.1, True, np.True_, float("nan"), "0.3", None])
def test_what_is_no_share_is_refused(make, wind):
    with pytest.raises(UserError) as raised:
        make(wind=wind)
    assert str(raised.value) == f"wind {wind!r}: expected a number from 0 to 1"


def test_the_picture_tints_windy_cells_alone():
    calm, windy = (GridWorldEnv(wind=wind, render_mode="rgb_array") for wind in (0.0, 0.5))
    calm.reset(seed=4)
    spots = np.array(windy_cells(9, 0.5))
    walls = np.zeros((1, 9, 9), bool)
    walls[0, spots[2:5, 0], spots[2:5, 1]] = True
    tinted = np.zeros((9, 9), bool)
    tinted[spots[:, 0], spots[:, 1]] = True
    calm.state = windy.state = State(walls, spots[[0]], spots[[1]])  # goal and agent stand in the wind
    pictures = [env.render() for env in (calm, windy)]
    assert all(picture is not None for picture in pictures)
    differ = (pictures[0] != pictures[1]).reshape(9, 32, 9, 32, 3).any((1, 3, 4))
    assert np.array_equal(differ, tinted & ~walls[0])
