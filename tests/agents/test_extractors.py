"""Features extractors: small pictures, modules that are handed in, and dictionaries that mix sizes."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from torch import nn

from equirl import Symmetry, equivariance_error
from equirl.agents import actor_critic
from equirl.agents.dqn import CnnPolicy, MlpPolicy, MultiInputPolicy
from equirl.agents.extractors import (
    NATURE_CNN_SIDE,
    PretrainedExtractor,
    SizedCombinedExtractor,
    SmallCNN,
    default_cnn,
)
from equirl.errors import UserError

TURN = Symmetry.generated_by(("rot90", [1, 2, 3, 0]))
QUICK: dict[str, Any] = {
    "seed": 0,
    "buffer_size": 200,
    "learning_starts": 20,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "target_update_interval": 20,
}


def picture(channels, height, width=None):
    return spaces.Box(0, 255, (channels, height, width or height), np.uint8)


class Noise(gym.Env):
    """Random observations and rewards, four actions, episodes of ten steps."""

    def __init__(self, space):
        self.observation_space, self.action_space = deepcopy(space), spaces.Discrete(4)
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), self.np_random.random(), False, self.steps >= 10, {}


class Block(nn.Module):
    """Two convolutions with batch normalisation around a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


class ResidualNet(nn.Module):
    """A residual network as torchvision builds them: stem, block, dropout, global average, linear layer."""

    def __init__(self, channels, width=6, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.block = Block(width)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.dropout(self.pool(self.block(self.stem(x))).flatten(1)))


def agent(module, frozen, method="equitune", space=None, **kwargs):
    given = {
        "symmetry": TURN,
        "method": method,
        "features_extractor_class": PretrainedExtractor,
        "features_extractor_kwargs": {"module": module, "frozen": frozen},
    }
    return DQN(CnnPolicy, Noise(space or picture(2, 8)), policy_kwargs=given, **{**QUICK, **kwargs})


def state(module):
    return deepcopy(module.state_dict())


def changed(before, module):
    """Return the names whose tensors are no longer as before."""
    return {key for key, value in module.state_dict().items() if not torch.equal(before[key], value)}


# SmallCNN and the choice of a CNN


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (3, 3, SmallCNN),
        (NATURE_CNN_SIDE - 1, NATURE_CNN_SIDE - 1, SmallCNN),
        (84, NATURE_CNN_SIDE - 1, SmallCNN),
        (NATURE_CNN_SIDE - 1, 84, SmallCNN),
        (NATURE_CNN_SIDE, NATURE_CNN_SIDE, NatureCNN),
        (84, 84, NatureCNN),
    ],
)
def test_default_cnn_is_the_one_that_fits(height, width, expected):
    space = picture(3, height, width)
    assert default_cnn(space) is expected
    assert default_cnn(space)(space, features_dim=16)(torch.rand(2, *space.shape)).shape == (2, 16)


def test_nature_cnn_leaves_nothing_of_smaller_pictures():
    with pytest.raises(RuntimeError):
        NatureCNN(picture(3, NATURE_CNN_SIDE - 1))


@pytest.mark.parametrize("side", [1, 3, 9])
def test_small_cnn_reads_the_whole_picture(side):
    net = SmallCNN(picture(2, side), features_dim=7, width=4)
    x = torch.rand(3, 2, side, side, requires_grad=True)
    assert net(x).shape == (3, 7)
    assert net.features_dim == 7
    net(x).sum().backward()
    assert x.grad.abs().sum((0, 1)).all()


def test_small_cnn_takes_its_arguments_from_policy_kwargs():
    given = {"symmetry": TURN, "method": "identity", "features_extractor_kwargs": {"features_dim": 11, "width": 3}}
    net = DQN(CnnPolicy, Noise(picture(2, 5)), policy_kwargs=given, **QUICK).q_net
    assert net.features_extractor.cnn[0].out_channels == 3
    assert net.q_net[0].in_features == 11


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (40,)), spaces.Dict({"x": picture(1, 5)})])
def test_only_pictures_have_a_cnn(space):
    for ask in (default_cnn, SmallCNN):
        with pytest.raises(UserError, match=r"expected pictures, a Box of shape \(C, H, W\)") as told:
            ask(space)
        assert "\n" not in str(told.value)


def test_scaled_pictures_need_a_word():
    scaled = spaces.Box(0, 1, (3, 40, 40))
    with pytest.raises(UserError, match="normalize_images=False"):
        default_cnn(scaled)
    assert default_cnn(scaled, normalized_image=True) is NatureCNN
    assert default_cnn(spaces.Box(0, 1, (3, 9, 9))) is SmallCNN


# PretrainedExtractor


@pytest.mark.parametrize("method", ["identity", "equitune", "equizero", "lambda"])
def test_a_frozen_module_stays_as_it_was_while_the_rest_learns(method):
    module = ResidualNet(2).train()
    module(torch.rand(16, 2, 8, 8))  # statistics other than those of a new module
    given = state(module)
    model = agent(module, frozen=True, method=method)
    head = state(model.q_net.q_net)
    model.learn(60)
    for net in (model.q_net, model.q_net_target):
        assert not changed(given, net.features_extractor.module)
        assert not any(parameter.requires_grad for parameter in net.features_extractor.parameters())
    assert changed(head, model.q_net.q_net) == head.keys()
    assert not changed(given, module)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.training


def test_a_frozen_module_never_leaves_evaluation_mode():
    model = agent(ResidualNet(2), frozen=True)
    model.policy.set_training_mode(True)
    assert model.q_net.training
    assert not any(part.training for part in model.q_net.features_extractor.module.modules())
    x = torch.randint(256, (4, 2, 8, 8), dtype=torch.uint8)
    assert torch.equal(model.q_net(x), model.q_net(x))  # no dropout


def test_a_module_that_is_not_frozen_learns_with_its_statistics():
    module = ResidualNet(2)
    given = state(module)
    model = agent(module, frozen=False, learning_rate=1e-3)
    model.policy.set_training_mode(True)
    assert all(part.training for part in model.q_net.features_extractor.module.modules())
    assert not any(part.training for part in model.q_net_target.features_extractor.module.modules())
    model.learn(60)
    assert changed(given, model.q_net.features_extractor.module) == given.keys()
    target = changed(given, model.q_net_target.features_extractor.module)
    assert {key for key in given if "num_batches" not in key} == target  # which SB3 leaves out of its copies
    assert not changed(given, module)
    x = torch.randint(256, (4, 2, 8, 8), dtype=torch.uint8)
    model.policy.set_training_mode(False)
    for net in (model.q_net, model.q_net_target):
        assert equivariance_error(net, TURN.observation, TURN.action, x) <= 1e-5


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_actor_critics_start_from_the_module_as_it_is(algorithm, frozen, share):
    module = ResidualNet(2)
    kwargs = {"features_extractor_class": PretrainedExtractor, "share_features_extractor": share}
    kwargs |= {"features_extractor_kwargs": {"module": module, "frozen": frozen}, "symmetry": TURN}
    policy = algorithm(
        actor_critic.CnnPolicy, Noise(picture(2, 8)), policy_kwargs={**kwargs, "method": "equitune"}
    ).policy
    for extractor in (policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor):
        assert not changed(state(module), extractor.module)
    assert policy.action_net.bias.abs().max() == 0  # SB3's start of the layers behind it


def test_functions_of_ones_own_reach_every_module():
    seen = []
    PretrainedExtractor(picture(2, 8), ResidualNet(2)).apply(lambda module: seen.append(type(module)))
    assert nn.Conv2d in seen
    assert seen[-1] is PretrainedExtractor


def test_parameters_frozen_by_hand_stay_frozen():
    module = ResidualNet(2)
    module.stem.requires_grad_(False)
    model = agent(module, frozen=False)
    before = state(module)
    model.learn(40)
    after = changed(before, model.q_net.features_extractor.module)
    assert not {"stem.0.weight", "stem.1.weight"} & after
    assert {"fc.weight", "block.body.0.weight"} <= after


def test_the_module_is_copied_for_each_net():
    module = ResidualNet(2)
    model = agent(module, frozen=True)
    copies = [module, *(net.features_extractor.module for net in (model.q_net, model.q_net_target))]
    tensors = [tensor.data_ptr() for copy in copies for tensor in copy.state_dict(keep_vars=True).values()]
    assert len(set(tensors)) == len(tensors) == 3 * len(module.state_dict())


def test_the_module_reads_pictures_scaled_to_one():
    seen = []
    probe = nn.Sequential(nn.Flatten())
    model = agent(probe, frozen=True, space=picture(1, 4))
    model.q_net.features_extractor.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.q_net(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert seen[0].shape == (8, 1, 4, 4)
    assert torch.equal(seen[0], torch.ones(8, 1, 4, 4))


def test_a_saved_agent_brings_its_module(tmp_path):
    model = agent(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten()), frozen=True).learn(30)
    model.save(tmp_path / "model.zip")
    loaded = DQN.load(tmp_path / "model.zip")
    x = torch.randint(256, (4, 2, 8, 8), dtype=torch.uint8)
    for ours in (model, loaded):
        ours.policy.set_training_mode(False)
    assert torch.equal(loaded.q_net(x), model.q_net(x))
    assert not any(parameter.requires_grad for parameter in loaded.q_net.features_extractor.parameters())


@pytest.mark.parametrize(
    ("space", "module", "features_dim"),
    [
        (spaces.Box(-1, 1, (4,)), nn.Linear(4, 6), 6),
        (spaces.Discrete(5), nn.Linear(5, 3), 3),
        (spaces.MultiDiscrete([2, 3]), nn.Linear(5, 3), 3),
        (spaces.MultiBinary(4), nn.Linear(4, 2), 2),
        (picture(2, 8), ResidualNet(2), 5),
        (picture(2, 8), nn.Conv2d(2, 3, 3), 3 * 6 * 6),
    ],
)
def test_features_are_counted_as_the_module_makes_them(space, module, features_dim):
    before = state(module)
    assert PretrainedExtractor(space, module).features_dim == features_dim
    assert not changed(before, module)


def test_vectors_and_discrete_observations_too():
    symmetry = Symmetry.generated_by(([1, 2, 3, 0], [1, 2, 3, 0]))
    given = {
        "symmetry": symmetry,
        "method": "equizero",
        "features_extractor_class": PretrainedExtractor,
        "features_extractor_kwargs": {"module": nn.Sequential(nn.Linear(4, 8), nn.Tanh())},
    }
    for space in (spaces.Box(-1, 1, (4,)), spaces.Discrete(4)):
        net: Any = DQN(MlpPolicy, Noise(space), policy_kwargs=given, **QUICK).learn(40).q_net
        x = torch.eye(4)
        assert equivariance_error(net.symmetrized, symmetry.observation, symmetry.action, x) <= 1e-5


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Verbose(nn.Module):
    def forward(self, x):
        raise ValueError("no such shape\nand a long story")


@pytest.mark.parametrize(
    ("space", "module", "message"),
    [
        (picture(2, 8), "resnet18", "module is a str: expected a torch module"),
        (picture(2, 8), nn.Conv2d, "module is a type: expected a torch module"),
        (
            picture(2, 8),
            nn.Conv2d(3, 4, 3),
            r"module Conv2d does not fit observations of shape \(2, 8, 8\): .*channels",
        ),
        (picture(2, 8), nn.Conv2d(2, 4, 9), r"Conv2d does not fit"),
        (spaces.Box(-1, 1, (4,)), nn.Linear(3, 2), r"Linear does not fit observations of shape \(4,\)"),
        (spaces.Box(-1, 1, (4,)), Verbose(), r"Verbose does not fit observations of shape \(4,\): no such shape$"),
        (spaces.Box(-1, 1, (4,)), Pair(), "module Pair returns a tuple: expected features"),
        (spaces.Box(-1, 1, (4,)), nn.Flatten(0), r"module Flatten returns shape \(4,\): expected features"),
        (spaces.Dict({"x": picture(1, 5)}), nn.Flatten(), "module Flatten on Dict observations: expected"),
    ],
)
def test_modules_that_cannot_serve_are_told_in_one_line(space, module, message):
    with pytest.raises(UserError, match=message) as told:
        PretrainedExtractor(space, module)
    assert "\n" not in str(told.value)


# SizedCombinedExtractor


PARTS = {"map": picture(2, 5), "camera": picture(1, 40), "speed": spaces.Box(-1, 1, (2,))}
MIXED = spaces.Dict(PARTS)


def mixed_observations(n=6):
    return {
        key: torch.randn(n, 2) if key == "speed" else torch.randint(256, (n, *box.shape), dtype=torch.uint8)
        for key, box in PARTS.items()
    }


def test_each_picture_has_the_cnn_that_fits_it():
    net = SizedCombinedExtractor(MIXED, cnn_output_dim=16)
    kinds = {key: type(part) for key, part in net.extractors.items()}
    assert kinds == {"map": SmallCNN, "camera": NatureCNN, "speed": nn.Flatten}
    assert net.features_dim == 16 + 16 + 2
    seen = {key: part.float() for key, part in mixed_observations().items()}
    features = net(seen)
    assert features.shape == (6, 34)
    for key in MIXED.spaces:  # every part is read
        assert not torch.equal(net({**seen, key: seen[key] + 1}), features)


@pytest.mark.parametrize("method", ["equitune", "equizero", "lambda"])
def test_mixed_dictionaries_learn_and_stay_equivariant(method):
    vector = {"permutation": [1, 0], "signs": [1, -1]}
    turn = {"keys": {"map": "rot90", "camera": "rot90", "speed": vector}}
    symmetry = Symmetry.generated_by((turn, [1, 2, 3, 0]))
    given = {"symmetry": symmetry, "method": method}
    model = DQN(MultiInputPolicy, Noise(MIXED), policy_kwargs=given, **QUICK).learn(40)
    assert isinstance(model.q_net.features_extractor, SizedCombinedExtractor)
    model.policy.set_training_mode(False)
    for net in (model.q_net, model.q_net_target):
        assert equivariance_error(net, symmetry.observation, symmetry.action, mixed_observations()) <= 1e-5


def test_only_small_pictures():
    space = spaces.Dict({"a": picture(1, 5), "b": picture(2, 7)})
    net = SizedCombinedExtractor(space, cnn_output_dim=8)
    assert net.features_dim == 16
    assert net({"a": torch.rand(2, 1, 5, 5), "b": torch.rand(2, 2, 7, 7)}).shape == (2, 16)


def test_without_small_pictures_it_is_that_of_sb3():
    space = spaces.Dict({"camera": MIXED["camera"], "speed": MIXED["speed"], "gear": spaces.Discrete(3)})
    ours, theirs = SizedCombinedExtractor(space), CombinedExtractor(space)
    ours.load_state_dict(theirs.state_dict())
    x = {"camera": torch.rand(2, 1, 40, 40), "speed": torch.rand(2, 2), "gear": torch.eye(3)[:2]}
    assert torch.equal(ours(x), theirs(x))


def test_scaled_pictures_in_dictionaries():
    space = spaces.Dict({"map": spaces.Box(0, 1, (1, 5, 5)), "camera": spaces.Box(0, 1, (1, 40, 40))})
    net = SizedCombinedExtractor(space, normalized_image=True)
    assert {key: type(part) for key, part in net.extractors.items()} == {"map": SmallCNN, "camera": NatureCNN}
    flat = SizedCombinedExtractor(space)  # no pictures by SB3's reading
    assert flat.features_dim == 25 + 1600
