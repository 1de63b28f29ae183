"""Equivariant PPO and A2C: every method learns, stays equivariant, saves and loads, and takes plain SB3's weights."""

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
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from equirl import Grid, Matrix, Symmetry, Trivial, cyclic, equivariance_error, resolve_symmetry
from equirl.agents.actor_critic import ActorCriticPolicy, CnnPolicy, MlpPolicy, MultiInputPolicy
from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN
from equirl.errors import UserError
from tests._elsewhere import run_code

METHODS = ("identity", "equitune", "equizero", "lambda")  # test_designs.py has the others
EQUIVARIANT = METHODS[1:]
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C}
QUICK: dict[str, Any] = {
    "ppo": {"seed": 0, "n_steps": 16, "batch_size": 8, "n_epochs": 1, "learning_rate": 1e-3},
    "a2c": {"seed": 0, "n_steps": 8, "learning_rate": 1e-3},
}
CARTPOLE = {"symmetry": "CartPole-v1", "method": "equitune"}


class Probe(gym.Env):
    """Shows random observations, and rewards an action for its first entry where the observation's is high.

    With `only`, every observation is that one.
    """

    def __init__(self, seen, done, only=None):
        self.observation_space, self.action_space, self.only = seen, done, only

    def _see(self):
        self.seen = self.observation_space.sample() if self.only is None else self.only
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action):
        self.steps += 1
        first = self.seen["vector"] if isinstance(self.seen, dict) else self.seen
        reward = float(np.ravel(action)[0]) * float(np.ravel(first)[0])
        return self._see(), reward, False, self.steps >= 5, {}


def vectors(n):
    return spaces.Box(-1, 1, (n,))


def pictures(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


QUARTER = {"permutation": [1, 0], "signs": [1, -1]}  # of (x, y)
TURN = ("rot90", [1, 2, 3, 0])
KEYS = {"heading": spaces.Discrete(4), "vector": vectors(2), "small": pictures(1, 5, 5)}
TURNED_KEYS = {"heading": [1, 2, 3, 0], "vector": QUARTER, "small": "rot90"}
DEPTH = {"permutation": [1, 0, 2], "signs": [1, -1, -1], "centre": [0, 0, 5]}  # a quarter turn, and a mirror about 5
PUSHES = spaces.Box(np.array([-1, -1, 3], np.float32), np.array([1, 1, 7], np.float32))

# name: policy, observations, actions, generators of the symmetry
SPACES: dict[str, Any] = {
    "vector": (MlpPolicy, vectors(4), spaces.Discrete(2), [({"signs": [-1] * 4}, [1, 0])]),
    "discrete": (MlpPolicy, spaces.Discrete(4), spaces.Discrete(4), [([1, 2, 3, 0], [1, 2, 3, 0])]),
    "picture": (CnnPolicy, pictures(2, 5, 5), spaces.Discrete(4), [TURN, ("flip_x", [0, 3, 2, 1])]),
    "large": (CnnPolicy, pictures(1, 36, 36), spaces.Discrete(4), [TURN]),
    "dict": (MultiInputPolicy, spaces.Dict(KEYS), spaces.Discrete(4), [({"keys": TURNED_KEYS}, [1, 2, 3, 0])]),
    "mirror": (MlpPolicy, vectors(3), spaces.Box(-2, 2, (1,)), [({"signs": [1, -1, -1]}, {"signs": [-1]})]),
    "centre": (MlpPolicy, vectors(2), PUSHES, [(QUARTER, DEPTH)]),
    "swap": (MlpPolicy, vectors(2), spaces.Box(-1, 1, (3,)), [([1, 0], [1, 0, 2])]),
    "multidiscrete": (
        MlpPolicy,
        vectors(2),
        spaces.MultiDiscrete([3, 3, 2]),
        [([1, 0], [3, 4, 5, 0, 1, 2, 6, 7]), ({"signs": [-1, -1]}, [2, 1, 0, 5, 4, 3, 7, 6])],
    ),
    "multibinary": (MlpPolicy, vectors(2), spaces.MultiBinary(4), [(QUARTER, [1, 2, 3, 0])]),
}
MLPS = [case for case, (policy, *_) in SPACES.items() if policy is MlpPolicy]
CONTINUOUS = ["mirror", "centre", "swap"]
SMALL = [case for case in SPACES if case != "large"]


def probe(case, only=None):
    _, seen, done, _ = SPACES[case]
    return Probe(deepcopy(seen), done, only)


def keywords(case, method, **more):
    return {"symmetry": Symmetry.generated_by(*SPACES[case][3], name=case), "method": method, **more}


def build(case, method, algo="ppo", policy_kwargs=None, **kwargs):
    policy_kwargs = keywords(case, method, **(policy_kwargs or {}))
    return ALGORITHMS[algo](SPACES[case][0], probe(case), policy_kwargs=policy_kwargs, **{**QUICK[algo], **kwargs})


def shaken(model):
    """Move every parameter, so that no two entries of log_std are equal and no network is odd; return the model."""
    noise = torch.Generator().manual_seed(1)
    convolves = any(isinstance(module, nn.Conv2d) for module in model.policy.modules())
    size = 0.05 if convolves else 0.7  # no more, so that probabilities stay below 1
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            scale = 0.2 if name.endswith("bias") else size / parameter[0].numel() ** 0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))
    model.policy.set_training_mode(False)
    return model


@cache
def trained(case, method, algo="ppo"):
    """Return an agent that tests may read but must not change."""
    return shaken(build(case, method, algo).learn(32))


def observations_of(space, n=6):
    """Return a batch of random observations as SB3 stores them, as tensors."""
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), (n,))
    if space.dtype == np.uint8:
        return torch.randint(256, (n, *space.shape), dtype=torch.uint8)
    return 2 * torch.randn(n, *space.shape)


def with_fixed_points(policy):
    """Return observations as the symmetry moves them, and as many that every element leaves as they are."""
    seen, rep = policy.movable(observations_of(policy.observation_space)), policy.symmetry.observation
    bare = not isinstance(seen, dict)
    whole = seen.round() if bare else {key: part.round() for key, part in seen.items()}  # sums of these are exact
    orbit = rep.orbit(whole)

    def add(x, images):
        return torch.cat([x, images.sum(0).to(x.dtype)])  # modulo 256 for pictures

    return add(seen, orbit) if bare else {key: add(part, orbit[key]) for key, part in seen.items()}


def errors_of(policy, double=False):
    """Return the equivariance error of each map, fixed points included."""
    was = policy.training
    policy.set_training_mode(False)
    x = with_fixed_points(policy)
    maps = policy.measured(observations_of(policy.observation_space))
    found = {
        name: equivariance_error(one.f, one.input, one.output, x.double() if double else x)
        for name, one in maps.items()
    }
    policy.set_training_mode(was)
    return found


def moved(policy, g, actions):
    """Return actions as SB3 gives them, moved by g."""
    space = policy.action_space
    image = policy.symmetry.action(g, preprocess_obs(actions, space, normalize_images=False))
    if isinstance(space, spaces.Discrete):
        return image.argmax(-1)
    if isinstance(space, spaces.MultiDiscrete):
        return torch.stack([part.argmax(-1) for part in torch.split(image, space.nvec.tolist(), -1)], -1)
    return image


def elements(policy):
    return range(len(policy.symmetry.group))


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def outputs(policy, seen):
    policy.set_training_mode(False)
    with torch.no_grad():
        return {**policy.symmetrized(policy.movable(seen)), "scores": policy.scores(policy.movable(seen))}


# Equivariance


@pytest.mark.parametrize("case", SPACES)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_agents_are_equivariant_at_fixed_points_too(case, method):
    fresh = build(case, method)
    assert errors_of(fresh.policy).keys() == {"action distribution", "value"}
    assert max(errors_of(fresh.policy).values()) <= 1e-5
    before = deepcopy(fresh.policy.state_dict())
    learned = fresh.learn(32).policy
    weights = [key for key in before if key.endswith(("weight", "log_std"))]
    assert all(not torch.equal(before[key], learned.state_dict()[key]) for key in weights)
    assert max(errors_of(learned).values()) <= 1e-5
    assert max(errors_of(trained(case, method).policy).values()) <= 1e-5
    assert learned.equivariance_error(observations_of(learned.observation_space)) <= 1e-5


@pytest.mark.parametrize("case", ["vector", "dict", "centre"])
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_agents_of_a2c_too(case, method):
    assert max(errors_of(build(case, method, "a2c").learn(32).policy).values()) <= 1e-5
    assert max(errors_of(trained(case, method, "a2c").policy).values()) <= 1e-5


@pytest.mark.parametrize("case", MLPS)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_double_precision_shows_that_the_errors_are_rounding(case, method):
    policy = deepcopy(trained(case, method).policy).double()
    assert max(errors_of(policy, double=True).values()) <= 1e-12


@pytest.mark.parametrize("case", SPACES)
def test_the_plain_agent_is_not_equivariant(case):
    assert min(errors_of(trained(case, "identity").policy).values()) > 1e-3


@pytest.mark.parametrize("case", SMALL)
def test_a_wrong_claim_is_noticed(case):
    policy = trained(case, "equitune").policy
    measured = policy.measured(observations_of(policy.observation_space))["action distribution"]
    still = Trivial(policy.symmetry.group)  # as if no action moved
    assert equivariance_error(measured.f, measured.input, still, measured.x) > 1e-3


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_moved_actions_are_as_likely_where_the_observation_is_moved(case, method):
    policy = trained(case, method).policy
    raw = observations_of(policy.observation_space)
    seen = policy.movable(raw)
    with torch.no_grad():
        here, distribution = policy.symmetrized(seen), policy.get_distribution(raw)
        assert torch.equal(policy.predict_values(raw), here["value"])
        actions = distribution.sample()
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        for g in elements(policy):
            there = policy.symmetrized(policy.symmetry.observation(g, seen))
            image = policy._distribution(there["action"])
            assert torch.allclose(image.log_prob(moved(policy, g, actions)), log_prob, atol=1e-4)
            assert torch.allclose(image.entropy(), entropy, atol=1e-5)
            assert torch.allclose(there["value"], here["value"], atol=1e-5)


@cache
def doubles(case):
    return deepcopy(trained(case, "lambda").policy).double()


@pytest.mark.parametrize("case", ["vector", "centre"])
@given(data=st.data())
def test_any_observation_and_any_action(case, data):
    policy = doubles(case)
    number = st.floats(-9, 9, width=32)
    (size,) = policy.observation_space.shape
    seen = torch.tensor([data.draw(st.lists(number, min_size=size, max_size=size))]).double()
    g = data.draw(st.integers(0, len(policy.symmetry.group) - 1))
    action = torch.tensor(policy.action_space.sample())[None]
    with torch.no_grad():
        here = policy._distribution(policy.symmetrized(seen)["action"])
        there = policy._distribution(policy.symmetrized(policy.symmetry.observation(g, seen))["action"])
    wanted = here.log_prob(action)
    assert torch.allclose(there.log_prob(moved(policy, g, action)), wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", ["vector", "centre", "multidiscrete", "multibinary", "picture"])
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_predictions_move_with_the_observation(case, method):
    model = trained(case, method)
    policy = model.policy
    seen = observations_of(model.observation_space, 20)
    actions, _ = model.predict(seen.numpy(), deterministic=True)
    assert len(np.unique(actions, axis=0)) > 1
    for g in elements(policy):
        image, _ = model.predict(policy.symmetry.observation(g, seen).numpy(), deterministic=True)
        wanted = moved(policy, g, torch.as_tensor(actions))
        assert torch.allclose(torch.as_tensor(image).double(), wanted.double(), atol=1e-5)
    assert policy.greedy_disagreement(seen) == 0
    if method == "equitune":
        assert policy.greedy_disagreement(seen, plain=True) > 0


@pytest.mark.parametrize("case", SMALL)
def test_greedy_actions_are_those_that_sb3_takes(case):
    policy = trained(case, "equitune").policy
    seen = observations_of(policy.observation_space)
    with torch.no_grad():
        greedy, *_ = policy(seen, deterministic=True)
        encoded = policy.actions(policy.movable(seen))
        wanted: Any = preprocess_obs(greedy, policy.action_space, normalize_images=False)
    assert torch.equal(encoded, wanted)


# What the network computes


def reference(plain, symmetry, score, weigh, seen):
    """Return means or logits and values, one element and one observation at a time, from plain SB3's own policy."""
    group, found = symmetry.group, []
    for x in seen:
        actions, values, scores = [], [], []
        for g in range(len(group)):
            view = symmetry.observation(g, x[None])
            latent_pi, latent_vf = plain.mlp_extractor(plain.extract_features(view))
            action, value = plain.action_net(latent_pi), plain.value_net(latent_vf)
            scores.append(score(action[0], value[0], torch.cat([latent_pi, latent_vf], -1)[0]))
            actions.append(symmetry.action(int(group.inverses[g]), action)[0])
            values.append(value[0])
        weights = weigh(torch.stack(scores))
        found.append([sum(w * one for w, one in zip(weights, ones, strict=True)) for ones in (actions, values)])
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def surest(case):
    if case in CONTINUOUS:
        return lambda action, value, features: value[0]
    if case == "multidiscrete":
        parts = SPACES[case][2].nvec.tolist()
        return lambda action, value, features: sum(part.softmax(-1).max() for part in torch.split(action, parts)) / 3
    if case == "multibinary":
        return lambda action, value, features: torch.stack([action.sigmoid(), 1 - action.sigmoid()]).amax(0).mean()
    return lambda action, value, features: action.softmax(-1).max()


@pytest.mark.parametrize("case", ["vector", "picture", *CONTINUOUS, "multidiscrete", "multibinary"])
@pytest.mark.parametrize("method", METHODS)
def test_plain_weights_seen_one_view_at_a_time_make_the_outputs(case, method):
    policy = {MlpPolicy: "MlpPolicy", CnnPolicy: "CnnPolicy"}[SPACES[case][0]]
    small = {"features_extractor_class": SmallCNN, "net_arch": []} if case == "picture" else {}
    plain = PPO(policy, probe(case), policy_kwargs=small, **QUICK["ppo"]).learn(32)
    weights = shaken(plain).policy.state_dict()
    ours = build(case, method, seed=1)
    fresh = ours.policy.state_dict()
    added = {key: value for key, value in fresh.items() if key.startswith("symmetrizer.")}
    assert bool(added) == (method == "lambda")
    ours.policy.load_state_dict({**weights, **added})  # strictly
    if method == "lambda":
        with torch.no_grad():
            ours.policy.symmetrizer.score[-1].weight.normal_()
    weighing = {
        "identity": lambda scores: torch.eye(len(scores))[0],
        "equitune": lambda scores: torch.full((len(scores),), 1 / len(scores)),
        "equizero": lambda scores: (ties := (scores >= scores.max() - 1024 * 2**-23).float()) / ties.sum(),
        "lambda": lambda scores: scores.softmax(0),
    }
    score = surest(case) if method != "lambda" else lambda _, __, features: ours.policy.symmetrizer.score(features)[0]
    symmetry, seen = ours.policy.symmetry, observations_of(ours.observation_space)
    ours.policy.set_training_mode(False)
    with torch.no_grad():
        actions, values = reference(plain.policy, symmetry, score, weighing[method], seen)
        got = outputs(ours.policy, seen)
        assert torch.allclose(got["action"], actions, atol=1e-5)
        assert torch.allclose(got["value"], values, atol=1e-5)
        weights_of_views = ours.policy.element_weights(seen)
        assert weights_of_views.shape == (len(symmetry.group), len(seen))
        assert torch.allclose(weights_of_views.sum(0), torch.ones(len(seen)))
        if method != "identity":
            assert max(errors_of(ours.policy).values()) <= 1e-5
        there = plain.policy.get_distribution(seen).distribution
        if method == "identity" and case in CONTINUOUS:
            here = ours.policy.get_distribution(seen).distribution
            assert torch.equal(here.mean, there.mean)
            assert torch.equal(here.stddev, there.stddev)


@pytest.mark.parametrize("method", METHODS)
def test_standard_deviations_are_tied_over_orbits(method):
    policy = trained("centre", method).policy
    log_std = policy.log_std.detach()
    assert abs(log_std[0] - log_std[1]) > 0.1
    wanted = log_std if method == "identity" else torch.stack([log_std[:2].mean(), log_std[:2].mean(), log_std[2]])
    assert torch.allclose(policy.tied_log_std(), wanted)
    seen = torch.randn(3, 2)
    distribution = policy.get_distribution(seen).distribution
    assert torch.allclose(distribution.stddev, wanted.exp().expand(3, 3))
    measured = policy.measured(seen)["action distribution"]
    assert same(measured.f(measured.x), {"mean": distribution.mean, "log_std": policy.tied_log_std().expand(3, 3)})


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_parameter(method):
    for case in ("centre", "dict"):
        policy = deepcopy(trained(case, method).policy)
        policy.set_training_mode(True)
        seen = observations_of(policy.observation_space, 20)
        actions = torch.as_tensor(np.stack([policy.action_space.sample() for _ in range(20)]))
        values, log_prob, entropy = policy.evaluate_actions(seen, actions)
        (values.square().mean() + log_prob.square().mean() + entropy.mean()).backward()
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None, name
            cancels = name == "symmetrizer.score.4.bias" or (name, case) == ("action_net.bias", "centre")
            assert parameter.grad.any() or cancels, name
        if case == "centre" and method != "identity":
            first, second, _ = policy.log_std.grad
            assert first == second


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", ["picture", "dict"])
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_pictures_are_moved_as_bytes_and_each_extractor_is_called_once(case, method, shared, monkeypatch):
    policy = build(case, method, policy_kwargs={"share_features_extractor": shared}).policy
    moves, calls = [], []
    orbit = Grid.orbit

    def watched(self, x):
        moves.append(x.dtype)
        return orbit(self, x)

    monkeypatch.setattr(Grid, "orbit", watched)
    extractors = {policy.pi_features_extractor, policy.vf_features_extractor}
    for one in extractors:
        one.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    policy(observations_of(policy.observation_space, 3))
    assert moves == [torch.uint8]
    assert len(calls) == len(extractors) == (1 if shared else 2)
    for call in calls:
        seen = call if case == "picture" else call["small"]
        assert seen.shape[0] == len(policy.symmetry.group) * 3
        assert seen.dtype == torch.float32
        assert 0.5 < seen.max() <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["dict", "picture"])
def test_extractors_of_their_own(case, method, tmp_path):
    model = shaken(build(case, method, policy_kwargs={"share_features_extractor": False}).learn(16))
    ours, theirs = (
        one.state_dict() for one in (model.policy.pi_features_extractor, model.policy.vf_features_extractor)
    )
    assert not any(torch.equal(ours[key], theirs[key]) for key in ours)
    if method != "identity":
        assert max(errors_of(model.policy).values()) <= 1e-5
    seen = observations_of(model.observation_space)
    model.policy.save(tmp_path / "policy.pt")
    loaded = SPACES[case][0].load(tmp_path / "policy.pt")
    assert same(outputs(loaded, seen), outputs(model.policy, seen))


def test_default_networks():
    wanted = {
        "vector": (FlattenExtractor, {"pi": [64, 64], "vf": [64, 64]}),
        "picture": (SmallCNN, []),
        "large": (NatureCNN, []),
        "dict": (SizedCombinedExtractor, {"pi": [64, 64], "vf": [64, 64]}),
    }
    for case, (extractor, net_arch) in wanted.items():
        policy = trained(case, "identity").policy
        assert type(policy.features_extractor) is extractor
        assert policy.net_arch == net_arch


def test_no_symmetry_at_all():
    for case, method in (("dict", "lambda"), ("centre", "equizero"), ("discrete", "equitune")):
        given = {"symmetry": "none", "method": method}
        policy = shaken(PPO(SPACES[case][0], probe(case), policy_kwargs=given, **QUICK["ppo"])).policy
        seen = observations_of(policy.observation_space)
        assert same(policy.symmetrized(policy.movable(seen)), policy.plain(seen))


# Equizero's scores


def largest(outputs):
    return outputs["value"].squeeze(-1) - outputs["action"].amax(-1)


@pytest.mark.parametrize(
    ("score", "of"),
    [
        ("max", lambda y: y["action"].amax(-1)),
        ("max_probability", lambda y: y["action"].softmax(-1).amax(-1)),
        ("entropy", lambda y: torch.distributions.Categorical(logits=y["action"]).entropy().neg()),
        (largest, largest),
        (None, lambda y: y["action"].softmax(-1).amax(-1)),
    ],
)
def test_scores_of_equizero(score, of):
    options = {} if score is None else {"score": score}
    policy = shaken(build("vector", "equizero", policy_kwargs={"symmetrizer_kwargs": options})).policy
    assert policy.symmetrizer_kwargs == policy._get_constructor_parameters()["symmetrizer_kwargs"] == options
    seen = torch.randn(30, 4)
    here, there = policy.plain(seen), policy.plain(-seen)
    there["action"] = there["action"].flip(-1)
    first = (of(here) > of(there))[:, None]
    assert 0 < first.sum() < 30
    got = outputs(policy, seen)
    for key in ("action", "value"):
        assert torch.allclose(got[key], torch.where(first, here[key], there[key]), atol=1e-5)


def test_equizero_learns_from_the_mean_of_all_views():
    policy = deepcopy(trained("centre", "equizero").policy)
    seen = torch.randn(5, 2)
    policy.set_training_mode(True)
    value = policy.predict_values(seen)
    policy.set_training_mode(False)
    assert torch.equal(value, policy.predict_values(seen))  # so that PPO's ratio starts at 1
    mean = torch.stack([policy.plain(view)["value"] for view in policy.symmetry.observation.orbit(seen)]).mean(0)
    parameters = list(policy.value_net.parameters())
    ours, theirs = torch.autograd.grad(value.sum(), parameters), torch.autograd.grad(mean.sum(), parameters)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs, strict=True))


# Learning


PLAIN = {MlpPolicy: "MlpPolicy", CnnPolicy: "CnnPolicy", MultiInputPolicy: "MultiInputPolicy"}


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("vector", {}),
        ("centre", {"log_std_init": -0.5, "net_arch": {"pi": [8], "vf": []}}),
        ("large", {}),
        ("large", {"share_features_extractor": False}),
        ("multidiscrete", {"ortho_init": False}),
        ("discrete", {"activation_fn": nn.ReLU}),
    ],
)
def test_identity_learns_exactly_what_plain_sb3_learns(algo, case, more):
    ours = build(case, "identity", algo, policy_kwargs=dict(more)).learn(32)
    theirs, fresh = (
        ALGORITHMS[algo](PLAIN[SPACES[case][0]], probe(case), policy_kwargs=dict(more), **QUICK[algo]) for _ in "ab"
    )
    theirs.learn(32)
    assert list(ours.policy.state_dict()) == list(theirs.policy.state_dict())
    assert same(ours.policy.state_dict(), theirs.policy.state_dict())
    assert not same(ours.policy.state_dict(), fresh.policy.state_dict())
    ours_adam, theirs_adam = (model.policy.optimizer.state_dict()["state"] for model in (ours, theirs))
    assert ours_adam.keys() == theirs_adam.keys()
    assert all(same(ours_adam[key], theirs_adam[key]) for key in ours_adam)
    seen = observations_of(ours.observation_space)
    assert torch.equal(ours.policy.predict_values(seen), theirs.policy.predict_values(seen))


def test_lambda_learns_its_own_net():
    fresh = build("centre", "lambda").policy
    assert not fresh.symmetrizer.score[-1].weight.any()  # SB3's orthogonal initialisation leaves it alone
    optimized = {id(p) for group in fresh.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in fresh.parameters()}
    assert {id(p) for p in fresh.symmetrizer.score.parameters()} <= optimized
    net = build("centre", "lambda").learn(64).policy.symmetrizer.score
    pairs = list(zip(fresh.symmetrizer.score.parameters(), net.parameters(), strict=True))[:-1]
    assert all(not torch.equal(old, new) for old, new in pairs)
    assert net[-1].weight.abs().max() > 1e-4


class OneHeading(Probe):
    """Go where the needle points; all that is ever seen is one heading."""

    def step(self, action):
        self.steps += 1
        return self._see(), float(action == np.argmax(self.only)), False, self.steps >= 5, {}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_is_learned_at_one_heading_is_known_at_all(algo):
    north = np.eye(4, dtype=np.float32)[0]
    symmetry = Symmetry.generated_by(([1, 2, 3, 0], [1, 2, 3, 0]))
    right = {}
    for method in ("identity", "equitune"):
        env = OneHeading(vectors(4), spaces.Discrete(4), north)
        given = {"symmetry": symmetry, "method": method}
        model = ALGORITHMS[algo](MlpPolicy, env, policy_kwargs=given, **{**QUICK[algo], "learning_rate": 1e-2}).learn(
            400
        )
        right[method] = (model.predict(np.eye(4, dtype=np.float32), deterministic=True)[0] == np.arange(4)).sum()
    assert right["equitune"] == 4
    assert right["identity"] < 4


def test_several_environments_and_stacked_frames():
    stacked = VecFrameStack(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), 3)
    with pytest.raises(UserError, match=r"symmetry\.stacked\(3\)"):
        PPO(MlpPolicy, stacked, policy_kwargs=CARTPOLE, **QUICK["ppo"])
    given = {"symmetry": resolve_symmetry("CartPole-v1").stacked(3), "method": "lambda"}
    model = PPO(MlpPolicy, stacked, policy_kwargs=given, **QUICK["ppo"]).learn(64)
    assert max(errors_of(shaken(model).policy).values()) <= 1e-5
    mean, std = evaluate_policy(model, VecFrameStack(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]), 3), 2)
    assert np.isfinite([mean, std]).all()


@pytest.mark.parametrize("case", ["dict", "centre", "multibinary", "picture"])
@pytest.mark.parametrize("method", METHODS)
def test_evaluate_policy_and_one_observation_or_many(case, method):
    model = trained(case, method)
    mean, _ = evaluate_policy(model, Monitor(probe(case)), n_eval_episodes=1)
    assert np.isfinite(mean)
    space = model.observation_space
    seen = [space.sample() for _ in range(3)]
    many = {key: np.stack([one[key] for one in seen]) for key in space} if case == "dict" else np.stack(seen)
    actions, _ = model.predict(many, deterministic=True)
    singles = [model.predict(one, deterministic=True)[0] for one in seen]
    assert actions.shape == (3, *model.action_space.shape)
    assert np.allclose(singles, actions, atol=1e-5)
    assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("case", ["vector", "centre"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_sampled_is_as_likely_as_it_says(case, method):
    policy = trained(case, method).policy
    seen = torch.randn(1, *policy.observation_space.shape).expand(20_000, -1)
    with torch.no_grad():
        actions, values, log_prob = policy(seen)
        again = policy.evaluate_actions(seen, actions)
    assert torch.equal(values, again[0])
    assert torch.equal(log_prob, again[1])
    assert -log_prob.mean().item() == pytest.approx(again[2][0].item(), abs=0.05)
    if case == "vector":
        assert actions.float().mean().item() == pytest.approx(
            policy.scores(seen[:1])[0, 1].exp().item(), abs=0.02
        )  # how often the second action was taken


# Files, copies and weights of others


READ_ELSEWHERE = """
import sys, torch
from stable_baselines3 import PPO
for path in sys.argv[1:]:
    policy, seen = PPO.load(path).policy, torch.load(path + ".seen")
    policy.set_training_mode(False)
    with torch.no_grad():
        x = policy.movable(seen)
        torch.save({**policy.symmetrized(x), "scores": policy.scores(x)}, path + ".y")
"""


def test_a_fresh_process_loads_the_same_outputs(tmp_path):
    more: dict[str, Any] = {"symmetrizer_kwargs": {"score": "entropy"}, "share_features_extractor": False}
    models = {
        "mlp": trained("centre", "lambda"),
        "dict": shaken(build("dict", "equizero", policy_kwargs=more)),
        "picture": trained("picture", "equitune"),
    }
    expected = {}
    for name, model in models.items():
        seen = observations_of(model.observation_space)
        model.save(tmp_path / f"{name}.zip")
        torch.save(seen, tmp_path / f"{name}.zip.seen")
        expected[name] = outputs(model.policy, seen)
    done = run_code(READ_ELSEWHERE, *(tmp_path / f"{name}.zip" for name in models))
    assert (done.returncode, done.stderr) == (0, "")
    for name, wanted in expected.items():
        assert same(torch.load(tmp_path / f"{name}.zip.y"), wanted), name


def test_the_zip_says_symmetry_and_method_in_readable_json(tmp_path):
    given = {"symmetry": "CartPole-v1", "method": "equizero", "symmetrizer_kwargs": {"score": "max"}}
    PPO(MlpPolicy, "CartPole-v1", policy_kwargs=given, **QUICK["ppo"]).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        written = json.loads(file.read("data"))["policy_kwargs"]
    assert written == given


@pytest.mark.parametrize("case", ["vector", "dict", "centre", "picture", "multidiscrete"])
@pytest.mark.parametrize("method", METHODS)
def test_saved_loaded_and_copied_policies_are_equal(case, method, tmp_path):
    model = trained(case, method)
    seen = observations_of(model.observation_space)
    expected = outputs(model.policy, seen)
    model.policy.save(tmp_path / "policy.pt")
    copies = [SPACES[case][0].load(tmp_path / "policy.pt"), deepcopy(model.policy)]
    for copy in copies:
        assert same(outputs(copy, seen), expected)
        assert copy.method == method
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1.0)
        assert not same(outputs(copy, seen), expected)
    assert same(outputs(model.policy, seen), expected)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("method", METHODS)
def test_learning_goes_on_after_loading(algo, method, tmp_path):
    trained("centre", method, algo).save(tmp_path / "model.zip")
    model = ALGORITHMS[algo].load(tmp_path / "model.zip", env=probe("centre"))
    before = deepcopy(model.policy.state_dict())
    assert same(before, trained("centre", method, algo).policy.state_dict())
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 64
    assert not torch.equal(before["log_std"], model.policy.log_std)
    if method != "identity":
        assert max(errors_of(model.policy).values()) <= 1e-5


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("method", ["identity", "equitune", "equizero"])
def test_weights_travel_between_plain_sb3_and_this(algo, method, tmp_path):
    kind = ALGORITHMS[algo]
    plain = shaken(kind("MlpPolicy", probe("centre"), **QUICK[algo]).learn(32))
    plain.save(tmp_path / "plain.zip")
    seen = torch.randn(6, 2)
    for source in (tmp_path / "plain.zip", plain.get_parameters()):
        ours = build("centre", method, algo, seed=1)
        ours.set_parameters(source)  # strictly, the optimizer's state with them
        assert same(ours.policy.state_dict(), plain.policy.state_dict())
        assert torch.equal(ours.policy.plain(seen)["value"], plain.policy.predict_values(seen))
        assert torch.equal(ours.policy.plain(seen)["action"], plain.policy.get_distribution(seen).distribution.mean)
        if method != "identity":
            assert max(errors_of(ours.policy).values()) <= 1e-5
    trained("centre", method, algo).save(tmp_path / "ours.zip")
    other = kind("MlpPolicy", probe("centre"), **QUICK[algo])
    other.set_parameters(str(tmp_path / "ours.zip"))
    assert same(other.policy.state_dict(), trained("centre", method, algo).policy.state_dict())


def test_layers_as_old_zips_say_them():
    layers = {"pi": [8], "vf": [4, 4]}
    policy = build("vector", "lambda", policy_kwargs={"net_arch": [layers]}).policy
    assert policy.net_arch == layers
    assert policy.symmetrizer.features_dim == 8 + 4
    positional = MlpPolicy(
        vectors(4), spaces.Discrete(2), lambda _: 1e-3, [layers], nn.ReLU, symmetry="CartPole-v1", method="lambda"
    )
    assert (positional.net_arch, positional.activation_fn) == (layers, nn.ReLU)


# Mistakes


QUARTER_MATRICES = [np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), k) for k in range(4)]
MISTAKES: dict[str, Any] = {
    "method": ("vector", {"method": "equitun"}, r"unknown method 'equitun'.*'equitune'\?"),
    "symmetry": ("vector", {"symmetry": "CartPol-v1"}, r"symmetry 'CartPol-v1'.*'CartPole-v1'\?"),
    "size": ("centre", {"symmetry": "CartPole-v1"}, r"acts on 4 entries, got shape \(2,\)"),
    "option": ("vector", {"symmetrizer_kwargs": {"score": "max"}}, "unknown option of equitune 'score'"),
    "score": (
        "vector",
        {"method": "equizero", "symmetrizer_kwargs": {"score": "max_prob"}},
        r"unknown score 'max_prob'.*'max_probability'\?",
    ),
    "gsde": ("centre", {"use_sde": True}, "use_sde True: expected False"),
    "squash": ("centre", {"squash_output": True}, "squash_output True: expected False"),
    "choices": (
        "multidiscrete",
        {"symmetry": Symmetry.generated_by(([1, 0], [6, 1, 2, 3, 4, 5, 0, 7]))},
        "takes values of one choice to several",
    ),
    "pictures": ("vector", {"policy": CnnPolicy}, r"expected pictures"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_runs(mistake):
    case, given, message = MISTAKES[mistake]
    given = dict(given)
    policy = given.pop("policy", SPACES[case][0])
    use_sde = given.pop("use_sde", False)
    with pytest.raises(UserError, match=message) as told:
        PPO(policy, probe(case), policy_kwargs={**keywords(case, "equitune"), **given}, use_sde=use_sde, **QUICK["ppo"])
    assert "\n" not in str(told.value)


def test_matrices_on_continuous_actions_are_refused():
    rep = Matrix(cyclic(4), QUARTER_MATRICES)
    unbounded = spaces.Box(-np.inf, np.inf, (2,))
    for method in METHODS:
        with pytest.raises(UserError, match=r"Matrix.*expected \(signed\) permutations"):
            MlpPolicy(vectors(2), unbounded, lambda _: 1e-3, symmetry=Symmetry(rep, rep), method=method)


def test_what_is_refused_by_name_is_refused_by_place():
    rest: dict[str, Any] = {"symmetry": "Pendulum-v1", "method": "equitune"}
    where = (vectors(3), spaces.Box(-2, 2, (1,)), lambda _: 1e-3)
    with pytest.raises(UserError, match="use_sde True"):
        MlpPolicy(*where, None, nn.Tanh, True, True, **rest)
    with pytest.raises(UserError, match="squash_output True"):
        MlpPolicy(*where, None, nn.Tanh, True, False, 0.0, True, False, True, **rest)


@pytest.mark.parametrize("missing", ["symmetry", "method"])
@pytest.mark.parametrize("case", ["vector", "picture", "dict"])
def test_symmetry_and_method_have_no_defaults(case, missing):
    given = keywords(case, "equitune")
    del given[missing]
    with pytest.raises(TypeError, match=missing):
        PPO(SPACES[case][0], probe(case), policy_kwargs=given, **QUICK["ppo"])


def test_discrete_actions_have_no_log_std():
    with pytest.raises(UserError, match=r"log_std of Discrete\(2\): expected continuous actions"):
        trained("vector", "equitune").policy.tied_log_std()


def test_names_are_those_of_sb3():
    assert MlpPolicy is ActorCriticPolicy
    assert issubclass(CnnPolicy, ActorCriticPolicy)
    assert issubclass(MultiInputPolicy, ActorCriticPolicy)


class Own(MlpExtractor):
    """Layers of one's own behind the features, as SB3's documentation shows them."""

    def __init__(self, features_dim):
        nn.Module.__init__(self)
        self.latent_dim_pi, self.latent_dim_vf = 6, 5
        self.actor, self.critic = nn.Linear(features_dim, 6), nn.Linear(features_dim, 5)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.actor(features).tanh()

    def forward_critic(self, features):
        return self.critic(features).tanh()


class OwnPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Own(self.features_dim)


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_ones_own(method):
    chosen = {"symmetry": "CartPole-v1", "method": method}
    model: Any = PPO(OwnPolicy, "CartPole-v1", policy_kwargs=chosen, **QUICK["ppo"]).learn(32)
    assert isinstance(model.policy.mlp_extractor, Own)
    learning = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert learning == {id(p) for p in model.policy.parameters()}
    x = torch.randn(9, 4)
    if method != "identity":
        torch.testing.assert_close(model.policy.predict_values(-x), model.policy.predict_values(x))
        torch.testing.assert_close(model.policy.scores(-x), model.policy.scores(x).flip(-1))
    model.policy._build(lambda _: 1e-3)  # once more, as SB3 may
