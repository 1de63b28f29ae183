"""GridWorld against slow references, Gymnasium's own vector environment, and the eight symmetries of the square."""

from collections import Counter
from itertools import combinations, permutations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check

from equirl.envs._grids import connected
from equirl.envs.gridworld import GridWorldEnv, GridWorldVectorEnv, State, register_envs
from equirl.errors import UserError

register_envs()
SYMMETRIES = [(turns, flip) for turns in range(4) for flip in (False, True)]
MOVES = ((-1, 0), (0, -1), (1, 0), (0, 1))


def moved(planes, turns, flip):
    """Mirror left-right if asked, then turn counter-clockwise."""
    return np.rot90(np.flip(planes, -1) if flip else planes, turns, axes=(-2, -1))


def moved_action(action, turns, flip):
    return ((-action if flip else action) + turns) % 4


def as_state(planes):
    """Read the state off an observation."""
    return State(planes[:, 0] > 0, *(np.argwhere(planes[:, channel])[:, 1:] for channel in (1, 2)))


def searched(walls, start):
    """Return all cells that a search from `start` finds: the slow reference for the flood fill."""
    found, queue = {tuple(start)}, [tuple(start)]
    while queue:
        row, column = queue.pop()
        for down, right in MOVES:
            cell = (row + down, column + right)
            if all(0 <= at < len(walls) for at in cell) and not walls[cell] and cell not in found:
                found.add(cell)
                queue.append(cell)
    return found


# The rules


@pytest.mark.parametrize("size", [3, 6])
def test_step_follows_the_rules_cell_by_cell(size):
    envs = GridWorldVectorEnv(num_envs=300, size=size, n_walls=size, autoreset_mode="SameStep")
    envs.reset(seed=0)
    before = envs.state
    actions = np.random.default_rng(1).integers(0, 4, 300)
    _, rewards, terminated, truncated, infos = envs.step(actions)
    after = envs.state
    assert 0 < terminated.sum() < 300
    for row in range(300):
        cell = tuple(before.agent[row] + MOVES[actions[row]])
        if any(at not in range(size) for at in cell) or before.walls[row][cell]:
            cell = tuple(before.agent[row])
        reached = cell == tuple(before.goal[row])
        assert terminated[row] == reached
        assert rewards[row] == (1.0 if reached else -0.01)
        if reached:
            assert np.argwhere(infos["final_obs"][row][2]).tolist() == [list(cell)]
        else:
            assert tuple(after.agent[row]) == cell
            assert np.array_equal(after.walls[row], before.walls[row])
            assert np.array_equal(after.goal[row], before.goal[row])
    assert not truncated.any()


def agrees(turns, flip, action_map):
    """Whether stepping mirrored states with mapped actions gives the mirrored outcome, over 3,000 states at once."""
    envs, mirrored = (GridWorldVectorEnv(3000, size=5, n_walls=8, autoreset_mode="NextStep") for _ in range(2))
    first, _ = envs.reset(seed=2)
    mirrored.state = as_state(moved(first, turns, flip))
    actions = np.random.default_rng(3).integers(0, 4, 3000)
    expected, *rest, infos = envs.step(actions)
    got, *rest_mirrored, infos_mirrored = mirrored.step(action_map(actions, turns, flip))
    pairs = [(moved(expected, turns, flip), got), *zip(rest, rest_mirrored, strict=True)]
    assert rest[1].any()
    return all(np.array_equal(a, b) for a, b in pairs) and np.array_equal(
        infos["is_success"], infos_mirrored["is_success"]
    )


@pytest.mark.parametrize(("turns", "flip"), SYMMETRIES)
def test_dynamics_are_equivariant(turns, flip):
    assert agrees(turns, flip, moved_action)


def test_a_wrong_action_map_is_not_equivariant():
    assert not agrees(1, False, lambda action, turns, flip: (action - turns) % 4)
    assert not agrees(0, True, lambda action, turns, flip: action)


# The law of the first state


@given(size=st.integers(3, 7), walls=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_reset_draws_distinct_cells_with_a_way_to_the_goal(size, walls, seed):
    n_walls = round(walls * (size * size - 2))
    envs = GridWorldVectorEnv(num_envs=20, size=size, n_walls=n_walls)
    observations, infos = envs.reset(seed=seed)
    assert envs.observation_space.contains(observations)
    assert infos == {}
    assert set(np.unique(observations)) <= {0, 255}
    assert ((observations > 0).sum(axis=(2, 3)) == [n_walls, 1, 1]).all()
    assert ((observations > 0).sum(axis=1) <= 1).all()
    for layout, goal, agent in zip(*envs.state, strict=True):
        assert tuple(goal) in searched(layout, agent)


def test_reset_is_uniform_over_the_layouts_with_a_way_to_the_goal():
    layouts = set()
    for cells in combinations(range(9), 3):
        walls = np.isin(np.arange(9), cells).reshape(3, 3)
        for ends in permutations(sorted(set(range(9)) - set(cells)), 2):
            if divmod(ends[0], 3) in searched(walls, divmod(ends[1], 3)):
                layouts.add((cells, *ends))
    assert len(layouts) < 84 * 30  # some layouts have to be rejected
    envs = GridWorldVectorEnv(num_envs=100_000, size=3, n_walls=3)
    planes = envs.reset(seed=4)[0].reshape(-1, 3, 9)
    blocked = np.nonzero(planes[:, 0])[1].reshape(-1, 3)
    goal, agent = planes[:, 1].argmax(1), planes[:, 2].argmax(1)
    drawn = Counter(zip(map(tuple, blocked.tolist()), goal.tolist(), agent.tolist(), strict=True))
    assert set(drawn) == layouts
    mean = 100_000 / len(layouts)
    chi_square = sum((count - mean) ** 2 / mean for count in drawn.values())
    freedom = len(layouts) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_flood_fill_agrees_with_a_search():
    rng = np.random.default_rng(5)
    walls = rng.random((200, 7, 7)) < 0.4
    start, end = rng.integers(0, 7, (2, 200, 2))
    for at in (start, end):
        walls[np.arange(200), at[:, 0], at[:, 1]] = False
    free = np.pad(~walls, ((0, 0), (1, 1), (1, 1))).reshape(200, -1)
    met = connected(free, (start + 1) @ (9, 1), (end + 1) @ (9, 1), width=9)
    assert met.tolist() == [tuple(b) in searched(w, a) for w, a, b in zip(walls, start, end, strict=True)]
    assert 0 < met.sum() < 200


def test_a_seed_fixes_the_run_and_rows_differ():
    envs = [GridWorldVectorEnv(num_envs=4) for _ in range(2)]
    first, second = (env.reset(seed=6)[0] for env in envs)
    assert np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) == 4
    assert not np.array_equal(envs[0].reset()[0], first)
    single = GridWorldEnv()
    assert np.array_equal(single.reset(seed=6)[0], single.reset(seed=6)[0])
    assert not np.array_equal(single.reset(seed=7)[0], single.reset(seed=6)[0])


# The vector environment against Gymnasium's


def assert_same_infos(left, right):
    assert set(left) == set(right)
    for key in left:
        if isinstance(left[key], dict):
            assert_same_infos(left[key], right[key])
        elif left[key].dtype == object:
            assert all(a is b is None or np.array_equal(a, b) for a, b in zip(left[key], right[key], strict=True))
        else:
            np.testing.assert_array_equal(left[key], right[key])
            assert left[key].dtype == right[key].dtype


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(("limit", "wind"), [(1, 0.0), (5, 0.0), (5, 0.5)])
def test_agrees_with_sync_vector_env(mode, limit, wind):
    options = {"size": 3, "n_walls": 2, "wind": wind, "max_episode_steps": limit}
    envs = GridWorldVectorEnv(num_envs=3, autoreset_mode=mode, **options)
    reference: Any = SyncVectorEnv([lambda: gym.make("equirl/GridWorld-v0", **options)] * 3, autoreset_mode=mode)
    envs.reset(seed=8)
    reference.reset(seed=9)
    rng = np.random.default_rng(10)
    restarted, finished = np.ones(3, bool), np.zeros(3, bool)
    seen: Counter[str] = Counter()
    for _ in range(200):
        for row in np.flatnonzero(restarted):  # only the draw of new layouts may differ: copy it over
            reference.envs[row].unwrapped.state = State._make(part[[row]] for part in envs.state)
        actions = rng.integers(0, 4, 3)
        *got, infos = envs.step(actions)
        *expected, expected_infos = reference.step(actions)
        ended = got[2] | got[3]
        restarted, finished = ended if mode is AutoresetMode.SAME_STEP else finished, ended
        np.testing.assert_array_equal(got[0][~restarted], expected[0][~restarted])
        for ours, theirs in zip(got[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        assert_same_infos(infos, expected_infos)
        seen.update(terminated=got[2].sum(), truncated=got[3].sum(), apart=int(0 < ended.sum() < 3))
    assert all(seen[key] > 0 for key in ("terminated", "truncated", "apart")[: 2 if limit == 1 else 3])
    assert envs.metadata["autoreset_mode"] is mode
    assert envs.single_observation_space == reference.single_observation_space
    assert envs.observation_space == reference.observation_space
    assert envs.action_space == reference.action_space


def test_reset_forgets_that_episodes_were_over():
    envs = GridWorldVectorEnv(num_envs=2, max_episode_steps=1)
    for _ in range(2):
        envs.reset(seed=17)
        *_, rewards, _, truncated, _ = envs.step(np.zeros(2, int))
        assert truncated.all()
        assert rewards.all()


def test_make_vec_gives_the_native_environment_with_the_registered_limit():
    register_envs()  # a second call is harmless
    envs = gym.make_vec("equirl/GridWorld-v0", num_envs=8, vectorization_mode="vector_entry_point", size=12)
    assert isinstance(envs.unwrapped, GridWorldVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=11)
    state = State(np.zeros((8, 12, 12), bool), np.full((8, 2), 5), np.zeros((8, 2), int))
    envs.unwrapped.state = state
    cuts = [envs.step(np.zeros(8, int))[3] for _ in range(52)]
    assert [step for step, cut in enumerate(cuts, 1) if cut.any()] == [50]
    assert cuts[49].all()


def test_the_single_environment_is_cut_after_50_steps():
    env: Any = gym.make("equirl/GridWorld-v0")
    env.reset(seed=12)
    env.unwrapped.state = State(np.zeros((1, 9, 9), bool), np.array([[8, 8]]), np.array([[0, 0]]))
    outcomes = [env.step(0) for _ in range(50)]
    assert [truncated for *_, truncated, _ in outcomes] == [False] * 49 + [True]
    assert outcomes[-1][1:] == (-0.01, False, True, {"is_success": False})


# The interface


def test_both_environment_checkers_pass(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    gymnasium_check(gym.make("equirl/GridWorld-v0").unwrapped)
    sb3_check(GridWorldEnv(size=36, render_mode="rgb_array"), skip_render_check=False)


def test_sb3_warns_only_that_its_own_image_network_needs_larger_images():
    with pytest.warns(UserWarning, match="minimal resolution for an image is 36x36") as caught:
        sb3_check(GridWorldEnv())
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 2}, "size is 2: expected a whole number of at least 3"),
        ({"size": 4.0}, "size is 4.0: expected a whole number of at least 3"),
        ({"n_walls": -1}, "n_walls is -1: expected a whole number from 0 to 79"),
        ({"size": 3, "n_walls": 8}, "n_walls is 8: expected a whole number from 0 to 7"),
        ({"render_mode": "rgb"}, "unknown render_mode 'rgb': .*did you mean 'rgb_array'"),
    ],
)
@pytest.mark.parametrize("make", [GridWorldEnv, GridWorldVectorEnv])
def test_bad_arguments_are_refused_in_one_line(make, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        make(**arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0: expected a whole number of at least 1"),
        ({"max_episode_steps": True}, "max_episode_steps is True: expected a whole number"),
        ({"autoreset_mode": "SameStop"}, "unknown autoreset_mode 'SameStop': .*did you mean 'SameStep'"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "unknown autoreset_mode 'Disabled'"),
        ({"render_mode": "human"}, "unknown render_mode 'human': expected one of rgb_array"),
    ],
)
def test_bad_vector_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        GridWorldVectorEnv(**arguments)


def test_human_mode_without_pygame_says_what_to_install(monkeypatch):
    monkeypatch.setattr("equirl.envs.gridworld.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pygame-ce"):
        GridWorldEnv(render_mode="human")


@pytest.mark.parametrize("action", [-1, 4, 1.0, [1]])
def test_bad_actions_are_refused(action):
    env = GridWorldEnv()
    env.reset()
    with pytest.raises(UserError, match=r"expected 1 whole number\(s\) from 0 to 3"):
        env.step(action)
    envs = GridWorldVectorEnv(num_envs=2)
    envs.reset()
    with pytest.raises(UserError, match=r"expected 2 whole number\(s\) from 0 to 3"):
        envs.step(np.array([action, action]))


@pytest.mark.parametrize("make", [GridWorldEnv, GridWorldVectorEnv])
def test_nothing_works_before_reset(make):
    env = make()
    with pytest.raises(ResetNeeded):
        env.step(np.array([0]) if make is GridWorldVectorEnv else 0)
    with pytest.raises(ResetNeeded):
        _ = env.state


def test_what_is_returned_stays_as_it_was():
    env = GridWorldEnv(n_walls=0)
    first, _ = env.reset(seed=13)
    kept, state = first.copy(), env.state
    second = env.step(int(state.agent[0, 0] == 0) * 2)[0]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    second[:] = 7
    state.agent[:] = 3
    env.state = before = State(np.zeros((1, 9, 9), bool), np.array([[8, 8]]), np.array([[1, 2]]))
    env.step(2)
    assert before.agent.tolist() == [[1, 2]]
    assert env.state.agent.tolist() == [[2, 2]]
    assert set(np.unique(env.step(0)[0])) == {0, 255}


def test_a_state_survives_the_round_trip_and_starts_a_new_episode():
    envs = GridWorldVectorEnv(num_envs=5, max_episode_steps=2)
    observations, _ = envs.reset(seed=14)
    state = envs.state
    for _ in range(2):
        envs.state = state
        assert envs.step(np.zeros(5, int))[1].all()
        assert envs.step(np.zeros(5, int))[3].all()
    other = GridWorldVectorEnv(num_envs=5)
    other.state = state
    assert np.array_equal(other._grids.observe(), observations)
    assert all(np.array_equal(a, b) for a, b in zip(other.state, state, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"walls": np.zeros((2, 4, 4), bool)}, r"state.walls has shape \(2, 4, 4\): expected \(2, 5, 5\)"),
        ({"agent": np.zeros(2, int)}, r"state.agent has shape \(2,\): expected \(2, 2\)"),
        ({"goal": np.full((2, 2), 5)}, "state.goal leaves the grid: .*from 0 to 4"),
        ({"goal": np.zeros((2, 2))}, "state.goal leaves the grid: expected whole rows"),
        ({"walls": np.ones((2, 5, 5), bool)}, "state.goal lies on a wall"),
    ],
)
def test_bad_states_are_refused(change, message):
    envs = GridWorldVectorEnv(num_envs=2, size=5)
    good = State(np.zeros((2, 5, 5), bool), np.ones((2, 2), int), np.zeros((2, 2), int))
    envs.state = good
    with pytest.raises(UserError, match=message):
        envs.state = good._replace(**change)
    assert not envs.state.walls.any()


# Pictures


@pytest.mark.parametrize(("turns", "flip"), SYMMETRIES)
def test_the_picture_of_a_mirrored_state_is_the_mirrored_picture(turns, flip):
    envs: Any = GridWorldVectorEnv(num_envs=3, size=4, n_walls=3, render_mode="rgb_array")
    observations, _ = envs.reset(seed=15)
    pictures = np.stack(envs.render())
    envs.state = as_state(moved(observations, turns, flip))
    expected = moved(pictures.transpose(0, 3, 1, 2), turns, flip).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(np.stack(envs.render()), expected)


def test_a_picture_shows_each_cell_in_its_colour():
    env: Any = GridWorldEnv(size=4, render_mode="rgb_array")
    walls = np.zeros((1, 4, 4), bool)
    walls[0, 3, 0] = True
    env.state = State(walls, np.array([[0, 2]]), np.array([[1, 1]]))
    picture = env.render()
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    centres = picture[16::32, 16::32]
    assert len(np.unique(centres.reshape(-1, 3), axis=0)) == 4
    assert (centres[3, 0] != centres[0, 0]).any()
    assert (centres[0, 2] != centres[0, 0]).any()
    assert (centres[1, 1] != centres[0, 0]).any()
    assert GridWorldEnv().render() is None
    assert GridWorldVectorEnv().render() is None


def test_the_window_shows_the_picture(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = GridWorldEnv(size=5, render_mode="human")
    env.metadata = {**env.metadata, "render_fps": 1000}
    env.reset(seed=16)
    for action in (0, 1, 2, 3):
        env.step(action)
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        np.testing.assert_array_equal(shown, env._grids.frames()[0])
    env.close()
    assert not pygame.display.get_init()
    env.reset()  # a closed window opens again
    env.close()
