import gymnasium as gym
import numpy as np
import pytest

from equirl import Symmetry
from equirl.envs.catalogue import entry_named
from equirl.verification.moving import Mover

pytest.importorskip("Box2D")

from equirl.envs.lunar_lander import LunarLanderSimulator, mirrored

DISCRETE, CONTINUOUS = "LunarLander-v3", "LunarLanderContinuous-v3"


def simulator(name=DISCRETE, **kwargs):
    return LunarLanderSimulator(gym.make(name, **kwargs))


def states_of(sim, count, seed=0):
    """Half of the states met in random play, half scattered."""
    rng = np.random.default_rng(seed)
    states: list = []
    sim.env.action_space.seed(seed)
    while len(states) < count // 2:
        sim.reset(len(states))
        over = False
        while not over and len(states) < count // 2:
            states.append(sim.read())
            _, _, terminated, truncated, _ = sim.env.step(sim.env.action_space.sample())
            over = terminated or truncated
    return states + [sim.scatter(rng) for _ in range(count - len(states))]


def errors_of(sim, symmetry, count, seed=0):
    """Errors of next observations and of rewards; how many terminations differ; which steps touch the ground."""
    observation = Mover(symmetry.observation, sim.env.observation_space)
    action = Mover(symmetry.action, sim.env.action_space)
    gaps, rewards, ends, contacts = [], [], 0, []
    for number, state in enumerate(states_of(sim, count, seed)):
        done = sim.env.action_space.sample()
        image = sim.image(state, symmetry, 1)
        there = sim.step(image, action(1, done), number, symmetry, 1)
        here = sim.step(state, done, number)
        gaps.append(np.abs(observation(1, here.observation) - there.observation).max())
        rewards.append(abs(here.reward - there.reward))
        ends += here.terminated != there.terminated
        contacts.append(any(contact.touching for contact in sim.env.unwrapped.world.contacts))
    return np.array(gaps), np.array(rewards), ends, np.array(contacts)


@pytest.mark.parametrize(
    ("name", "kwargs"), [(DISCRETE, {}), (CONTINUOUS, {}), (DISCRETE, {"enable_wind": True})], ids=str
)
def test_the_mirror_holds_to_rounding_in_flight_and_but_for_hard_landings_on_the_ground(name, kwargs):
    gaps, rewards, ends, touching = errors_of(simulator(name, **kwargs), entry_named(name).symmetry, 1000)
    assert 20 < touching.sum() < 500
    assert gaps[~touching].max() < 2e-5
    assert rewards[~touching].max() < 2e-3
    assert np.median(gaps[touching]) < 2e-5
    assert (gaps > 1e-2).mean() < 0.01
    assert ends <= 1


@pytest.mark.parametrize(
    ("signs", "swap", "action"),
    [
        ([-1, 1, -1, 1, -1, -1, 1, 1], [7, 6], [0, 1, 2, 3]),
        ([-1, 1, -1, 1, -1, 1, 1, 1], [7, 6], [0, 3, 2, 1]),
        ([-1, 1, 1, 1, -1, -1, 1, 1], [7, 6], [0, 3, 2, 1]),
        ([-1, 1, -1, 1, -1, -1, 1, 1], [6, 7], [0, 3, 2, 1]),
        ([-1, -1, -1, 1, -1, -1, 1, 1], [7, 6], [0, 3, 2, 1]),
    ],
    ids=["actions", "spin", "speed", "legs", "height"],
)
def test_a_wrong_mirror_is_found_out(signs, swap, action):
    claim = Symmetry.generated_by(({"signs": signs, "permutation": [0, 1, 2, 3, 4, 5, *swap]}, action))
    gaps, _, _, _ = errors_of(simulator(), claim, 400)
    assert (gaps > 1e-2).mean() > 0.02


def test_without_its_mirrored_dispersion_a_step_differs():
    sim, symmetry = simulator(), entry_named(DISCRETE).symmetry
    sim.reset(0)
    state = sim.read()
    here, there = sim.step(state, 2, 5), sim.step(mirrored(state), 2, 5)
    move = Mover(symmetry.observation, sim.env.observation_space)
    assert np.abs(move(1, here.observation) - there.observation).max() > 1e-4


def test_twice_mirrored_is_the_state_itself():
    sim = simulator(enable_wind=True)
    state = sim.scatter(np.random.default_rng(0))
    again = mirrored(mirrored(state))
    np.testing.assert_array_equal(again.heights, state.heights)
    np.testing.assert_allclose(np.concatenate([again.lander, *again.legs]), [*state.lander, *np.ravel(state.legs)])
    assert again[3:] == state[3:]


@pytest.mark.parametrize("name", [DISCRETE, CONTINUOUS])
def test_a_written_state_steps_as_the_environment_does(name):
    sim = simulator(name)
    sim.env.action_space.seed(0)
    sim.reset(3)
    met = []
    for number in range(60):
        state, action = sim.read(), sim.env.action_space.sample()
        sim.seed(number)
        observation, reward, terminated, _, _ = sim.env.step(action)
        met.append((state, action, number, observation, reward, terminated))
        np.testing.assert_allclose(sim.encode(sim.read()), observation, rtol=0, atol=1e-6)
    for state, action, number, observation, reward, terminated in met:
        outcome = sim.step(state, action, number)
        np.testing.assert_allclose(outcome.observation, observation, rtol=0, atol=1e-4)
        assert outcome.reward == pytest.approx(reward, abs=2e-2)
        assert outcome.terminated == terminated


def test_equal_states_give_equal_steps_bit_for_bit():
    sim = simulator(enable_wind=True)
    states = states_of(sim, 40)
    first = [sim.step(state, 2, 7) for state in states]
    again = [sim.step(state, 2, 7) for state in states[::-1]][::-1]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.observation, other.observation)
        assert one[1:] == other[1:]


def test_a_state_is_found_again_from_its_observation():
    sim = simulator()
    for state in states_of(sim, 20):
        assert sim.decode(sim.encode(state), state) is state
        elsewhere = state._replace(lander=state.lander._replace(x=3.0, angle=1.0, vx=2.0))
        found = sim.decode(sim.encode(elsewhere), state)
        np.testing.assert_allclose(found.lander, elsewhere.lander, rtol=0, atol=1e-12)


def test_the_legs_of_a_moved_lander_stay_on_it():
    sim = simulator()
    state = sim.scatter(np.random.default_rng(0))
    moved = sim.decode(sim.encode(state) + np.array([0.1, 0.2, 0.3, 0.1, 0.5, 0.2, 0, 0]), state)
    for before, after in zip(state.legs, moved.legs, strict=True):
        for key in ("x", "y"):
            assert abs(getattr(after, key) - getattr(moved.lander, key)) < 1.0
        assert after.angle - moved.lander.angle == pytest.approx(before.angle - state.lander.angle)
    sim.write(moved)
    for leg in sim.env.unwrapped.legs:
        assert (leg.joint.anchorA - leg.joint.anchorB).length < 1e-5
