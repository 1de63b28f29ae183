"""Agents in a learned pose: exact, one forward of the network, and learning what pose that is."""

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from torch import nn

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import Symmetry, equivariance_error, symmetrize
from equirl.agents import dqn, qrdqn
from equirl.agents.dqn import DQN
from equirl.canonicalizers import CentroidScores, GridScores, OrbitScores
from equirl.errors import UserError

LAKE = ["SFFF", "FHFF", "FFFF", "FFFG"]
# environment, policy, symmetry
CASES: dict[str, Any] = {
    "CartPole": (lambda: gym.make("CartPole-v1"), "MlpPolicy", "CartPole-v1"),
    "GridWorld": (lambda: gym.make("equirl/GridWorld-v0", size=5, n_walls=2), "CnnPolicy", "equirl/GridWorld-v0"),
    "FrozenLake": (
        lambda: gym.make("FrozenLake-v1", desc=LAKE),
        "MlpPolicy",
        Symmetry.generated_by(([4 * (i % 4) + i // 4 for i in range(16)], [3, 2, 1, 0])),
    ),
}
QUICK: dict[str, Any] = {"seed": 0, "buffer_size": 300, "learning_starts": 30, "batch_size": 8, "learning_rate": 1e-3}
MODELS: dict[str, Any] = {"DQN": (DQN, dqn), "SB3's DQN": (sb3.DQN, dqn), "QRDQN": (QRDQN, qrdqn)}


def build(case, model="DQN", **kwargs):
    make, policy, symmetry = CASES[case]
    cls, module = MODELS[model]
    given = {"symmetry": symmetry, "method": "canonical", **kwargs}
    return cls(getattr(module, policy), make(), policy_kwargs=given, train_freq=8, gradient_steps=2, **QUICK)


@cache
def trained(case, model="DQN"):
    return build(case, model, symmetrizer_kwargs={"prior": 0.1}).learn(120)


def seen(model, n=16):
    """Return observations as the symmetry moves them, whole orbits and sums over these among them."""
    space = model.observation_space
    obs = np.stack([space.sample() for _ in range(n)])
    if isinstance(space, spaces.Box) and space.dtype != np.uint8:
        obs = np.random.default_rng(0).normal(size=(n, *space.shape)).astype(np.float32)
    net = model.policy.acting
    x = net.movable(model.policy.obs_to_tensor(obs)[0])
    sums = model.policy.symmetry.observation.orbit(x).sum(0).to(x.dtype)
    return torch.cat([x, sums, torch.zeros_like(x[:1])])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_trained_agents_are_equivariant_at_fixed_points_too(case, model):
    agent = trained(case, model)
    agent.policy.set_training_mode(False)
    symmetry, net = agent.policy.symmetry, agent.policy.acting
    moves = symmetry.observation, symmetry.action
    assert equivariance_error(net.symmetrized, moves[0], moves[1], seen(agent)) <= 1e-5
    assert equivariance_error(lambda x: net.values_and_features(x)[0], moves[0], moves[1], seen(agent)) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_called_once_with_each_observation_once(case):
    agent = build(case)
    sizes: list[int] = []
    agent.q_net.head[-1].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    agent.predict(np.stack([agent.observation_space.sample() for _ in range(5)]), deterministic=True)
    assert len(sizes) == 1
    assert sizes[0] == 5 or case != "CartPole"  # tied poses, of symmetric boards, are a row each
    agent.policy.set_training_mode(True)
    agent.q_net(agent.policy.obs_to_tensor(agent.observation_space.sample())[0])
    assert len(sizes) == 2


@pytest.mark.parametrize("case", CASES)
def test_the_scores_learn_and_stay_apart_from_those_of_the_target(case):
    fresh, agent = build(case), build(case).learn(120)
    before, after = (nn.utils.parameters_to_vector(each.q_net.symmetrizer.parameters()) for each in (fresh, agent))
    assert (before - after).abs().max() > 1e-4
    online, target = ({id(p) for p in net.parameters()} for net in (agent.q_net, agent.q_net_target))
    assert not online & target


def test_the_steps_are_those_of_sb3():
    sgd = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    ours, theirs = (build("CartPole", model, **sgd).learn(120) for model in ("DQN", "SB3's DQN"))
    one, other = (nn.utils.parameters_to_vector(each.q_net.parameters()) for each in (ours, theirs))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", ["CartPole", "GridWorld"])
def test_a_zip_gives_the_same_values(case, model, tmp_path):
    agent = trained(case, model)
    agent.save(tmp_path / "agent")
    loaded = MODELS[model][0].load(tmp_path / "agent", env=CASES[case][0]())
    agent.policy.set_training_mode(False)
    loaded.policy.set_training_mode(False)
    x = seen(agent)
    assert torch.equal(loaded.policy.acting.symmetrized(x), agent.policy.acting.symmetrized(x))
    assert loaded.learn(40).num_timesteps == 40


def test_element_weights_are_of_the_views_that_are_kept():
    agent = trained("GridWorld")
    agent.policy.set_training_mode(False)
    net = agent.q_net
    obs = agent.policy.obs_to_tensor(np.stack([agent.observation_space.sample() for _ in range(6)]))[0]
    weights, views = net.element_weights(obs), net.symmetrizer.branches(net.values_and_features, obs)
    assert torch.allclose(net(obs), (weights[..., None] * views.undone).sum(0), atol=1e-5)


def test_plain_weights_fit_and_scores_come_fresh():
    plain = sb3.DQN("MlpPolicy", "CartPole-v1", **QUICK)
    agent = symmetrize(plain, symmetry="CartPole-v1", method="canonical")
    weight = plain.q_net.state_dict()["q_net.0.weight"]
    assert torch.equal(agent.q_net.state_dict()["q_net.0.weight"], weight)
    back = symmetrize(agent, symmetry="CartPole-v1", method="equitune")
    assert torch.equal(back.q_net.state_dict()["q_net.0.weight"], weight)


def test_scores_fit_the_observations():
    of = {case: build(case).q_net.symmetrizer.scores for case in CASES}
    assert [type(each) for each in of.values()] == [OrbitScores, CentroidScores, OrbitScores]
    nets = [build("GridWorld", symmetrizer_kwargs={"width": width}).q_net.symmetrizer.scores for width in (1.0, 0.5)]
    assert [type(each) for each in nets] == [GridScores, GridScores]
    count = [sum(p.numel() for p in each.parameters()) for each in nets]
    assert count[0] > 2 * count[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "max"}, "option of canonical 'score'"),
        ({"scores": "centroid"}, "scores 'centroid'"),
        ({"temperature": 0}, "temperature 0"),
        ({"hidden": 0}, "hidden 0: expected a whole number of at least 1"),
        ({"prior": -1}, "prior -1"),
        ({"beta": 0}, "beta 0"),
    ],
)
def test_mistakes_are_told_in_one_line(options, words):
    with pytest.raises(UserError) as caught:
        build("CartPole", symmetrizer_kwargs=options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
