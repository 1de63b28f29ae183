"""MinAtar: ids, pictures for SB3, and states that are read, set, mirrored and stepped beside their images."""

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from equirl import Symmetry
from equirl.agents.dqn import CnnPolicy
from equirl.envs import make
from equirl.envs.catalogue import entry_named
from equirl.envs.minatar import ACTIONS, GAMES, MIRRORS, ChannelsFirst, MinAtarSimulator, State, mirrored, register_envs
from equirl.errors import UserError
from equirl.runs import make_vec_env, settings_of
from equirl.verification.moving import Mover
from equirl.verification.simulators import simulator_of

pytest.importorskip("minatar")

EXACT = ("Breakout", "Asterix", "Freeway", "Seaquest")
ALL = (*EXACT, "SpaceInvaders")


def simulator(game: str) -> Any:
    sim = simulator_of(make(f"MinAtar/{game}-v1"))
    assert isinstance(sim, MinAtarSimulator)
    sim.reset(0)
    return sim


def played(sim: Any, count: int) -> list[State]:
    """States of random play."""
    rng, states, seed = np.random.default_rng(0), list[State](), 0
    while len(states) < count:
        sim.reset(seed)
        seed, over = seed + 1, False
        while not over and len(states) < count:
            states.append(sim.read())
            over = sim.env.step(int(rng.integers(sim.env.action_space.n)))[2]
    return states


def strewn(sim: Any, count: int) -> list[State]:
    rng = np.random.default_rng(1)
    return [sim.scatter(rng) for _ in range(count)]


def mismatches(sim: Any, symmetry: Symmetry, states: Iterable[State], noise: bool = True) -> int:
    """How often a step in the image differs from the image of the step, one random action and element a state."""
    seen, done = Mover(symmetry.observation, sim.env.observation_space), Mover(symmetry.action, sim.env.action_space)
    rng, found = np.random.default_rng(2), 0
    for seed, state in enumerate(states):
        g, action = int(rng.integers(1, len(symmetry.group))), int(rng.integers(sim.env.action_space.n))
        image = sim.image(state, symmetry, g)
        np.testing.assert_array_equal(sim.observe(image), seen(g, sim.observe(state)))
        there = sim.step(state, action, seed)
        here = sim.step(image, int(done(g, action)), seed, *((symmetry, g) if noise else ()))
        same = np.array_equal(seen(g, there.observation), here.observation)
        found += not (same and there.reward == here.reward and there.terminated == here.terminated)
    return found


# The dynamics


@pytest.mark.parametrize("game", EXACT)
def test_a_step_in_the_image_is_the_image_of_the_step(game: str) -> None:
    sim = simulator(game)
    symmetry = sim.env.symmetry
    assert mismatches(sim, symmetry, played(sim, 1500)) == 0
    assert mismatches(sim, symmetry, strewn(sim, 1500)) == 0


def test_space_invaders_breaks_its_mirror_where_two_columns_of_aliens_are_equally_near() -> None:
    sim = simulator("SpaceInvaders")
    symmetry = sim.env.symmetry
    assert mismatches(sim, symmetry, played(sim, 1500)) <= 5
    assert mismatches(sim, symmetry, strewn(sim, 1000)) > 50


@pytest.mark.parametrize(("game", "broken"), [("Asterix", 1), ("Freeway", 1), ("Seaquest", 1), ("Breakout", 0)])
def test_draws_must_be_mirrored_for_steps_to_agree(game: str, broken: int) -> None:
    sim = simulator(game)
    assert (mismatches(sim, sim.env.symmetry, strewn(sim, 1000), noise=False) > 0) == broken


@pytest.mark.parametrize(
    ("game", "wrong"),
    [
        ("Breakout", [0, 1, 2]),
        ("Asterix", [0, 1, 4, 3, 2]),
        ("Freeway", [0, 2, 1]),
        ("Seaquest", [0, 1, 2, 3, 4, 5]),
        ("SpaceInvaders", [3, 2, 1, 0]),
    ],
)
def test_other_actions_than_the_symmetrys_fail(game: str, wrong: list[int]) -> None:
    sim = simulator(game)
    seen = entry_named(f"MinAtar/{game}-v1").generators[0][0]
    assert mismatches(sim, Symmetry.generated_by((seen, wrong)), strewn(sim, 500)) > 50


def test_sticky_actions_are_mirrored_with_the_state() -> None:
    sim = simulator("Breakout")
    state = sim.read()._replace(last_action=ACTIONS.index("l"))
    image = sim.image(state, sim.env.symmetry, 1)
    assert ACTIONS[image.last_action] == "r"
    sticky = next(seed for seed in range(100) if np.random.RandomState(seed).rand() < 0.1)
    sim.step(image, 0, sticky, sim.env.symmetry, 1)
    assert sim.read().game["pos"] == image.game["pos"] + 1


# States


@pytest.mark.parametrize("game", ALL)
def test_a_state_that_is_written_back_goes_on_bit_for_bit(game: str) -> None:
    sim = simulator(game)
    rng = np.random.default_rng(0)
    for state in [*played(sim, 40), *strewn(sim, 40)]:
        actions = rng.integers(sim.env.action_space.n, size=30)
        runs = []
        for _ in range(2):
            sim.write(state)
            np.testing.assert_array_equal(sim.env.unwrapped.game.state(), raw(sim))
            sim.seed(7)
            runs.append([sim.env.step(int(action))[:3] for action in actions])
        for (one, *rest), (other, *others) in zip(*runs, strict=True):
            np.testing.assert_array_equal(one, other)
            assert rest == others


def raw(sim: Any) -> Any:
    """The picture of the present state, back from what the wrapper makes of it."""
    return sim.observe(sim.read()).transpose(1, 2, 0) > 0


@pytest.mark.parametrize("game", ALL)
def test_observing_a_state_leaves_the_environment_where_it_is(game: str) -> None:
    sim = simulator(game)
    before = sim.env.unwrapped.game.state()
    far = strewn(sim, 1)[0]
    assert not np.array_equal(sim.observe(far).transpose(1, 2, 0) > 0, before)
    np.testing.assert_array_equal(sim.env.unwrapped.game.state(), before)


@pytest.mark.parametrize("name", GAMES)
def test_mirrors_undo_themselves(name: str) -> None:
    sim = simulator(name.title().replace("_", ""))
    for state in [*played(sim, 50), *strewn(sim, 50)]:
        for mirror in MIRRORS[name]:
            there = mirrored(name, state, *mirror)
            back = mirrored(name, there, *mirror)
            assert (back.last_action, back.mirror) == (state.last_action, (False, False))
            for key, value in state.game.items():
                np.testing.assert_equal(back.game[key], value)


@pytest.mark.parametrize(
    ("name", "most"),
    [("MinAtar/Freeway-v1:plain_flip", 0), ("MinAtar/Seaquest-v1:flipped_gauges", 10)],  # full gauges are symmetric
)
def test_rejected_claims_show_what_no_state_shows(name: str, most: int) -> None:
    sim: Any = simulator_of(make(name))
    sim.reset(0)
    claim = entry_named(name).symmetry
    assert sum(sim.image(state, claim, 1) is not None for state in strewn(sim, 100)) <= most


def test_an_element_that_leaves_observations_alone_leaves_the_state_alone() -> None:
    sim = simulator("Breakout")
    state = sim.read()
    assert sim.image(state, sim.env.symmetry, 0) is state


# Ids and pictures


def test_ids_are_registered_without_importing_the_package() -> None:
    code = "import sys, equirl.envs as envs; print(envs.gym.spec('MinAtar/Asterix-v1').id, 'minatar' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MinAtar/Asterix-v1", "False"]


def test_ids_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from minatar.gym import register_envs as theirs

    def registered(register: Any) -> dict[str, Any]:
        found = {key: spec for key, spec in gym.registry.items() if not key.startswith("MinAtar/")}
        monkeypatch.setattr("gymnasium.envs.registration.registry", found)
        monkeypatch.setattr("gymnasium.registry", found)
        register()
        return {key: spec for key, spec in found.items() if key.startswith("MinAtar/")}

    ours = registered(register_envs)
    assert len(ours) == 10
    assert ours == registered(theirs)


def test_ids_that_are_there_already_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.spec("MinAtar/Breakout-v1")
    register_envs()
    assert gym.spec("MinAtar/Breakout-v1") is spec


def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(UserError, match=r"'MinAtar/Breakout-v1' needs a package .* pip install 'equirl\[minatar\]'"):
        settings_of("dqn", "MinAtar/Breakout-v1", {"policy": "CnnPolicy", "n_timesteps": 10, "symmetry": "auto"})


@pytest.mark.parametrize("game", ALL)
def test_pictures_are_what_cnn_policies_take(game: str) -> None:
    env: Any = ChannelsFirst(gym.make(f"MinAtar/{game}-v1"))
    assert is_image_space(env.observation_space)
    assert is_image_space_channels_first(env.observation_space)
    seen, _ = env.reset(seed=0)
    there, _ = env.unwrapped.reset(seed=0)
    assert seen in env.observation_space
    assert set(np.unique(seen).tolist()) == {0, 255}
    np.testing.assert_array_equal(seen > 0, np.moveaxis(there, 2, 0))


def test_a_configuration_finds_wrapper_and_symmetry_by_the_id() -> None:
    settings = settings_of("dqn", "MinAtar/Asterix-v1", {"policy": "CnnPolicy", "buffer_size": 10})
    env = make_vec_env(settings)
    assert env.observation_space.shape == (4, 10, 10)
    assert (settings.symmetry.name, len(settings.symmetry.group)) == ("MinAtar/Asterix-v1", 4)
    assert settings.hyperparameters["policy"] == "CnnPolicy" == CnnPolicy.__name__


def test_pictures_that_are_not_binary_are_refused() -> None:
    with pytest.raises(UserError, match="expected binary pictures"):
        ChannelsFirst(gym.make("CartPole-v1"))


def test_simulators_are_found_through_wrappers() -> None:
    assert isinstance(simulator_of(ChannelsFirst(gym.make("MinAtar/Freeway-v1"))), MinAtarSimulator)
