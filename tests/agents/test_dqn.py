"""Equivariant DQN: every method learns, stays equivariant, saves and loads, and exchanges weights with plain SB3."""

import json
import zipfile
from copy import deepcopy
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import Grid, PerKey, Permutation, Symmetry, cyclic, equivariance_error, resolve_symmetry
from equirl.agents.dqn import CnnPolicy, MlpPolicy, MultiInputPolicy, QNetwork
from equirl.agents.extractors import PretrainedExtractor, SizedCombinedExtractor, SmallCNN
from equirl.errors import UserError
from tests._elsewhere import run_code

METHODS = ("identity", "equitune", "equizero", "lambda")  # test_designs.py has the others
EQUIVARIANT = METHODS[1:]
QUICK: dict[str, Any] = {
    "seed": 0,
    "buffer_size": 500,
    "learning_starts": 40,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "target_update_interval": 50,
}
CARTPOLE = {"symmetry": "CartPole-v1", "method": "equitune"}


SPACES = {
    "heading": spaces.Discrete(4),
    "vector": spaces.Box(-1, 1, (2,)),
    "small": spaces.Box(0, 255, (1, 5, 5), np.uint8),
    "large": spaces.Box(0, 255, (2, 40, 40), np.uint8),
    "channels_last": spaces.Box(0, 255, (40, 40, 2), np.uint8),
    "scaled": spaces.Box(0, 1, (2, 40, 40)),
}
TURNS = dict.fromkeys(SPACES, "rot90") | {
    "heading": [1, 2, 3, 0],
    "vector": {"permutation": [1, 0], "signs": [1, -1]},
}


class Compass(gym.Env):
    """Take action h where the needle points to h: up, left, down, right. A quarter turn sends h to h + 1.

    `keys` names what is seen, from SPACES: the heading itself, its unit vector (x, y) or pictures of it. One key is
    seen bare, several as a dictionary.
    """

    def __init__(self, *keys):
        self.keys = keys
        self.observation_space = SPACES[keys[0]] if len(keys) == 1 else spaces.Dict({key: SPACES[key] for key in keys})
        self.action_space = spaces.Discrete(4)

    @staticmethod
    def symmetry(*keys):
        seen = TURNS[keys[0]] if len(keys) == 1 else {"keys": {key: TURNS[key] for key in keys}}
        return Symmetry.generated_by((seen, [1, 2, 3, 0]), name="compass")

    def _picture(self, channels, side):
        picture = self.np_random.integers(0, 50, (channels, side, side))
        np.rot90(picture, -self.heading, (-2, -1))[0, 0] = 255  # turned so that the heading's side is the top
        return picture

    def _see(self):
        self.heading = int(self.np_random.integers(4))
        parts = {
            "heading": self.heading,
            "vector": [(0, 1), (-1, 0), (0, -1), (1, 0)][self.heading],
            "small": self._picture(1, 5),
            "large": self._picture(2, 40),
            "channels_last": np.moveaxis(self._picture(2, 40), 0, -1),
            "scaled": self._picture(2, 40) / 255,
        }
        seen = {key: np.asarray(parts[key], SPACES[key].dtype) for key in self.keys}
        return seen[self.keys[0]] if len(self.keys) == 1 else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action):
        reward = float(action == self.heading)
        self.steps += 1
        return self._see(), reward, False, self.steps >= 8, {}


DICT = ("heading", "vector", "small")


def frames_of_cartpole():
    return VecFrameStack(DummyVecEnv([lambda: gym.make("CartPole-v1")]), 3)


# name: environment, policy, symmetry, steps
CASES: dict[str, Any] = {
    "cartpole": (lambda: gym.make("CartPole-v1"), MlpPolicy, lambda: "CartPole-v1", 300),
    "stacked": (frames_of_cartpole, MlpPolicy, lambda: resolve_symmetry("CartPole-v1").stacked(3), 300),
    "gridworld": (lambda: gym.make("equirl/GridWorld-v0", size=5), CnnPolicy, lambda: "equirl/GridWorld-v0", 150),
    "dict": (lambda: Compass(*DICT), MultiInputPolicy, lambda: Compass.symmetry(*DICT), 300),
    "discrete": (lambda: Compass("heading"), MlpPolicy, lambda: Compass.symmetry("heading"), 300),
    "large": (lambda: Compass("large"), CnnPolicy, lambda: Compass.symmetry("large"), 100),
    "channels_last": (lambda: Compass("channels_last"), CnnPolicy, lambda: Compass.symmetry("large"), 60),
}


def build(case, method, policy_kwargs=None, **kwargs):
    make, policy, symmetry, _ = CASES[case]
    policy_kwargs = {"symmetry": symmetry(), "method": method, **(policy_kwargs or {})}
    return DQN(policy, make(), policy_kwargs=policy_kwargs, **{**QUICK, **kwargs})


@cache
def trained(case, method):
    """Return an agent that tests may read but must not change."""
    return build(case, method).learn(CASES[case][3])


def observations_of(space, n=12):
    """Return a batch of random observations as SB3 stores them, as tensors."""
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), (n, 1))
    if space.dtype == np.uint8:
        return torch.randint(256, (n, *space.shape), dtype=torch.uint8)
    return torch.randn(n, *space.shape)


def with_fixed_points(net):
    """Return observations as the symmetry moves them, and as many that every element leaves as they are."""
    seen, rep = net.movable(observations_of(net.observation_space)), net.symmetry.observation
    bare = not isinstance(seen, dict)
    whole = seen.round() if bare else {key: part.round() for key, part in seen.items()}  # sums of these are exact
    orbit = rep.orbit(whole)

    def add(x, images):
        return torch.cat([x, images.sum(0).to(x.dtype)])  # modulo 256 for pictures

    return add(seen, orbit) if bare else {key: add(part, orbit[key]) for key, part in seen.items()}


def error_of(net):
    symmetry, was = net.symmetry, net.training
    net.set_training_mode(False)
    error = equivariance_error(net.symmetrized, symmetry.observation, symmetry.action, with_fixed_points(net))
    net.set_training_mode(was)
    return error


def values(model, seen):
    model.policy.set_training_mode(False)
    with torch.no_grad():
        return model.q_net(seen)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# Equivariance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_trained_agents_are_equivariant_at_fixed_points_too(case, method):
    model = trained(case, method)
    before = build(case, method).policy.state_dict()
    learned = model.policy.state_dict()
    assert all(not torch.equal(before[key], learned[key]) for key in learned if key.endswith("q_net.0.weight"))
    assert error_of(model.q_net) <= 1e-5
    assert error_of(model.q_net_target) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_plain_agent_is_not_equivariant(case):
    model = trained(case, "identity")
    assert error_of(model.q_net) > 1e-3
    assert error_of(model.q_net_target) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_movable_observations_give_the_values_of_raw_ones(method):
    for case in ("cartpole", "dict", "discrete", "gridworld"):
        net = trained(case, method).q_net
        seen = observations_of(net.observation_space)
        assert torch.equal(net.symmetrized(net.movable(seen)), net(seen))


def test_equitune_is_the_average_over_the_orbit_of_the_plain_network():
    net = trained("cartpole", "equitune").q_net
    seen = torch.randn(5, 4)
    assert torch.allclose(net(seen), (net.plain(seen) + net.plain(-seen).flip(-1)) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_element_weights_make_the_values(method):
    net = trained("cartpole", method).q_net.eval()
    seen = torch.randn(5, 4)
    views = torch.stack([net.plain(seen), net.plain(-seen).flip(-1)])
    weights = net.element_weights(seen)
    assert weights.shape == (2, 5)
    assert torch.allclose((weights[..., None] * views).sum(0), net(seen), atol=1e-6)


def test_heading_is_learned_in_all_directions_from_the_picture():
    model = build("dict", "equitune", learning_rate=5e-3, exploration_fraction=0.3).learn(600)
    mean, _ = evaluate_policy(model, Monitor(Compass(*DICT)), n_eval_episodes=5)
    assert float(np.mean(mean)) > 7.5  # of 8; chance is 2


def test_greedy_ties_go_to_the_lowest_index():
    model = trained("cartpole", "equitune")
    zero = values(model, torch.zeros(1, 4))
    assert zero[0, 0] == zero[0, 1]
    assert model.predict(np.zeros(4, np.float32), deterministic=True)[0] == 0
    away = np.array([[0.1, -0.2, 0.03, 0.4]], np.float32)
    assert model.predict(away, deterministic=True)[0] == 1 - model.predict(-away, deterministic=True)[0]


# How the network is called


@pytest.mark.parametrize(("case", "key"), [("gridworld", None), ("large", None), ("dict", "small")])
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_pictures_are_moved_as_bytes_and_the_network_is_called_once(case, key, method, monkeypatch):
    net = trained(case, method).q_net
    moved, calls = [], []
    orbit = Grid.orbit

    def watched(self, x):
        moved.append(x.dtype)
        return orbit(self, x)

    monkeypatch.setattr(Grid, "orbit", watched)
    hook = net.features_extractor.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    net(observations_of(net.observation_space, 3))
    hook.remove()
    assert moved == [torch.uint8]
    (call,) = calls
    pictures = call if key is None else call[key]
    assert pictures.shape[0] == len(net.symmetry.group) * 3
    assert pictures.dtype == torch.float32
    assert 0.5 < pictures.max() <= 1


def test_whole_numbers_are_cast_before_matrices_and_signs_move_them():
    env = gym.wrappers.TransformObservation(
        gym.make("CartPole-v1"), lambda x: (100 * x).clip(-99, 99).astype(np.int8), spaces.Box(-128, 127, (4,), np.int8)
    )
    model = DQN(MlpPolicy, env, policy_kwargs=CARTPOLE, **QUICK)
    seen = torch.tensor([[-128, 127, 3, -4]], dtype=torch.int8)
    assert torch.allclose(model.q_net(-seen.float()).flip(-1), model.q_net(seen))
    turn = {"kind": "matrix", "matrices": [np.eye(4).tolist(), (-np.eye(4)).tolist()]}
    matrices = {**resolve_symmetry("CartPole-v1"), "observation": turn}
    model = DQN(MlpPolicy, env, policy_kwargs={"symmetry": matrices, "method": "equitune"}, **QUICK)
    assert torch.allclose(model.q_net(-seen.float()).flip(-1), model.q_net(seen))


@pytest.mark.parametrize("method", METHODS)
def test_no_symmetry_at_all(method):
    for keys, policy in ((DICT, MultiInputPolicy), (("heading",), MlpPolicy)):
        model: Any = DQN(policy, Compass(*keys), policy_kwargs={"symmetry": "none", "method": method}, **QUICK)
        seen = observations_of(model.q_net.observation_space)
        assert torch.equal(model.q_net(seen), model.q_net.plain(seen))


@pytest.mark.parametrize(
    ("case", "extractor", "net_arch"),
    [
        ("gridworld", SmallCNN, []),
        ("large", NatureCNN, []),
        ("dict", SizedCombinedExtractor, [64, 64]),
        ("cartpole", FlattenExtractor, [64, 64]),
    ],
)
def test_default_networks(case, extractor, net_arch):
    policy = trained(case, "identity").policy
    assert type(policy.q_net.features_extractor) is extractor
    assert policy.net_arch == net_arch


def test_a_given_extractor_is_used_whatever_the_observations():
    class Sum(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 4)

        def forward(self, x):
            return x.sum(-1, keepdim=True).expand(-1, 4)

    given = {"features_extractor_class": Sum, **CARTPOLE}
    net = DQN(CnnPolicy, "CartPole-v1", policy_kwargs=given, **QUICK).q_net
    assert isinstance(net.features_extractor, Sum)
    assert net.q_net[0].out_features == 64


def test_scaled_pictures_of_floats():
    symmetry = Compass.symmetry("scaled")
    given = {"symmetry": symmetry, "method": "equitune", "normalize_images": False}
    model: Any = DQN(CnnPolicy, Compass("scaled"), policy_kwargs=given, **QUICK)
    assert isinstance(model.q_net.features_extractor, NatureCNN)
    seen = torch.rand(4, 2, 40, 40)
    assert equivariance_error(model.q_net, symmetry.observation, symmetry.action, seen) <= 1e-5


# Learning


@pytest.mark.parametrize(
    ("policy", "plain", "keys", "steps"),
    [
        (MlpPolicy, "MlpPolicy", None, 300),
        (CnnPolicy, "CnnPolicy", ("large",), 70),
        (MultiInputPolicy, "MultiInputPolicy", ("large", "heading", "vector"), 70),
    ],
)
def test_identity_learns_exactly_what_plain_sb3_learns(policy, plain, keys, steps):
    def make():
        return gym.make("CartPole-v1") if keys is None else Compass(*keys)

    given = {"symmetry": "CartPole-v1" if keys is None else Compass.symmetry(*keys), "method": "identity"}
    ours = DQN(policy, make(), policy_kwargs=given, **QUICK).learn(steps)
    theirs = DQN(plain, make(), **QUICK).learn(steps)
    assert same(ours.policy.state_dict(), theirs.policy.state_dict())
    assert not same(ours.policy.state_dict(), DQN(plain, make(), **QUICK).policy.state_dict())
    ours_adam, theirs_adam = (model.policy.optimizer.state_dict()["state"] for model in (ours, theirs))
    assert ours_adam.keys() == theirs_adam.keys()
    assert all(same(ours_adam[key], theirs_adam[key]) for key in ours_adam)


def test_lambda_learns_its_own_net():
    model = trained("cartpole", "lambda")
    net = model.q_net.symmetrizer.score
    optimized = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.q_net.parameters()}
    assert {id(p) for p in net.parameters()} <= optimized
    fresh = build("cartpole", "lambda").q_net.symmetrizer.score
    assert not fresh[-1].weight.any()
    # all but the last bias, which adds the same to every view
    pairs = list(zip(fresh.parameters(), net.parameters(), strict=True))[:-1]
    assert all(not torch.equal(old, new) for old, new in pairs)
    assert net[-1].weight.abs().max() > 1e-4


@pytest.mark.parametrize("case", ["cartpole", "gridworld", "dict"])
@pytest.mark.parametrize("method", METHODS)
def test_online_and_target_share_nothing(case, method):
    model = trained(case, method)
    online, target = model.q_net, model.q_net_target
    assert not {id(m) for m in online.modules()} & {id(m) for m in target.modules()}
    ours, theirs = ({t.data_ptr() for t in net.state_dict(keep_vars=True).values()} for net in (online, target))
    assert len(ours) == len(list(online.parameters()))
    assert not ours & theirs


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_polyak_update_moves_the_target_alone(tau):
    model = build("cartpole", "lambda", tau=tau, target_update_interval=1)
    model._setup_learn(1)
    with torch.no_grad():
        for parameter in model.q_net.parameters():
            parameter.add_(torch.randn_like(parameter))
    online, target = deepcopy(model.q_net.state_dict()), deepcopy(model.q_net_target.state_dict())
    model._on_step()
    assert same(model.q_net.state_dict(), online)
    for key, new in model.q_net_target.state_dict().items():
        assert torch.allclose(new, (1 - tau) * target[key] + tau * online[key], atol=1e-6)
        assert not torch.equal(new, target[key])


def test_learning_with_tau_below_one():
    model = build("cartpole", "equitune", tau=0.1, target_update_interval=1).learn(200)
    online, target = (nn.utils.parameters_to_vector(net.parameters()) for net in (model.q_net, model.q_net_target))
    assert 0 < (online - target).abs().max().item() < 0.5
    assert error_of(model.q_net_target) <= 1e-5


def test_several_environments_at_once():
    envs = DummyVecEnv([lambda: Compass(*DICT)] * 3)
    given = {"symmetry": Compass.symmetry(*DICT), "method": "equizero"}
    model = DQN(MultiInputPolicy, envs, policy_kwargs=given, **QUICK).learn(120)
    assert error_of(model.q_net) <= 1e-5


# Double selection


def test_double_selection_lets_the_online_net_choose_the_views_of_the_target_net():
    model = build("cartpole", "equizero", {"double_selection": True}).learn(120)
    online, target = model.q_net, model.q_net_target
    seen = torch.randn(64, 4)
    chosen = online.element_weights(seen)
    views = torch.stack([target.plain(seen), target.plain(-seen).flip(-1)])
    assert torch.allclose(target(seen), (chosen[..., None] * views).sum(0), atol=1e-6)
    assert not torch.equal(chosen, target.element_weights(seen))
    best = torch.stack([online.plain(seen), online.plain(-seen)]).amax((0, 2))
    assert torch.allclose(online(seen).amax(-1), best)
    assert error_of(online) <= 1e-5
    assert error_of(target) <= 1e-5
    assert model.policy.state_dict().keys() == build("cartpole", "equizero").policy.state_dict().keys()


def test_double_selection_survives_copies_and_files(tmp_path):
    model = build("cartpole", "equizero", {"double_selection": True}).learn(120)
    seen = torch.randn(64, 4)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    copies: list[Any] = [
        deepcopy(model.policy),
        DQN.load(tmp_path / "model.zip").policy,
        MlpPolicy.load(tmp_path / "policy.pt"),
    ]
    for copy in copies:
        assert torch.equal(copy.q_net_target(seen), model.q_net_target(seen))
        with torch.no_grad():
            for parameter in copy.q_net.parameters():
                parameter.neg_()  # the copy's target must follow the copy's own online net
        chosen = copy.q_net.element_weights(seen)
        views = torch.stack([copy.q_net_target.plain(seen), copy.q_net_target.plain(-seen).flip(-1)])
        assert torch.allclose(copy.q_net_target(seen), (chosen[..., None] * views).sum(0), atol=1e-6)


# Files, copies and weights of others


READ_ELSEWHERE = """
import sys, torch
from stable_baselines3 import DQN
for path in sys.argv[1:]:
    model, seen = DQN.load(path), torch.load(path + ".seen")
    model.policy.set_training_mode(False)
    with torch.no_grad():
        torch.save((model.q_net(seen), model.q_net_target(seen)), path + ".values")
"""


def test_a_fresh_process_loads_the_same_values(tmp_path):
    grid = resolve_symmetry("equirl/GridWorld-v0")
    plain_data = json.loads(json.dumps(Compass.symmetry(*DICT)))
    backbone = nn.Sequential(nn.Conv2d(2, 3, 8, 8), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    pretrained = {
        "features_extractor_class": PretrainedExtractor,
        "features_extractor_kwargs": {"module": backbone},
    }
    options = {"double_selection": True, "symmetrizer_kwargs": {"score": "entropy"}}
    models = {
        "name": trained("cartpole", "equitune"),
        "object": build("gridworld", "lambda", {"symmetry": grid}).learn(60),
        "data": build("dict", "equizero", {"symmetry": plain_data}).learn(60),
        "options": build("cartpole", "equizero", options).learn(120),
        "module": build("large", "equitune", pretrained),
    }
    expected = {}
    for name, model in models.items():
        seen = observations_of(model.q_net.observation_space)
        model.save(tmp_path / f"{name}.zip")
        torch.save(seen, tmp_path / f"{name}.zip.seen")
        model.policy.set_training_mode(False)
        with torch.no_grad():
            expected[name] = model.q_net(seen), model.q_net_target(seen)
    done = run_code(READ_ELSEWHERE, *(tmp_path / f"{name}.zip" for name in models))
    assert (done.returncode, done.stderr) == (0, "")
    for name, pair in expected.items():
        for ours, theirs in zip(pair, torch.load(tmp_path / f"{name}.zip.values"), strict=True):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("kind", ["name", "object", "data"])
@pytest.mark.parametrize("more", [{}, {"net_arch": [16]}, {"activation_fn": nn.Tanh}])
def test_the_zip_says_symmetry_and_method_in_readable_json(kind, more, tmp_path):
    full = resolve_symmetry("CartPole-v1")
    given = {"name": "CartPole-v1", "object": full, "data": dict(full)}[kind]
    model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs={"symmetry": given, "method": "equizero", **more}, **QUICK)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        written = json.loads(file.read("data"))["policy_kwargs"]
    assert written["symmetry"] == (given if kind == "name" else dict(full))
    assert written["method"] == "equizero"
    assert (":serialized:" in written) == ("activation_fn" in more)
    loaded: Any = DQN.load(tmp_path / "model.zip")
    assert loaded.policy.symmetry == full
    seen = torch.randn(7, 4)
    assert torch.equal(values(loaded, seen), values(model, seen))


@pytest.mark.parametrize("case", ["cartpole", "gridworld", "dict", "discrete"])
@pytest.mark.parametrize("method", METHODS)
def test_policies_and_networks_save_and_load_alone(case, method, tmp_path):
    model = trained(case, method)
    seen = observations_of(model.q_net.observation_space)
    model.policy.save(tmp_path / "policy.pt")
    model.q_net.save(tmp_path / "net.pt")
    policy = type(model.policy).load(tmp_path / "policy.pt")
    net = QNetwork.load(str(tmp_path / "net.pt"))
    policy.set_training_mode(False)
    net.set_training_mode(False)
    expected = values(model, seen)
    assert torch.equal(policy.q_net(seen), expected)
    assert torch.equal(policy.q_net_target(seen), model.q_net_target(seen))
    assert torch.equal(net(seen), expected)
    assert policy.method == net.method == method


@pytest.mark.parametrize("method", METHODS)
def test_a_copied_policy_is_equal_and_apart(method):
    model = trained("dict", method)
    seen = observations_of(model.q_net.observation_space)
    expected = values(model, seen)
    copy = deepcopy(model.policy)
    assert torch.equal(copy.q_net(seen), expected)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    assert not torch.equal(copy.q_net(seen), expected)
    assert torch.equal(values(model, seen), expected)


@pytest.mark.parametrize("method", METHODS)
def test_learning_goes_on_after_loading(method, tmp_path):
    trained("cartpole", method).save(tmp_path / "model.zip")
    model = DQN.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"))
    before = deepcopy(model.policy.state_dict())
    assert same(before, trained("cartpole", method).policy.state_dict())
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps == 400
    after = model.q_net.state_dict()
    assert all(
        not torch.equal(before[f"q_net.{key}"], after[key]) for key in after if key != "symmetrizer.score.4.bias"
    )
    if method != "identity":
        assert error_of(model.q_net) <= 1e-5


@pytest.mark.parametrize("method", ["identity", "equitune", "equizero"])
def test_weights_travel_between_plain_sb3_and_this(method, tmp_path):
    plain = DQN("MlpPolicy", "CartPole-v1", **QUICK).learn(100)
    plain.save(tmp_path / "plain.zip")
    seen = torch.randn(6, 4)
    for source in (tmp_path / "plain.zip", plain.get_parameters()):
        ours = build("cartpole", method, seed=1)
        assert ours.policy.state_dict().keys() == plain.policy.state_dict().keys()
        assert not torch.equal(ours.q_net.plain(seen), plain.q_net(seen))
        ours.set_parameters(source)  # strictly
        assert torch.equal(ours.q_net.plain(seen), plain.q_net(seen))
        assert same(ours.policy.state_dict(), plain.policy.state_dict())

    trained("cartpole", method).save(tmp_path / "ours.zip")
    other = DQN("MlpPolicy", "CartPole-v1", **QUICK)
    other.set_parameters(str(tmp_path / "ours.zip"))
    assert torch.equal(other.q_net(seen), trained("cartpole", method).q_net.plain(seen))


def test_lambda_takes_plain_weights_beside_its_own():
    plain = DQN("MlpPolicy", "CartPole-v1", **QUICK)
    ours = build("cartpole", "lambda", seed=1)
    added = ours.policy.state_dict().keys() - plain.policy.state_dict().keys()
    assert added
    assert all(".symmetrizer.score." in key for key in added)
    ours.set_parameters({"policy": plain.get_parameters()["policy"]}, exact_match=False)
    seen = torch.randn(6, 4)
    assert torch.equal(ours.q_net.plain(seen), plain.q_net(seen))
    with pytest.raises(RuntimeError, match="symmetrizer"):
        ours.set_parameters(plain.get_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_parameters_go_round(method):
    model = trained("cartpole", method)
    other = build("cartpole", method, seed=5)
    other.set_parameters(model.get_parameters())
    seen = torch.randn(6, 4)
    assert torch.equal(values(other, seen), values(model, seen))


# Acting


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_one_observation_or_many(case, method):
    model = trained(case, method)
    space = model.observation_space
    seen = [space.sample() for _ in range(5)]
    many = {key: np.stack([one[key] for one in seen]) for key in space} if case == "dict" else np.stack(seen)
    actions, _ = model.predict(many, deterministic=True)
    assert actions.shape == (5,)
    singles = [model.predict(one, deterministic=True)[0] for one in seen]
    assert [single.shape for single in singles] == [()] * 5
    assert np.array_equal(singles, actions)


@pytest.mark.parametrize("case", ["cartpole", "gridworld", "dict"])
def test_evaluate_policy(case):
    model = trained(case, "equitune")
    mean, std = evaluate_policy(model, Monitor(CASES[case][0]()), n_eval_episodes=2)
    assert np.isfinite([mean, std]).all()


# Mistakes


def seeing(space):
    env = Compass("vector")
    env.observation_space = space
    return env


SWAP = Symmetry(Grid(cyclic(2), ["identity", "flip_x"]), Permutation.regular(cyclic(2)))
MISTAKES: dict[str, Any] = {
    "method": (MlpPolicy, "CartPole-v1", {"method": "equitun"}, r"unknown method 'equitun'.*'equitune'\?"),
    "symmetry": (MlpPolicy, "CartPole-v1", {"symmetry": "CartPol-v1"}, r"symmetry 'CartPol-v1'.*'CartPole-v1'\?"),
    "symmetry type": (MlpPolicy, "CartPole-v1", {"symmetry": 3}, "symmetry 3: expected a registered name"),
    "symmetry data": (MlpPolicy, "CartPole-v1", {"symmetry": {"group": {}}}, "without.*observation"),
    "size": (MlpPolicy, "MountainCar-v0", {}, r"acts on 4 entries, got shape \(2,\)"),
    "stack": (MlpPolicy, frames_of_cartpole, {}, r"symmetry\.stacked\(3\)"),
    "turn": (
        CnnPolicy,
        lambda: seeing(spaces.Box(0, 255, (1, 36, 44), np.uint8)),
        {"symmetry": Compass.symmetry("large")},
        r"rot90.*square.*36 x 44",
    ),
    "actions": (CnnPolicy, lambda: Compass("large"), {"symmetry": SWAP}, r"action.*acts on 2 entries"),
    "not per key": (MultiInputPolicy, lambda: Compass(*DICT), {}, "Dict: expected a PerKey"),
    "keys": (
        MultiInputPolicy,
        lambda: Compass(*DICT),
        {"symmetry": Compass.symmetry("vector", "small")},
        r"keys \['heading', 'small', 'vector'\]: expected \['small', 'vector'\]",
    ),
    "option": (
        MlpPolicy,
        "CartPole-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"scor": "max"}},
        "unknown option of equizero 'scor'.*'score'",
    ),
    "no option": (MlpPolicy, "CartPole-v1", {"symmetrizer_kwargs": {"score": "max"}}, "unknown option of equitune"),
    "score": (
        MlpPolicy,
        "CartPole-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"score": "maxi"}},
        "unknown score 'maxi'.*'max'",
    ),
    "double": (MlpPolicy, "CartPole-v1", {"double_selection": True}, "double_selection.*'equitune'.*'equizero'"),
    "vectors": (CnnPolicy, "CartPole-v1", {}, r"Box observations of shape \(4,\): expected pictures"),
    "many vectors": (
        CnnPolicy,
        lambda: seeing(spaces.Box(-np.ones(200), np.arange(200.0), dtype=np.float64)),
        {"symmetry": "none"},
        r"shape \(200,\): expected pictures",
    ),
    "dictionary": (CnnPolicy, lambda: Compass(*DICT), {}, "Dict observations"),
    "scaled": (
        CnnPolicy,
        lambda: Compass("scaled"),
        {"symmetry": Compass.symmetry("scaled")},
        r"pictures \(2, 40, 40\) of float32: expected uint8.*normalize_images=False",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_runs(mistake):
    policy, env, given, message = MISTAKES[mistake]
    env = env() if callable(env) else env
    with pytest.raises(UserError, match=message) as told:
        DQN(policy, env, policy_kwargs={**CARTPOLE, **given}, **QUICK)
    assert "\n" not in str(told.value)


def test_channels_last_symmetries_are_refused_where_sb3_moves_the_channels_first():
    flip = Grid(cyclic(2), ["identity", "flip_x"], layout="HWC")
    swap = Permutation(cyclic(2), [[0, 1, 2, 3], [0, 3, 2, 1]])
    given = {"symmetry": Symmetry(flip, swap), "method": "equitune"}
    with pytest.raises(UserError, match=r"layout 'HWC' on pictures \(2, 40, 40\): expected 'CHW'"):
        DQN(CnnPolicy, Compass("channels_last"), policy_kwargs=given, **QUICK)
    both = PerKey(cyclic(2), {"channels_last": flip, "heading": swap})
    given = {"symmetry": Symmetry(both, swap), "method": "equitune"}
    with pytest.raises(UserError, match="layout 'HWC'"):
        DQN(MultiInputPolicy, Compass("channels_last", "heading"), policy_kwargs=given, **QUICK)


@pytest.mark.parametrize("missing", ["symmetry", "method"])
@pytest.mark.parametrize(
    ("policy", "case"), [(MlpPolicy, "cartpole"), (CnnPolicy, "gridworld"), (MultiInputPolicy, "dict")]
)
def test_symmetry_and_method_have_no_defaults(policy, case, missing):
    given = {"symmetry": CASES[case][2](), "method": "equitune"}
    del given[missing]
    with pytest.raises(TypeError, match=missing):
        DQN(policy, CASES[case][0](), policy_kwargs=given, **QUICK)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "equizero"])
def test_double_selection_is_refused_for_other_methods(method):
    with pytest.raises(UserError, match=f"double_selection with method '{method}'"):
        build("cartpole", method, {"double_selection": True})
