"""Which environments can be set is found out by itself, or said by the environment or a package."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers

from equirl import Symmetry, check_symmetry
from equirl.envs.gridworld import GridWorldEnv
from equirl.verification import simulators
from equirl.verification.simulators import Settable, observed, register_simulator, simulator_of, uniform


class Shown(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = (0.1, 0.2)
        return np.array(self.state), {}

    def step(self, action):
        self.state = (self.state[0] + 0.1, self.state[1])
        return np.array(self.state), 0.0, False, False, {}


class Hidden(Shown):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation * 2, *rest


@pytest.mark.parametrize("name", ["MountainCar-v0", "MountainCarContinuous-v0", "equirl/GridWorld-v0"])
def test_a_state_that_is_shown_can_be_set(name):
    env = gym.make(name)
    simulator = simulator_of(env)
    assert isinstance(simulator, Settable)
    simulator.reset(0)
    start = simulator.read()
    first = simulator.step(start, env.action_space.sample(), 1)
    simulator.step(simulator.read(), env.action_space.sample(), 2)
    simulator.write(start)
    assert np.array_equal(np.asarray(simulator.read(), np.float64), np.asarray(start, np.float64))
    assert np.isfinite(np.asarray(first.observation, np.float64)).all()


def test_a_state_of_another_kind_than_the_observation_is_not():
    assert isinstance(simulator_of(Shown()), Settable)
    assert simulator_of(Hidden()) is None
    assert simulator_of(gym.make("Blackjack-v1")) is None


def test_a_state_kept_as_a_tuple_stays_one():
    simulator = simulator_of(Shown())
    assert simulator is not None
    simulator.reset(0)
    simulator.write(simulator.read())
    assert type(simulator.env.unwrapped.state) is tuple


@pytest.mark.parametrize(
    ("wrap", "settable"),
    [
        (lambda env: wrappers.TimeLimit(env, 10), True),
        (lambda env: wrappers.TransformReward(env, lambda r: 2 * float(r)), True),
        (lambda env: wrappers.FrameStackObservation(env, 2), False),
        (lambda env: wrappers.DelayObservation(env, 1), False),
        (lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 9)), False),
        (wrappers.NormalizeObservation, False),
    ],
)
def test_wrappers_with_a_memory_are_refused(wrap, settable):
    assert (simulator_of(wrap(Shown())) is not None) is settable


def test_a_package_names_the_simulator_of_its_environments(monkeypatch):
    monkeypatch.setattr(simulators, "_SIMULATORS", {})

    class Mine(Settable):
        pass

    register_simulator(f"{Hidden.__module__}:Hidden", Mine)

    class Child(Hidden):
        pass

    assert isinstance(simulator_of(Child()), Mine)
    Child.simulator = Settable  # what the environment says itself stands before
    assert type(simulator_of(Child())) is Settable


def test_observations_pass_the_wrappers_from_the_inside_out():
    inner = wrappers.TransformObservation(Shown(), lambda x: x + 1, None)
    env = wrappers.TimeLimit(wrappers.TransformObservation(inner, lambda x: x * 2, None), 5)
    assert observed(env, np.array([1.0, 2.0])).tolist() == [4.0, 6.0]


def test_scattered_states_fill_the_bounds():
    rng = np.random.default_rng(0)
    space = spaces.Box(np.array([-2, -np.inf, 0], np.float32), np.array([2, np.inf, 1], np.float32))
    drawn = np.array([uniform(space, rng) for _ in range(2000)], dtype=np.float64)
    assert drawn[:, 0].min() < -1.9
    assert drawn[:, 0].max() > 1.9
    assert drawn[:, 1].std() == pytest.approx(1, rel=0.1)
    assert (drawn[:, 2].min() >= 0, drawn[:, 2].max() <= 1) == (True, True)
    assert uniform(spaces.Box(0, 255, (3, 4, 4), np.uint8), rng) is None


def test_a_gridworld_is_put_into_what_is_seen():
    env = GridWorldEnv(size=5, n_walls=4)
    seen, _ = env.reset(seed=1)
    env.reset(seed=2)
    env.set_observation(seen)
    assert (env.get_observation() == seen).all()


def test_an_environment_may_refuse_observations_that_no_state_has():
    class Choosy(Shown):
        def get_observation(self):
            return np.array(self.state)

        def set_observation(self, observation):
            if observation[0] < 0:
                raise RuntimeError("never left of 0")
            self.state = tuple(observation)

    mirror = Symmetry.generated_by(({"signs": [-1, 1]}, [1, 0]))
    report = check_symmetry(Choosy(), mirror, states=30, controls=0)
    assert (report.verdict, report.tier) == ("rejected", 1)
    assert "no state shows the image of 60 of 60 observations" in report.reason
