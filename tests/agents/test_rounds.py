"""Our DQN takes the gradient steps of SB3's DQN, whatever way each of them takes."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import METHODS, Symmetry
from equirl.agents import rounds
from equirl.agents.dqn import DQN, CnnPolicy, MlpPolicy, MultiInputPolicy, QNetwork
from equirl.agents.extractors import PretrainedExtractor
from equirl.agents.orbit_steps import OrbitSteps

SGD = {"optimizer_class": torch.optim.SGD}  # a step is the gradient: Adam would blow up the rounding of those near 0


class Seen(gym.Env):
    """A vector and a small picture that turn together with four actions."""

    def __init__(self):
        pictures = spaces.Box(0, 255, (1, 5, 5), np.uint8)
        self.observation_space = spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "picture": pictures})
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action) - 1, self.steps == 5, False, {}


TURNS = {"keys": {"vector": {"permutation": [1, 0], "signs": [1, -1]}, "picture": "rot90"}}
# environment, policy, symmetry
CASES: dict[str, Any] = {
    "CartPole": (lambda: gym.make("CartPole-v1"), MlpPolicy, "CartPole-v1"),
    "GridWorld": (lambda: gym.make("equirl/GridWorld-v0", size=5, n_walls=2), CnnPolicy, "equirl/GridWorld-v0:C4"),
    "FrozenLake": (
        lambda: gym.make("FrozenLake-v1", desc=["SFFF", "FHFF", "FFFF", "FFFG"]),
        MlpPolicy,
        Symmetry.generated_by(([4 * (i % 4) + i // 4 for i in range(16)], [3, 2, 1, 0])),
    ),
    "dict": (Seen, MultiInputPolicy, Symmetry.generated_by((TURNS, [1, 2, 3, 0]))),
}


def build(cls, case="CartPole", method="equitune", env=None, policy_kwargs=None, **kwargs):
    make, policy, symmetry = CASES[case]
    given = {"symmetry": symmetry, "method": method, **SGD, **(policy_kwargs or {})}
    if "net_arch" not in given and case == "CartPole":
        given["net_arch"] = [48, 32]
    chosen = {"learning_starts": 30, "batch_size": 8, "train_freq": 10, "gradient_steps": 6, "learning_rate": 0.05}
    chosen |= {"buffer_size": 200, "seed": 3, "target_update_interval": 20, "exploration_final_eps": 0.3, **kwargs}
    model = cls(policy, env or make(), policy_kwargs=given, **chosen)
    losses: list[float] = []
    model.set_logger(Recorder(losses))
    model.losses_seen, model.started_from = losses, weights(model)
    return model


class Recorder(Logger):
    """Keeps the losses that are logged."""

    def __init__(self, losses):
        super().__init__(folder=None, output_formats=[])
        self.losses = losses

    def record(self, key, value, exclude=None):
        if key == "train/loss":
            self.losses.append(float(value))


def weights(model):
    return nn.utils.parameters_to_vector(model.q_net.parameters()).detach()


def both(steps=90, **kwargs):
    """Return SB3's DQN and ours, having learned from the same experience."""
    return [build(cls, **kwargs).learn(steps) for cls in (sb3.DQN, DQN)]


def assert_same(theirs, ours, exact=False):
    assert (weights(theirs) - theirs.started_from).abs().max() > 1e-3
    assert torch.allclose(weights(ours), weights(theirs), rtol=0, atol=0 if exact else 2e-5)
    assert ours._n_updates == theirs._n_updates > 0
    assert len(ours.losses_seen) == len(theirs.losses_seen) > 0
    assert ours.losses_seen == pytest.approx(theirs.losses_seen, rel=1e-4, abs=1e-6)


# Every method on vectors and pictures, every kind of observation under those that read most of them.
STEPS = [
    pytest.param(case, method, marks=[] if i < 2 or method in ("equitune", "lambda") else [pytest.mark.slow])
    for i, case in enumerate(CASES)
    for method in (*METHODS, "native")
]


@pytest.mark.parametrize(("case", "method"), STEPS)
def test_the_steps_are_those_of_sb3(case, method):
    theirs, ours = both(case=case, method=method)
    assert_same(theirs, ours, exact=method == "identity")


@pytest.mark.parametrize("case", ["CartPole", "GridWorld"])
@pytest.mark.parametrize(
    "options",
    [
        {"n_steps": 3},
        {"max_grad_norm": 0.05},
        {"gradient_steps": -1},
        {"tau": 0.2, "target_update_interval": 1},
        {"learning_rate": lambda rest: 0.05 * rest},
        {
            "policy_kwargs": {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"eps": 0.1}},
            "learning_rate": 1e-3,
        },
        {"policy_kwargs": {"activation_fn": nn.Tanh}},
        {"policy_kwargs": {"net_arch": []}},
    ],
    ids=lambda options: next(iter({**options.get("policy_kwargs", {}), **options})),
)
def test_so_they_are_whatever_the_settings(case, options):
    assert_same(*both(case=case, **options))


@pytest.mark.parametrize(("bytes_at_once", "rows"), [(1, 3), (600, 7)])
@pytest.mark.parametrize("case", CASES)
def test_rounds_too_large_for_memory_are_taken_in_parts(case, bytes_at_once, rows, monkeypatch):
    monkeypatch.setattr(rounds, "MOST_BYTES", bytes_at_once)
    monkeypatch.setattr(rounds, "TARGET_ROWS", rows)
    assert_same(*both(case=case))


def test_batches_are_counted_by_their_bytes(monkeypatch):
    monkeypatch.setattr(rounds, "MOST_BYTES", 4 * 8 * 25 * 3)
    assert list(rounds._rounds(7, 8, spaces.Box(0, 255, (1, 5, 5), np.uint8))) == [3, 3, 1]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("case", ["CartPole", "GridWorld", "dict"])
def test_orbit_samples_are_drawn_alike_where_a_round_is_one_batch(case, k):
    options = {"gradient_steps": 1, "policy_kwargs": {"symmetrizer_kwargs": {"orbit_samples": k}}}
    assert_same(*both(case=case, **options))


def test_orbit_samples_differ_from_batch_to_batch():
    model = build(DQN, policy_kwargs={"symmetrizer_kwargs": {"orbit_samples": 1}})
    obs, actions = torch.randn(800, 4), torch.zeros(800, 1, dtype=torch.long)
    torch.manual_seed(0)
    steps = OrbitSteps.of(model.q_net, obs, actions, 100, model.policy.optimizer, 10)
    turned = (steps.views[0].reshape(800, 4) == -obs).all(1)
    assert 330 < int(turned.sum()) < 470
    assert torch.equal(steps.actions.reshape(-1).bool(), turned)
    assert len({tuple(each.tolist()) for each in turned.view(100, 8)}) > 50


def test_double_selection_takes_the_steps_of_sb3():
    options = {"method": "equizero", "policy_kwargs": {"double_selection": True}}
    theirs, ours = both(**options)
    assert_same(theirs, ours, exact=True)


def test_plain_policies_learn_as_they_do_under_sb3():
    settings: Any = {"seed": 0, "learning_starts": 20, "batch_size": 8}
    one, other = (weights(cls("MlpPolicy", "CartPole-v1", **settings).learn(60)) for cls in (sb3.DQN, DQN))
    assert torch.equal(one, other)


def test_several_environments_share_a_round():
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)
    model = build(DQN, env=envs, gradient_steps=4)
    before = weights(model)
    assert not torch.equal(weights(model.learn(90)), before)


class Normed(BaseFeaturesExtractor):
    """Statistics of the batch, which differ between training and evaluation."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    "extractor",
    [
        {"features_extractor_class": Normed},
        {
            "features_extractor_class": PretrainedExtractor,
            "features_extractor_kwargs": {"module": nn.Sequential(nn.Linear(4, 8), nn.ReLU())},
        },
    ],
    ids=["batch statistics", "frozen"],
)
def test_other_extractors_go_by_autograd(extractor):
    theirs, ours = both(policy_kwargs=extractor)
    assert OrbitSteps.of(ours.q_net, torch.zeros(8, 4), torch.zeros(8, 1).long(), 1, ours.policy.optimizer, 10) is None
    assert_same(theirs, ours)


def test_known_gradients_are_used_and_frozen_layers_stay():
    models = []
    for cls in (sb3.DQN, DQN):
        model = build(cls)
        model.q_net.q_net[0].weight.requires_grad_(False)
        before = model.q_net.q_net[0].weight.clone()
        models.append(model.learn(90))
        assert torch.equal(model.q_net.q_net[0].weight, before)
    theirs, ours = models
    zeros = torch.zeros(8, 4), torch.zeros(8, 1).long()
    assert OrbitSteps.of(ours.q_net, *zeros, 1, ours.policy.optimizer, 10) is not None
    assert_same(theirs, ours)


def test_layers_that_are_frozen_later_stay_as_they_are():
    models = []
    for cls in (sb3.DQN, DQN):
        model = build(cls).learn(60)
        model.q_net.q_net[0].weight.requires_grad_(False)
        before = model.q_net.q_net[0].weight.clone()
        models.append(model.learn(60, reset_num_timesteps=False))
        assert torch.equal(model.q_net.q_net[0].weight, before)
    assert_same(*models)


class Louder(QNetwork):
    def forward(self, obs):
        return 2 * super().forward(obs)


class LouderPolicy(MlpPolicy):
    def make_q_net(self):
        return self._make(Louder, self._update_features_extractor(self.net_args))


def test_networks_that_compute_something_else_go_by_autograd(monkeypatch):
    monkeypatch.setitem(CASES, "CartPole", (CASES["CartPole"][0], LouderPolicy, "CartPole-v1"))
    assert_same(*both())


@pytest.mark.parametrize("place", [lambda net: net, lambda net: net.features_extractor])
def test_hooks_of_networks_are_called(place):
    model, calls = build(DQN), []
    place(model.q_net).register_forward_hook(lambda *_: calls.append(1))
    model.learn(40)
    assert len(calls) >= 6


def test_hooks_of_layers_are_called():
    model, calls = build(DQN), []
    model.q_net.q_net[0].register_forward_hook(lambda *_: calls.append(1))
    model.learn(40)
    assert len(calls) >= 6


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_gradients_are_called(register):
    model, calls = build(DQN), []
    before = weights(model).clone()

    def stop(given):
        calls.append(1)
        if register == "register_hook":
            return 0 * given
        given.grad.zero_()
        return None

    for parameter in model.q_net.parameters():
        getattr(parameter, register)(stop)
    model.learn(60)
    assert calls
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize("loader", [sb3.DQN, DQN])
def test_zips_are_those_of_sb3(loader, tmp_path):
    model = build(DQN).learn(90)
    model.save(tmp_path / "agent")
    loaded = loader.load(tmp_path / "agent", env=gym.make("CartPole-v1"))
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert torch.equal(weights(loaded), weights(model))
    assert loaded.learn(60).num_timesteps == 60


def test_gradients_that_are_no_numbers_spread_as_in_sb3():
    model = build(DQN)
    with torch.no_grad():
        model.q_net.q_net[-1].bias.fill_(float("nan"))
    assert weights(model.learn(60)).isnan().all()
