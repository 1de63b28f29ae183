"""The work that is measured: three environments with shipped hyper-parameters, each under groups of several orders."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.dqn.policies import CnnPolicy as PlainCnn
from stable_baselines3.dqn.policies import DQNPolicy as PlainPolicy
from stable_baselines3.dqn.policies import MlpPolicy as PlainMlp

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import Grid, Permutation, Symmetry, Trivial, cyclic, resolve_symmetry, trivial
from equirl.agents.dqn import CnnPolicy, DQNPolicy, MlpPolicy
from equirl.agents.extractors import SmallCNN
from equirl.config import algorithm_kwargs, load_hyperparameters

PONG = "PongNoFrameskip-v4"


class PongShaped(gym.Env[NDArray[np.uint8], np.int64]):
    """Frames of noise in the shape of Pong's: its steps cost next to nothing, so that what is timed is the agent."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = spaces.Discrete(6)
        self.frames = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.frames[0], {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.frames[self.steps % len(self.frames)], 0.0, False, self.steps >= 200, {}


@dataclass(frozen=True)
class Case:
    """An environment, the policies of both sides, what they share, and the groups by name."""

    name: str
    network: str
    make_env: Callable[[], gym.Env[Any, Any]]
    plain: type[PlainPolicy]
    ours: type[DQNPolicy]
    groups: dict[str, Callable[[], Symmetry]]
    hyperparameters: dict[str, Any]
    steps: int  # of the environment, in one sample of learn()
    plain_kwargs: dict[str, Any] = field(default_factory=dict)  # policy_kwargs by which SB3 builds what ours chooses

    def algorithm(self, quick: bool) -> dict[str, Any]:
        """Return arguments of SB3's DQN: RL Zoo's format as shipped, with exploration at its final rate throughout."""
        kwargs = algorithm_kwargs(self.hyperparameters)
        kwargs |= {"buffer_size": 1024, "learning_starts": 0}  # the buffer is full from the start
        kwargs["exploration_initial_eps"] = kwargs["exploration_final_eps"]
        return kwargs | ({"train_freq": 4, "gradient_steps": 1, "batch_size": 2, "buffer_size": 64} if quick else {})


def _none(actions: int) -> Symmetry:
    group = trivial()
    return Symmetry(Trivial(group), Permutation(group, [list(range(actions))]))


def _half_turn() -> Symmetry:
    group = cyclic(2)
    return Symmetry(Grid(group, ["identity", "rot180"]), Permutation(group, [[0, 1, 2, 3], [2, 3, 0, 1]]))


def _flip_y() -> Symmetry:
    group = cyclic(2)
    return Symmetry(Grid(group, ["identity", "flip_y"]), Permutation(group, [[0, 1, 2, 3, 4, 5], [0, 1, 3, 2, 5, 4]]))


def _quarter_turns() -> Symmetry:
    """Return turns of a picture that exchange four of six actions; no game has them, their cost is what is asked."""
    group = cyclic(4)
    turn = np.array([0, 1, 3, 4, 5, 2])
    powers = [np.arange(6)]
    for _ in range(3):
        powers.append(turn[powers[-1]])
    return Symmetry(Grid(group), Permutation(group, powers))


def make_cases() -> dict[str, Case]:
    """Return the cases by name."""
    grid = "equirl/GridWorld-v0"
    cases = (
        Case(
            "CartPole",
            "MLP 256x256",
            lambda: gym.make("CartPole-v1"),
            PlainMlp,
            MlpPolicy,
            {"C1": lambda: _none(2), "C2": lambda: resolve_symmetry("CartPole-v1")},
            load_hyperparameters("dqn", "CartPole-v1", atari=False),
            steps=1024,
        ),
        Case(
            "GridWorld",
            "small CNN, 9x9",
            lambda: gym.make(grid),
            PlainCnn,
            CnnPolicy,
            {
                "C1": lambda: _none(4),
                "C2": _half_turn,
                "C4": lambda: resolve_symmetry(f"{grid}:C4"),
                "D4": lambda: resolve_symmetry(grid),
            },
            load_hyperparameters("dqn", grid, atari=False),
            steps=400,
            plain_kwargs={"features_extractor_class": SmallCNN, "net_arch": []},
        ),
        Case(
            "Pong-shaped",
            "NatureCNN, 4x84x84",
            PongShaped,
            PlainCnn,
            CnnPolicy,
            {"C1": lambda: _none(6), "C2": _flip_y, "C4": _quarter_turns},
            load_hyperparameters("dqn", PONG, atari=True),
            steps=100,
        ),
    )
    return {case.name: case for case in cases}
