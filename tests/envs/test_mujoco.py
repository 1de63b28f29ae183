import gymnasium as gym
import numpy as np
import pytest

from equirl import Symmetry, check_symmetry
from equirl.envs.catalogue import ENTRIES, entry_named
from equirl.errors import UserError
from equirl.verification.moving import Mover

pytest.importorskip("mujoco")

from equirl.envs.mujoco import MujocoSimulator

NAMES = [entry.name for entry in ENTRIES if entry.extra == "mujoco"]
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


def simulator(name):
    entry = entry_named(name)
    return MujocoSimulator(gym.make(entry.env_id, **entry.kwargs))


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


def errors_of(sim, symmetry, count):
    """Errors of next observations in standard deviations, of rewards, and how many terminations differ."""
    observation = Mover(symmetry.observation, sim.env.observation_space)
    action = Mover(symmetry.action, sim.env.action_space)
    gaps, rewards, ends, seen = [], [], 0, []
    for number, state in enumerate(states_of(sim, count)):
        g = 1 + number % (len(symmetry.group) - 1)
        done = sim.env.action_space.sample()
        image = sim.image(state, symmetry, g)
        here, there = sim.step(state, done, 0), sim.step(image, action(g, done), 0)
        now = np.abs(observation(g, sim.observe(state)) - sim.observe(image))
        then = np.abs(observation(g, here.observation) - there.observation)
        gaps.append(np.maximum(now, then))
        rewards.append(abs(here.reward - there.reward))
        ends += here.terminated != there.terminated
        seen.append(here.observation)
    deviation = np.std(seen, axis=0)
    return (np.array(gaps) / np.where(deviation > 1e-9, deviation, 1)).max(1), np.array(rewards), ends


@pytest.mark.parametrize("name", [name for name in NAMES if entry_named(name).verdict == "exact"])
def test_an_exact_symmetry_holds_to_rounding_in_play_and_far_from_it(name):
    errors, rewards, ends = errors_of(simulator(name), entry_named(name).symmetry, 500)
    assert errors.max() < 1e-9
    assert rewards.max() < 1e-8  # costs of float32 actions are summed in another order
    assert ends == 0


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("InvertedPendulum-v5", 5e-4, 2e-2), ("InvertedDoublePendulum-v5", 5e-8, 2e-6)],
)
def test_a_leaning_pendulum_is_symmetric_up_to_its_lean(name, least, most):
    errors, _, ends = errors_of(simulator(name), entry_named(name).symmetry, 500)
    assert least < np.median(errors)
    assert errors.max() < most
    assert ends == 0


@pytest.mark.parametrize(("name", "least"), [("Walker2d-v4:swap", 0.2), ("Humanoid-v5:mirror", 0.02)])
def test_a_body_with_unequal_sides_is_found_out(name, least):
    errors, _, _ = errors_of(simulator(name), entry_named(name).symmetry, 500)
    assert errors.max() > least


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_found_again_from_its_observation(name):
    sim = simulator(name)
    for state in states_of(sim, 40):
        found = sim.decode(sim.encode(state), state)
        np.testing.assert_allclose(found.qpos, state.qpos, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.qvel, state.qvel)


@pytest.mark.parametrize("name", NAMES)
def test_equal_states_give_equal_steps_bit_for_bit(name):
    sim = simulator(name)
    states = states_of(sim, 20)
    actions = [sim.env.action_space.sample() for _ in states]
    first = [sim.step(state, action, 0) for state, action in zip(states, actions, strict=True)]
    again = [sim.step(state, action, 1) for state, action in zip(states[::-1], actions[::-1], strict=True)]
    for one, other in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(one.observation, other.observation)
        assert one[1:] == other[1:]


@pytest.mark.parametrize("name", ["Walker2d-v5", "Ant-v5", "Reacher-v5", "InvertedDoublePendulum-v5"])
def test_a_written_state_steps_as_the_environment_does(name):
    sim = simulator(name)
    sim.env.action_space.seed(0)
    sim.reset(0)
    for _ in range(10):
        state, action = sim.read(), sim.env.action_space.sample()
        observation, reward, *_ = sim.env.step(action)
        after = sim.read()
        outcome = sim.step(state, action, 0)
        np.testing.assert_allclose(outcome.observation, observation, rtol=0, atol=1e-6)  # the solver's warm start
        assert outcome.reward == pytest.approx(reward, abs=1e-6)
        sim.write(after)


def test_velocities_that_the_environment_clips_are_kept():
    sim = simulator("Walker2d-v5")
    state = sim.read()._replace(qvel=np.full(9, 25.0))
    assert sim.encode(state).max() == 25.0
    image = sim.image(state, entry_named("Walker2d-v5").symmetry, 1)
    assert image.qvel.tolist() == [25.0] * 9


@pytest.mark.parametrize(("angle", "velocity"), [(3.2, 1.0), (2.0, -1.0)])
def test_a_joint_past_half_a_turn_stays_at_its_limit(angle, velocity):
    sim = simulator("Reacher-v5:mirror")
    state = sim.read()
    state.qpos[1], state.qvel[1] = angle, velocity
    image = sim.image(state, entry_named("Reacher-v5:mirror").symmetry, 1)
    np.testing.assert_allclose(image.qpos[:2], -state.qpos[:2])


def test_an_impossible_observation_has_the_nearest_state():
    sim = simulator("Reacher-v5")
    swap = Symmetry.generated_by(({"permutation": [4, 1, 2, 3, 0, 5, 6, 7, 8, 9]}, {"signs": [1, 1]}))
    state = sim.read()
    shown = sim.observe(sim.image(state, swap, 1))
    claimed = sim.observe(state)[[4, 1, 2, 3, 0, 5, 6, 7, 8, 9]]
    assert np.abs(shown - claimed).max() > 0.1


@pytest.mark.parametrize("name", ["Walker2d-v5", "Ant-v5", "Humanoid-v5:mirror"])
def test_scattered_bodies_fly_and_stand_and_nowhere_overlap_deeply(name):
    sim, rng = simulator(name), np.random.default_rng(0)
    contacts = []
    for _ in range(60):
        sim.write(sim.scatter(rng))
        data = sim.env.unwrapped.data
        assert np.isfinite(data.qacc).all()
        assert min(data.contact.dist, default=0) > -0.06
        contacts.append(data.ncon)
    assert 0.2 < np.mean(np.array(contacts) > 0) < 0.9


def test_a_scattered_reacher_leaves_its_target_at_rest():
    sim, rng = simulator("Reacher-v5"), np.random.default_rng(0)
    assert all(sim.scatter(rng).qvel[2:].tolist() == [0.0, 0.0] for _ in range(10))


def test_an_unknown_observation_has_no_images():
    from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv

    class Squared(SwimmerEnv):
        def _get_obs(self):
            return super()._get_obs() ** 2

    sim = MujocoSimulator(Squared())
    assert sim.image(sim.read(), entry_named("Swimmer-v5").symmetry, 1) is None
    assert sim.scatter(np.random.default_rng(0)) is None


def test_an_environment_that_cannot_observe_is_a_user_error():
    from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

    class Blind(MujocoEnv):
        metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012

        def __init__(self):
            super().__init__("reacher.xml", 2, gym.spaces.Box(-1, 1, (1,)))

    with pytest.raises(UserError, match="expected a method _get_obs"):
        MujocoSimulator(Blind())


def test_an_unknown_layout_is_no_evidence_against_a_claim():
    env = gym.make("Pusher-v5")
    mirror = Symmetry.generated_by(({"signs": [-1] * 23}, {"signs": [-1] * 7}))
    assert check_symmetry(env, mirror, states=20, controls=1).tier > 1
