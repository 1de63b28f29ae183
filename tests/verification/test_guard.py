"""A broken environment fails in one line that says what, where and with which action."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from equirl import UserError
from equirl.verification.guard import Guard


class Broken(gym.Env[Any, Any]):
    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)})
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        if self.fault == "reset":
            raise KeyError("no level")
        return {"a": np.zeros(2, np.float32)}, {}

    def step(self, action):
        if self.fault == "step":
            raise RuntimeError("wheel\ncame off")
        value = np.array([0.0, np.nan if self.fault == "nan" else 0.0], np.float32)
        observation = {"a": value[:1] if self.fault == "shape" else value}
        reward = float("inf") if self.fault == "reward" else 0.0
        return ({} if self.fault == "keys" else observation), reward, False, False, {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", ["reset raised KeyError", "after 0 steps"]),
        ("step", ["step raised RuntimeError: wheel came off", "with action 1"]),
        ("nan", ["'a'", "nan at index [1]", "1 of 2"]),
        ("shape", ["shape (1,)", "expected numbers of (2,)"]),
        ("keys", ["expected the keys ['a']"]),
        ("reward", ["reward of step 1 is inf"]),
    ],
)
def test_a_fault_is_one_line(fault, words):
    env = Guard(Broken(fault))
    with pytest.raises(UserError) as caught:
        _ = env.reset(seed=0), env.step(1)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in ["Broken", *words]), text


def test_a_sound_environment_passes_unchanged():
    guarded, plain = Guard(gym.make("CartPole-v1")), gym.make("CartPole-v1")
    assert (guarded.reset(seed=3)[0] == plain.reset(seed=3)[0]).all()
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(guarded.step(1)[:4], plain.step(1)[:4], strict=True)
    )


def test_a_space_without_representation_is_refused_at_construction():
    env = gym.make("Blackjack-v1")
    with pytest.raises(UserError, match=r"Blackjack-v1: observation space Tuple.*expected Box, Discrete"):
        Guard(env)
