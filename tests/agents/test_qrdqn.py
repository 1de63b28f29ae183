"""Equivariant QR-DQN: the whole distribution of returns is equivariant, and the rest is sb3-contrib's own."""

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
from sb3_contrib import QRDQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import Symmetry, equivariance_error, resolve_symmetry
from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN
from equirl.agents.qrdqn import CnnPolicy, MlpPolicy, MultiInputPolicy, QuantileNetwork
from equirl.errors import UserError
from tests._elsewhere import run_code

METHODS = ("identity", "equitune", "equizero", "lambda")  # test_designs.py has the others
EQUIVARIANT = METHODS[1:]
QUICK: dict[str, Any] = {
    "seed": 0,
    "buffer_size": 200,
    "learning_starts": 20,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "target_update_interval": 25,
}
SMALL: dict[str, Any] = {"n_quantiles": 8, "net_arch": [16]}
CARTPOLE: dict[str, Any] = {"symmetry": "CartPole-v1", "method": "equitune"}
TURN = [1, 2, 3, 0]
SPACES = {
    "heading": spaces.Discrete(4),
    "vector": spaces.Box(-1, 1, (2,)),
    "small": spaces.Box(0, 255, (1, 5, 5), np.uint8),
    "large": spaces.Box(0, 255, (1, 36, 36), np.uint8),
}
TURNS = {"heading": TURN, "vector": {"permutation": [1, 0], "signs": [1, -1]}, "small": "rot90", "large": "rot90"}
DICT = ("heading", "vector", "small")


class Dice(gym.Env):
    """Show random observations and pay random rewards for four actions: a probe without anything to learn.

    One key of SPACES is seen bare, several as a dictionary.
    """

    def __init__(self, *keys):
        self.observation_space = SPACES[keys[0]] if len(keys) == 1 else spaces.Dict({key: SPACES[key] for key in keys})
        self.action_space = spaces.Discrete(4)

    @staticmethod
    def symmetry(*keys):
        seen = TURNS[keys[0]] if len(keys) == 1 else {"keys": {key: TURNS[key] for key in keys}}
        return Symmetry.generated_by((seen, TURN), name="dice")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), self.np_random.random(), False, self.steps >= 8, {}


def frames_of_cartpole():
    return VecFrameStack(DummyVecEnv([lambda: gym.make("CartPole-v1")]), 3)


# name: environment, policy, symmetry
CASES: dict[str, Any] = {
    "cartpole": (lambda: gym.make("CartPole-v1"), MlpPolicy, lambda: "CartPole-v1"),
    "stacked": (frames_of_cartpole, MlpPolicy, lambda: resolve_symmetry("CartPole-v1").stacked(3)),
    "c4": (lambda: Dice("small"), CnnPolicy, lambda: Dice.symmetry("small")),
    "d4": (lambda: gym.make("equirl/GridWorld-v0", size=4), CnnPolicy, lambda: "equirl/GridWorld-v0"),
    "dict": (lambda: Dice(*DICT), MultiInputPolicy, lambda: Dice.symmetry(*DICT)),
    "discrete": (lambda: Dice("heading"), MlpPolicy, lambda: Dice.symmetry("heading")),
}
VECTORS = ("cartpole", "stacked", "discrete")
TIE = 1024 * torch.finfo(torch.float32).eps  # of scores that are below 1, as all here are


def build(case, method, policy_kwargs=None, **kwargs):
    make, policy, symmetry = CASES[case]
    policy_kwargs = {"symmetry": symmetry(), "method": method, **SMALL, **(policy_kwargs or {})}
    return QRDQN(policy, make(), policy_kwargs=policy_kwargs, **{**QUICK, **kwargs})


@cache
def trained(case, method):
    """Return an agent that tests may read but must not change."""
    return build(case, method).learn(80)


def observations_of(space, n=7):
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


def error_of(net, double=False):
    was, seen = net.training, with_fixed_points(net)
    net.set_training_mode(False)
    if double:
        net, seen = deepcopy(net).double(), seen.double()
    error = equivariance_error(net.symmetrized, net.symmetry.observation, net.symmetry.action, seen)
    net.set_training_mode(was)
    return error


def outputs(model, seen):
    model.policy.set_training_mode(False)
    with torch.no_grad():
        return model.quantile_net(seen), model.quantile_net_target(seen)


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# Equivariance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_quantiles_are_equivariant_at_fixed_points_too_before_and_after_learning(case, method):
    fresh, learned = build(case, method), trained(case, method)
    key = "quantile_net.quantile_net.0.weight"
    assert not torch.equal(fresh.policy.state_dict()[key], learned.policy.state_dict()[key])
    for model in (fresh, learned):
        for net in model.policy.nets:
            assert error_of(net) <= 1e-5
            if case in VECTORS:
                assert error_of(net, double=True) <= 1e-12


@pytest.mark.parametrize("case", CASES)
def test_the_plain_agent_is_not_equivariant(case):
    assert all(error_of(net) > 1e-3 for net in trained(case, "identity").policy.nets)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_one_batched_call_equals_a_loop_over_elements(case, method):
    net = trained(case, method).quantile_net.eval()
    moved, symmetry = with_fixed_points(net), net.symmetry
    with torch.no_grad():
        views = [net.values_and_features(symmetry.observation(g, moved)) for g in range(len(symmetry.group))]
        undone = [y[..., p] for (y, _), p in zip(views, symmetry["action"]["indices"], strict=True)]
        if method == "identity":
            expected = undone[0]
        elif method == "equitune":
            expected = sum(undone) / len(undone)
        elif method == "lambda":
            raw = torch.stack([net.symmetrizer.score(features) for _, features in views]).exp()
            expected = sum(w[..., None] * y for w, y in zip(raw / raw.sum(0), undone, strict=True))
        else:
            rows = []
            for row in range(len(undone[0])):
                best = [y[row].mean(0).max() for y, _ in views]
                kept = [y[row] for y, score in zip(undone, best, strict=True) if score >= max(best) - TIE]
                rows.append(sum(kept) / len(kept))
            expected = torch.stack(rows)
        found = net.symmetrized(moved)
    assert found.shape == (len(undone[0]), 8, net.action_space.n)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_action_values_are_means_over_quantiles_and_the_greedy_action_their_best():
    model = trained("dict", "equitune")
    seen = [model.observation_space.sample() for _ in range(9)]
    many = {key: np.stack([one[key] for one in seen]) for key in DICT}
    batch, _ = model.policy.obs_to_tensor(many)
    quantiles, _ = outputs(model, batch)
    means = sum(quantiles[:, i] for i in range(8)) / 8
    assert torch.allclose(model.policy.scores(model.quantile_net.movable(batch)), means, atol=1e-6)
    actions, _ = model.predict(many, deterministic=True)
    assert actions.tolist() == means.argmax(-1).tolist()
    assert [int(model.predict(one, deterministic=True)[0]) for one in seen] == actions.tolist()


def test_ties_of_greedy_actions_go_to_the_lowest_index():
    model = trained("cartpole", "equitune")
    quantiles, _ = outputs(model, torch.zeros(1, 4))
    assert torch.equal(quantiles[..., 0], quantiles[..., 1])
    assert model.predict(np.zeros(4, np.float32), deterministic=True)[0] == 0
    away = np.array([[0.1, -0.2, 0.03, 0.4]], np.float32)
    assert model.predict(away, deterministic=True)[0] == 1 - model.predict(-away, deterministic=True)[0]


@pytest.mark.parametrize("case", ["cartpole", "d4", "dict"])
@pytest.mark.parametrize("method", METHODS)
def test_element_weights_sum_to_one_and_move_with_the_state(case, method):
    model = trained(case, method)
    net = model.quantile_net.eval()
    seen = observations_of(net.observation_space)
    weights = model.policy.element_weights(seen)
    assert weights.shape == (len(net.symmetry.group), 7)
    assert torch.allclose(weights.sum(0), torch.ones(7))
    if case == "cartpole" and method != "identity":
        assert torch.allclose(model.policy.element_weights(-seen), weights.flip(0), atol=1e-6)


@pytest.mark.parametrize(
    ("case", "extractor", "net_arch"),
    [("d4", SmallCNN, []), ("dict", SizedCombinedExtractor, [64, 64]), ("cartpole", FlattenExtractor, [64, 64])],
)
def test_default_networks(case, extractor, net_arch):
    make, policy, symmetry = CASES[case]
    model: Any = QRDQN(policy, make(), policy_kwargs={"symmetry": symmetry(), "method": "equitune"}, **QUICK)
    assert type(model.quantile_net.features_extractor) is extractor
    assert model.policy.net_arch == net_arch
    assert model.quantile_net(observations_of(model.quantile_net.observation_space, 2)).shape[1] == 200


# Equizero's scores


def two_views(score=None, double_selection=False):
    """Return CartPole's network of 3 quantiles which at (1, 0, 0, 0) sees HIGH_MEAN, and HIGH_QUANTILE mirrored."""
    more = {} if score is None else {"symmetrizer_kwargs": {"score": score}}
    given = {"net_arch": [], "n_quantiles": 3, "double_selection": double_selection, **more}
    model = build("cartpole", "equizero", given)
    for net in model.policy.nets:
        fill(net, HIGH_MEAN, HIGH_QUANTILE)
    return model


HIGH_MEAN = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # means (1, 0)
HIGH_QUANTILE = torch.tensor([[5.0, -0.25], [-3.0, -0.25], [-3.0, -0.25]])  # means (-1/3, -1/4)
AT = torch.tensor([[1.0, 0.0, 0.0, 0.0]])


@torch.no_grad()
def fill(net, here, mirrored):
    last = net.quantile_net[-1]
    last.weight.zero_()
    last.weight[:, 0] = (here - mirrored).flatten() / 2
    last.bias.copy_((here + mirrored).flatten() / 2)


@pytest.mark.parametrize("score", [None, "max", "max_probability", "entropy"])
def test_equizero_scores_by_name_read_means_over_quantiles(score):
    model = two_views(score)
    assert torch.equal(model.quantile_net.plain(AT)[0], HIGH_MEAN)
    assert torch.equal(model.quantile_net.plain(-AT)[0], HIGH_QUANTILE)
    assert torch.equal(outputs(model, AT)[0][0], HIGH_MEAN)
    assert torch.equal(outputs(model, -AT)[0][0], HIGH_MEAN.flip(-1))


def largest_quantile(y):
    assert y.shape == (2, 1, 3, 2), "elements, batch, quantiles, actions"
    return y.flatten(2).amax(-1)


def test_a_score_of_ones_own_reads_all_quantiles(tmp_path):
    model = two_views(largest_quantile)
    assert torch.equal(outputs(model, AT)[0][0], HIGH_QUANTILE.flip(-1))
    assert torch.equal(outputs(model, -AT)[0][0], HIGH_QUANTILE)
    model.save(tmp_path / "model.zip")
    assert equal(outputs(QRDQN.load(tmp_path / "model.zip"), AT), outputs(model, AT))


def test_views_that_tie_are_averaged():
    model = two_views()
    for net in model.policy.nets:
        # The largest means are 1 in both, of different actions, and the quantiles differ.
        fill(net, torch.tensor([[1.0, 0.5]] * 3), torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    average = torch.tensor([[0.5, 1.75], [0.5, 0.25], [0.5, 0.25]])
    assert torch.allclose(outputs(model, AT)[0][0], average)
    assert model.policy.element_weights(AT).tolist() == [[0.5], [0.5]]


def test_double_selection_lets_the_online_net_choose_the_views_of_the_target_net(tmp_path):
    model = two_views(double_selection=True)
    online, target = model.policy.nets
    fill(target, torch.full((3, 2), 2.0), torch.full((3, 2), 9.0))
    assert torch.equal(outputs(model, AT)[1][0], torch.full((3, 2), 2.0))  # alone, it would choose 9
    fill(online, HIGH_QUANTILE, HIGH_MEAN)
    assert torch.equal(outputs(model, AT)[1][0], torch.full((3, 2), 9.0))
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    policies = [
        deepcopy(model.policy),
        QRDQN.load(tmp_path / "model.zip").policy,
        MlpPolicy.load(tmp_path / "policy.pt"),
    ]
    for policy in policies:
        assert policy.double_selection
        fill(policy.quantile_net, HIGH_MEAN, HIGH_QUANTILE)  # the copy's target must follow the copy's own online net
        assert torch.equal(policy.quantile_net_target(AT)[0], torch.full((3, 2), 2.0))
    assert policies[0].state_dict().keys() == two_views().policy.state_dict().keys()


def test_without_double_selection_the_target_net_chooses_for_itself():
    model = two_views()
    fill(model.quantile_net_target, torch.full((3, 2), 2.0), torch.full((3, 2), 9.0))
    assert torch.equal(outputs(model, AT)[1][0], torch.full((3, 2), 9.0))


def test_double_selection_learns():
    model = build("d4", "equizero", {"double_selection": True}).learn(60)
    assert all(error_of(net) <= 1e-5 for net in model.policy.nets)


# Learning


@pytest.mark.parametrize(
    ("policy", "plain", "keys"),
    [
        (MlpPolicy, "MlpPolicy", None),
        (CnnPolicy, "CnnPolicy", ("large",)),
        (MultiInputPolicy, "MultiInputPolicy", ("large", "heading", "vector")),
    ],
)
def test_identity_learns_exactly_what_sb3_contrib_learns(policy, plain, keys):
    def make():
        return gym.make("CartPole-v1") if keys is None else Dice(*keys)

    steps = 200 if keys is None else 40
    given = {"symmetry": "CartPole-v1" if keys is None else Dice.symmetry(*keys), "method": "identity"}
    ours = QRDQN(policy, make(), policy_kwargs={**given, "n_quantiles": 8}, **QUICK).learn(steps)
    theirs = QRDQN(plain, make(), policy_kwargs={"n_quantiles": 8}, **QUICK)
    fresh = deepcopy(theirs.policy.state_dict())
    theirs.learn(steps)
    assert same(ours.policy.state_dict(), theirs.policy.state_dict())
    assert not same(ours.policy.state_dict(), fresh)
    ours_adam, theirs_adam = (model.policy.optimizer.state_dict()["state"] for model in (ours, theirs))
    assert ours_adam.keys() == theirs_adam.keys()
    assert all(same(ours_adam[key], theirs_adam[key]) for key in ours_adam)
    if keys and len(keys) == 1:
        assert type(ours.policy.quantile_net.features_extractor) is NatureCNN


def test_lambda_learns_its_own_net():
    model = trained("cartpole", "lambda")
    net = model.quantile_net.symmetrizer.score
    optimized = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.quantile_net.parameters()}
    assert {id(p) for p in net.parameters()} <= optimized
    fresh = build("cartpole", "lambda").quantile_net.symmetrizer.score
    assert not fresh[-1].weight.any()
    assert net[-1].weight.abs().max() > 1e-4
    assert not torch.equal(fresh[0].weight, net[0].weight)


@pytest.mark.parametrize("method", METHODS)
def test_online_and_target_share_nothing(method):
    online, target = trained("dict", method).policy.nets
    assert not {id(m) for m in online.modules()} & {id(m) for m in target.modules()}
    ours, theirs = ({t.data_ptr() for t in net.state_dict(keep_vars=True).values()} for net in (online, target))
    assert len(ours) == len(list(online.parameters()))
    assert not ours & theirs


def test_several_environments_at_once():
    envs = DummyVecEnv([lambda: Dice(*DICT)] * 3)
    given = {"symmetry": Dice.symmetry(*DICT), "method": "equizero", **SMALL}
    model = QRDQN(MultiInputPolicy, envs, policy_kwargs=given, **QUICK).learn(60)
    assert error_of(model.policy.quantile_net) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_learning_goes_on_after_loading(method, tmp_path):
    trained("cartpole", method).save(tmp_path / "model.zip")
    model: Any = QRDQN.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"))
    before = deepcopy(model.policy.state_dict())
    assert same(before, trained("cartpole", method).policy.state_dict())
    model.learn(48, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    assert not torch.equal(model.quantile_net.quantile_net[0].weight, before["quantile_net.quantile_net.0.weight"])
    assert method == "identity" or error_of(model.quantile_net) <= 1e-5


# Files, copies and weights of others


READ_ELSEWHERE = """
import sys, torch
from sb3_contrib import QRDQN
for path in sys.argv[1:]:
    model, seen = QRDQN.load(path), torch.load(path + ".seen")
    model.policy.set_training_mode(False)
    with torch.no_grad():
        torch.save((model.quantile_net(seen), model.quantile_net_target(seen)), path + ".outputs")
"""


def test_a_fresh_process_loads_the_same_outputs(tmp_path):
    plain_data = json.loads(json.dumps(Dice.symmetry(*DICT)))
    options = {"double_selection": True, "symmetrizer_kwargs": {"score": "entropy"}}
    models = {
        "name": trained("cartpole", "equitune"),
        "stacked": trained("stacked", "equizero"),
        "picture": trained("d4", "lambda"),
        "data": build("dict", "equizero", {"symmetry": plain_data, **options}).learn(40),
    }
    expected = {}
    for name, model in models.items():
        seen = observations_of(model.quantile_net.observation_space)
        model.save(tmp_path / f"{name}.zip")
        torch.save(seen, tmp_path / f"{name}.zip.seen")
        expected[name] = outputs(model, seen)
        here = QRDQN.load(tmp_path / f"{name}.zip")
        assert equal(outputs(here, seen), expected[name])
        assert error_of(here.quantile_net) <= 1e-5
    done = run_code(READ_ELSEWHERE, *(tmp_path / f"{name}.zip" for name in models))
    assert (done.returncode, done.stderr) == (0, "")
    for name, pair in expected.items():
        assert equal(pair, torch.load(tmp_path / f"{name}.zip.outputs")), name
    with zipfile.ZipFile(tmp_path / "data.zip") as file:
        written = json.loads(file.read("data"))["policy_kwargs"]
    assert {key: written[key] for key in options} == options
    assert (written["symmetry"], written["method"]) == (plain_data, "equizero")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_policies_and_networks_save_and_load_alone(case, method, tmp_path):
    model = trained(case, method)
    seen = observations_of(model.quantile_net.observation_space)
    model.policy.save(tmp_path / "policy.pt")
    model.quantile_net.save(tmp_path / "net.pt")
    policy = type(model.policy).load(tmp_path / "policy.pt")
    net = QuantileNetwork.load(str(tmp_path / "net.pt"))
    policy.set_training_mode(False)
    net.set_training_mode(False)
    expected = outputs(model, seen)
    assert equal((policy.quantile_net(seen), policy.quantile_net_target(seen)), expected)
    assert torch.equal(net(seen), expected[0])
    assert policy.method == net.method == method
    assert policy.symmetry == net.symmetry == model.policy.symmetry


@pytest.mark.parametrize("method", ["identity", "equitune", "equizero"])
def test_weights_travel_between_sb3_contrib_and_this(method, tmp_path):
    plain = QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(SMALL), **QUICK)
    plain.save(tmp_path / "plain.zip")
    seen = torch.randn(6, 4)
    for source in (tmp_path / "plain.zip", plain.get_parameters()):
        ours = build("cartpole", method, seed=1)
        assert not torch.equal(ours.quantile_net.plain(seen), plain.quantile_net(seen))
        ours.set_parameters(source)  # strictly
        assert torch.equal(ours.quantile_net.plain(seen), plain.quantile_net(seen))
        assert same(ours.policy.state_dict(), plain.policy.state_dict())
    plain.set_parameters(trained("cartpole", method).get_parameters())
    assert torch.equal(plain.quantile_net(seen), trained("cartpole", method).quantile_net.plain(seen))


def test_lambda_takes_plain_weights_beside_its_own():
    plain = QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(SMALL), **QUICK)
    ours = build("cartpole", "lambda", seed=1)
    added = ours.policy.state_dict().keys() - plain.policy.state_dict().keys()
    assert added
    assert all(".symmetrizer.score." in key for key in added)
    ours.set_parameters({"policy": plain.get_parameters()["policy"]}, exact_match=False)
    seen = torch.randn(6, 4)
    assert torch.equal(ours.quantile_net.plain(seen), plain.quantile_net(seen))
    with pytest.raises(RuntimeError, match="symmetrizer"):
        ours.set_parameters(plain.get_parameters())


# Acting


@pytest.mark.parametrize("case", CASES)
def test_evaluate_policy(case):
    make = CASES[case][0]
    env = make() if case == "stacked" else Monitor(make())
    mean, std = evaluate_policy(trained(case, "equizero"), env, n_eval_episodes=2, warn=False)
    assert np.isfinite([mean, std]).all()


# Mistakes


MISTAKES: dict[str, Any] = {
    "method": (MlpPolicy, "CartPole-v1", {"method": "equitun"}, r"unknown method 'equitun'.*'equitune'\?"),
    "symmetry": (MlpPolicy, "CartPole-v1", {"symmetry": "CartPol-v1"}, r"symmetry 'CartPol-v1'.*'CartPole-v1'\?"),
    "size": (MlpPolicy, "MountainCar-v0", {}, r"acts on 4 entries, got shape \(2,\)"),
    "stack": (MlpPolicy, frames_of_cartpole, {}, r"symmetry\.stacked\(3\)"),
    "not per key": (MultiInputPolicy, lambda: Dice(*DICT), {}, "Dict: expected a PerKey"),
    "vectors": (CnnPolicy, "CartPole-v1", {}, r"Box observations of shape \(4,\): expected pictures"),
    "option": (
        MlpPolicy,
        "CartPole-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"scor": "max"}},
        "unknown option of equizero 'scor'.*'score'",
    ),
    "option beside": (
        MlpPolicy,
        "CartPole-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"score": "max", "hidden": 3}},
        "unknown option of equizero 'hidden'",
    ),
    "no option": (MlpPolicy, "CartPole-v1", {"symmetrizer_kwargs": {"score": "max"}}, "unknown option of equitune"),
    "score": (
        MlpPolicy,
        "CartPole-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"score": "maxi"}},
        "unknown score 'maxi'.*'max'",
    ),
    "double": (MlpPolicy, "CartPole-v1", {"double_selection": True}, "double_selection.*'equitune'.*'equizero'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_runs(mistake):
    policy, env, given, message = MISTAKES[mistake]
    env = env() if callable(env) else env
    with pytest.raises(UserError, match=message) as told:
        QRDQN(policy, env, policy_kwargs={**CARTPOLE, **given}, **QUICK)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("missing", ["symmetry", "method"])
@pytest.mark.parametrize("case", ["cartpole", "d4", "dict"])
def test_symmetry_and_method_have_no_defaults(case, missing):
    make, policy, symmetry = CASES[case]
    given = {"symmetry": symmetry(), "method": "equitune"}
    del given[missing]
    with pytest.raises(TypeError, match=missing):
        QRDQN(policy, make(), policy_kwargs=given, **QUICK)
