"""MiniGrid: ids, observations for SB3, and worlds that are read, set, turned and stepped beside their images."""

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from equirl import Symmetry
from equirl.envs import ENTRIES, make, register_minigrid
from equirl.envs.minigrid import IDENTITY, MOVES, ImageAndDirection, Isometry, MiniGridSimulator, State
from equirl.errors import UserError
from equirl.runs import make_vec_env, settings_of, spec_of
from equirl.verification.moving import Mover
from equirl.verification.simulators import simulator_of

pytest.importorskip("minigrid")

NAMES = [entry.name for entry in ENTRIES if entry.name.startswith("MiniGrid-")]
OTHERS = ["UnlockPickup-v0", "PutNear-6x6-N2-v0", "GoToDoor-5x5-v0", "RedBlueDoors-6x6-v0", "MemoryS11-v0"]
TURN = {"keys": {"image": "identity", "direction": [1, 2, 3, 0]}}
VIEW = "flip_y"


def simulator(name: str) -> Any:
    register_minigrid(name)
    env = make(name) if name in NAMES else ImageAndDirection(gym.make(name))
    sim = simulator_of(env)
    assert isinstance(sim, MiniGridSimulator)
    sim.reset(0)
    return sim


def played(sim: Any, count: int) -> list[State]:
    """Worlds of random play, at most 60 steps into an episode."""
    rng, states, seed = np.random.default_rng(0), list[State](), 0
    while len(states) < count:
        sim.reset(seed)
        seed, over, steps = seed + 1, False, 0
        while not over and steps < 60 and len(states) < count:
            states.append(sim.read())
            over, steps = sim.env.step(int(rng.integers(sim.env.action_space.n)))[2], steps + 1
    return states


def strewn(sim: Any, count: int) -> list[State]:
    rng = np.random.default_rng(1)
    return [sim.scatter(rng) for _ in range(count)]


def same(one: Any, other: Any) -> bool:
    return one["direction"] == other["direction"] and np.array_equal(one["image"], other["image"])


def mismatches(sim: Any, symmetry: Symmetry, states: Iterable[State], noise: bool = True) -> int:
    """How often a step in the image differs from the image of the step, one random action and element a world."""
    seen, done = Mover(symmetry.observation, sim.env.observation_space), Mover(symmetry.action, sim.env.action_space)
    rng, found = np.random.default_rng(2), 0
    for seed, state in enumerate(states):
        g, action = int(rng.integers(1, len(symmetry.group))), int(rng.integers(sim.env.action_space.n))
        image = sim.image(state, symmetry, g)
        assert same(sim.observe(image), seen(g, sim.observe(state)))
        there = sim.step(state, action, seed)
        here = sim.step(image, int(done(g, action)), seed, *((symmetry, g) if noise else ()))
        agree = there.reward == here.reward and there.terminated == here.terminated
        found += not (agree and same(seen(g, there.observation), here.observation))
    return found


def claim(sim: Any, direction: list[int], view: str = VIEW, swapped: bool = True) -> Symmetry:
    count = int(sim.env.action_space.n)
    actions = [1, 0, *range(2, count)] if swapped else list(range(count))
    return Symmetry.generated_by(({"keys": {"image": view, "direction": direction}}, actions))


# The dynamics


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_the_image_is_the_image_of_the_step(name: str) -> None:
    sim = simulator(name)
    assert mismatches(sim, sim.env.symmetry, played(sim, 250)) == 0
    assert mismatches(sim, sim.env.symmetry, strewn(sim, 250)) == 0


@pytest.mark.parametrize("name", OTHERS)
def test_objects_and_targets_move_with_the_world(name: str) -> None:
    sim = simulator(f"MiniGrid-{name}")
    assert mismatches(sim, claim(sim, [1, 0, 3, 2]), [*played(sim, 60), *strewn(sim, 60)]) == 0


@pytest.mark.parametrize("name", NAMES[-2:])
@pytest.mark.parametrize(
    ("view", "direction", "swapped"),
    [("identity", [1, 2, 3, 0], False), (VIEW, [0, 3, 2, 1], True), (VIEW, [2, 1, 0, 3], True)],
)
def test_every_turn_and_mirror_of_the_world_holds(name: str, view: str, direction: list[int], swapped: bool) -> None:
    sim = simulator(name)
    assert mismatches(sim, claim(sim, direction, view, swapped), strewn(sim, 100)) == 0


@pytest.mark.parametrize("name", NAMES[-2:])
@pytest.mark.parametrize(("direction", "swapped"), [([1, 0, 3, 2], False), ([0, 1, 3, 2], True)])
def test_wrong_actions_and_wrong_directions_fail(name: str, direction: list[int], swapped: bool) -> None:
    sim = simulator(name)
    assert mismatches(sim, claim(sim, direction, swapped=swapped), strewn(sim, 100)) > 5


def test_moving_obstacles_agree_only_where_their_draws_are_moved_too() -> None:
    sim = simulator("MiniGrid-Dynamic-Obstacles-6x6-v0")
    assert mismatches(sim, sim.env.symmetry, strewn(sim, 100), noise=False) > 20


def test_draws_of_cells_are_uniform_and_move_as_cells_do() -> None:
    sim = simulator("MiniGrid-Dynamic-Obstacles-6x6-v0")
    for move in (IDENTITY, *MOVES):
        size = (3, 2) if move.transpose else (2, 3)
        counts = np.zeros((2, 3), int)
        sim.write(sim.read()._replace(move=move))
        for seed in range(300):
            sim.seed(seed)
            cell = (sim.env.unwrapped.np_random.integers(0, 2), sim.env.unwrapped.np_random.integers(0, 3))
            counts[cell] += 1
            sim.seed(seed, sim.env.symmetry, 1)
            draws = sim.env.unwrapped.np_random
            assert (draws.integers(0, size[0]), draws.integers(0, size[1])) == move.place(*cell, 2, 3)
        assert counts.min() > 30


# Worlds


@pytest.mark.parametrize("name", [*NAMES, "MiniGrid-UnlockPickup-v0"])
def test_a_world_that_is_written_back_goes_on_bit_for_bit(name: str) -> None:
    sim = simulator(name)
    rng = np.random.default_rng(0)
    for state in [*played(sim, 10), *strewn(sim, 10)]:
        actions = rng.integers(sim.env.action_space.n, size=20)
        runs = []
        for _ in range(2):
            sim.write(state)
            sim.seed(7)
            runs.append([sim.env.step(int(action))[:3] for action in actions])
        for (one, *rest), (other, *others) in zip(*runs, strict=True):
            assert same(one, other)
            assert rest == others
        assert same(sim.observe(state), sim.observe(sim.moved(state, IDENTITY)))


def test_later_steps_do_not_change_a_world_that_was_read() -> None:
    from minigrid.core.world_object import Box, Key

    sim = simulator("MiniGrid-Empty-8x8-v0")
    sim.env.unwrapped.put_obj(Box("red", contains=Key("blue")), *sim.env.unwrapped.front_pos)
    state = sim.read()
    box = next(thing for thing in state.world["grid"].grid if thing is not None and thing.type == "box")
    sim.write(state)
    for action in (5, 3):  # toggle, pickup
        sim.env.step(action)
    assert sim.env.unwrapped.carrying.type == "key"
    assert (box.contains.type, box.contains.cur_pos) == ("key", None)


def test_observing_a_world_leaves_the_environment_where_it_is() -> None:
    sim = simulator("MiniGrid-DoorKey-6x6-v0")
    before = sim.env.unwrapped.gen_obs()["image"]
    far = next(state for state in strewn(sim, 9) if not same(sim.observe(state), sim.observe(sim.read())))
    sim.reset(0)
    sim.image(far, sim.env.symmetry, 1)
    np.testing.assert_array_equal(sim.env.unwrapped.gen_obs()["image"], before)


def test_a_world_that_is_not_square_is_laid_out_anew_after_it_was_transposed() -> None:
    sim = simulator("MiniGrid-UnlockPickup-v0")
    size = sim.env.unwrapped.width, sim.env.unwrapped.height
    sim.write(sim.moved(sim.read(), Isometry(transpose=True)))
    assert (sim.env.unwrapped.height, sim.env.unwrapped.width) == size
    sim.reset(1)
    assert (sim.env.unwrapped.grid.width, sim.env.unwrapped.grid.height) == size


def test_moves_are_the_eight_of_the_square() -> None:
    corner = {move.place(0, 1, 3, 3) for move in (IDENTITY, *MOVES)}
    assert len(corner) == 4
    directions = {tuple(move.direction(d) for d in range(4)) for move in (IDENTITY, *MOVES)}
    assert len(directions) == 8


def test_instructions_in_words_have_no_known_image() -> None:
    sim: Any = simulator("BabyAI-GoToRedBall-v0")
    assert sim.image(sim.read(), claim(sim, [1, 0, 3, 2]), 1) is None


# Ids and observations


def test_ids_are_registered_when_asked_for() -> None:
    code = (
        "import sys, gymnasium, equirl.envs; before = 'minigrid' in sys.modules;"
        "env = equirl.envs.make('MiniGrid-Empty-8x8-v0'); print(before, env.observation_space['image'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False (3, 7, 7)"


def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    for name in NAMES:
        monkeypatch.delitem(gym.registry, name, raising=False)
    with pytest.raises(UserError, match=r"'MiniGrid-FourRooms-v0' needs a package .* pip install 'equirl\[minigrid\]'"):
        spec_of("MiniGrid-FourRooms-v0")


@pytest.mark.parametrize("name", NAMES)
def test_observations_are_what_multi_input_policies_take(name: str) -> None:
    register_minigrid(name)
    env = ImageAndDirection(gym.make(name))
    check_env(env, warn=False)
    seen, _ = env.reset(seed=0)
    there, _ = env.unwrapped.reset(seed=0)
    np.testing.assert_array_equal(seen["image"], np.moveaxis(there["image"], 2, 0))
    assert seen["direction"] == there["direction"]


def test_a_configuration_finds_wrapper_and_symmetry_by_the_id() -> None:
    settings = settings_of("dqn", "MiniGrid-DoorKey-6x6-v0", {"policy": "MultiInputPolicy", "buffer_size": 10})
    env: Any = make_vec_env(settings)
    assert set(env.observation_space.spaces) == {"image", "direction"}
    assert settings.symmetry.name == "MiniGrid-DoorKey-6x6-v0"


def test_observations_without_image_are_refused() -> None:
    with pytest.raises(UserError, match="expected a Dict with image and direction"):
        ImageAndDirection(gym.make("CartPole-v1"))
