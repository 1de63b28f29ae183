"""What all symmetric policies share: what is measured of them, how they read observations, what they refuse."""

import math
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
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from torch import nn

from equirl import (
    METHODS,
    Grid,
    Matrix,
    Permutation,
    SignedPermutation,
    Symmetry,
    Trivial,
    cyclic,
    resolve_symmetry,
)
from equirl.agents import actor_critic, dqn, qrdqn, sac
from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN
from equirl.agents.symmetric import SAME_ACTION, magnitudes, same_within, scaled
from equirl.errors import UserError

EQUIVARIANT = [method for method in METHODS if method != "identity"]
TURN = [1, 2, 3, 0]
PICTURE = spaces.Box(0, 255, (1, 5, 5), np.uint8)
LARGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
DICT = spaces.Dict({"heading": spaces.Discrete(4), "picture": PICTURE, "vector": spaces.Box(-1, 1, (2,))})
TURNED = {"heading": TURN, "picture": "rot90", "vector": {"permutation": [1, 0], "signs": [1, -1]}}
C4 = Symmetry.generated_by(("rot90", TURN))
VALUES = {"dqn": (DQN, dqn, {}), "qrdqn": (QRDQN, qrdqn, {"n_quantiles": 3})}


class Seeing(gym.Env):
    """Four actions, and observations of any space: enough to build agents."""

    def __init__(self, space, actions=None):
        self.observation_space, self.action_space = space, actions or spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


@cache
def cartpole(algo, method):
    """Return a policy for CartPole that tests may read but must not change."""
    algorithm, module, more = VALUES[algo]
    chosen = {"symmetry": "CartPole-v1", "method": method, "net_arch": [8], **more}
    return algorithm(module.MlpPolicy, "CartPole-v1", policy_kwargs=chosen, seed=0).policy


@cache
def picture(algo, method):
    algorithm, module, more = VALUES[algo]
    return algorithm(
        module.CnnPolicy, Seeing(PICTURE), policy_kwargs={"symmetry": C4, "method": method, **more}, seed=0
    ).policy


@cache
def mixed(algo, method):
    algorithm, module, more = VALUES[algo]
    turns = Symmetry.generated_by(({"keys": TURNED}, TURN))
    chosen = {"symmetry": turns, "method": method, "net_arch": [8], **more}
    return algorithm(module.MultiInputPolicy, Seeing(DICT), policy_kwargs=chosen, seed=0).policy


def observations(n=9):
    """Return what `mixed` sees, as SB3 stores it."""
    return {
        "heading": torch.randint(4, (n, 1)),
        "picture": torch.randint(256, (n, 1, 5, 5), dtype=torch.uint8),
        "vector": torch.rand(n, 2),
    }


def means(algo, outputs):
    return outputs.mean(1) if algo == "qrdqn" else outputs


# What is measured


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_element_weights_make_the_outputs_from_the_views(algo, method):
    policy, seen = picture(algo, method), torch.randint(256, (12, 1, 5, 5), dtype=torch.uint8)
    policy.set_training_mode(False)
    net = policy.acting
    with torch.no_grad():
        views = [net.plain(torch.rot90(seen, k, (-2, -1))).roll(-k, -1) for k in range(4)]
        weights = policy.element_weights(seen)
        weighted = [w.view(-1, *[1] * (view.ndim - 1)) * view for w, view in zip(weights, views, strict=True)]
        assert torch.allclose(torch.stack(weighted).sum(0), net(seen), atol=1e-6)


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_the_equivariance_error_is_that_of_states_mirrored_by_hand(algo, method):
    policy = cartpole(algo, method)
    net, seen = policy.acting, 5 * torch.randn(20, 4)
    with torch.no_grad():
        here, there = net(seen), net(-seen)
    worst = max(float(abs(there.flip(-1)[i] - here[i]).max()) for i in range(20))
    expected = worst / max(1.0, float(abs(here).max()))
    assert policy.equivariance_error(seen) == pytest.approx(expected, abs=1e-6)
    assert (expected > 0.01) == (method == "identity")


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_the_greedy_disagreement_is_counted_by_hand(algo, method):
    policy = picture(algo, method)
    net, seen = policy.acting, torch.randint(256, (12, 1, 5, 5), dtype=torch.uint8)
    for plain, call in ((False, net), (True, net.plain)):
        wrong = []
        with torch.no_grad():
            still = means(algo, call(seen)).argmax(-1)
            for k in (1, 2, 3):
                moved = means(algo, call(torch.rot90(seen, k, (-2, -1)))).argmax(-1)
                wrong += [int(a) != (int(b) + k) % 4 for a, b in zip(moved, still, strict=True)]
        assert len(wrong) == 36
        share = sum(wrong) / 36
        assert policy.greedy_disagreement(seen, plain) == share
        assert (share > 0.2) == (plain or method == "identity")


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_actions_and_scores_of_movable_observations(algo, method):
    policy, seen = mixed(algo, method), observations()
    net = policy.acting
    moved = net.movable(seen)
    with torch.no_grad():
        agent, plain = means(algo, net(seen)), means(algo, net.plain(seen))
        assert torch.allclose(policy.scores(moved), agent)
        for found, values in ((policy.actions(moved), agent), (policy.actions(moved, plain=True), plain)):
            assert found.shape == (9, 4)
            expected = [[int(a == max(range(4), key=row.__getitem__)) for a in range(4)] for row in values.tolist()]
            assert found.tolist() == expected
    given = {key: part.numpy() for key, part in seen.items()} | {"heading": seen["heading"][:, 0].numpy()}
    greedy, _ = policy.predict(given, deterministic=True)
    assert policy.actions(moved).argmax(-1).tolist() == greedy.tolist()


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_measured_is_the_map_that_acts(algo, method):
    policy, seen = mixed(algo, method), observations()
    ((name, measured),) = policy.measured(seen).items()
    assert name == "action values"
    assert (measured.input, measured.output) == (policy.symmetry.observation, policy.symmetry.action)
    assert torch.equal(measured.f(measured.x), policy.acting(seen))
    moved = policy.acting.movable(seen)
    assert all(torch.equal(measured.x[key], moved[key]) for key in moved)


@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", VALUES)
def test_a_wrong_symmetry_is_noticed(algo, method):
    policy, seen = deepcopy(picture(algo, method)), torch.randint(256, (12, 1, 5, 5), dtype=torch.uint8)
    assert policy.equivariance_error(seen) <= 1e-5
    assert policy.greedy_disagreement(seen) == 0
    policy.symmetry = Symmetry.generated_by(("rot90", [3, 0, 1, 2]))  # turns actions the other way
    assert policy.equivariance_error(seen) > 1e-3
    assert policy.greedy_disagreement(seen) > 0.5


@pytest.mark.parametrize("algo", VALUES)
def test_numbers_that_are_none_are_not_called_equivariant(algo):
    policy = deepcopy(cartpole(algo, "equitune"))
    with torch.no_grad():
        policy.acting.head[-1].bias.fill_(math.nan)
    assert math.isnan(policy.equivariance_error(torch.randn(3, 4)))


@pytest.mark.parametrize("order", [(0.0, math.nan), (math.nan, 0.0)])
def test_one_map_without_numbers_spoils_the_error_wherever_it_stands(order, monkeypatch):
    policy, seen = deepcopy(cartpole("dqn", "equitune")), torch.randn(3, 4)
    (map_,) = policy.measured(seen).values()
    maps = {str(i): map_._replace(f=lambda x, y=y: map_.f(x) + y) for i, y in enumerate(order)}
    monkeypatch.setattr(policy, "measured", lambda obs: maps)
    assert math.isnan(policy.equivariance_error(seen))


def test_the_error_is_the_largest_of_all_maps(monkeypatch):
    policy, seen = deepcopy(cartpole("dqn", "equitune")), torch.zeros(3, 4)
    (map_,) = policy.measured(seen).values()
    shifts = [torch.tensor([0.0, a]) for a in (0.25, 0.75, 0.5)]
    maps = {str(a): map_._replace(f=lambda x, a=a: 0 * map_.f(x) + a) for a in shifts}
    monkeypatch.setattr(policy, "measured", lambda obs: maps)
    assert policy.equivariance_error(seen) == 0.75


def test_measuring_leaves_no_gradients():
    policy, seen = deepcopy(cartpole("dqn", "lambda")), torch.randn(3, 4)
    policy.equivariance_error(seen)
    policy.greedy_disagreement(seen)
    assert all(parameter.grad is None for parameter in policy.parameters())


# Continuous actions


@pytest.mark.parametrize(
    ("algorithm", "module", "tolerance"), [(PPO, actor_critic, SAME_ACTION * 4), (SAC, sac, SAME_ACTION * 2)]
)
def test_continuous_actions_agree_within_a_share_of_the_width(algorithm, module, tolerance, monkeypatch):
    """Pendulum's torque goes from -2 to 2; squashed actions from -1 to 1."""
    chosen = {"symmetry": "Pendulum-v1", "method": "equitune", "net_arch": [8]}
    policy: Any = algorithm(module.MlpPolicy, "Pendulum-v1", policy_kwargs=chosen, seed=0).policy
    nn.init.constant_((policy.action_net if algorithm is PPO else policy.actor.mu).bias, 1.0)  # turns one way
    angle = 0.1 + torch.rand(20)
    seen = torch.stack([angle.cos(), angle.sin(), torch.randn(20)], -1)
    assert policy.greedy_disagreement(seen) == 0
    assert policy.greedy_disagreement(seen, plain=True) > 0.5
    errors = tolerance * torch.tensor([[0.5], [0.9], [0.99], [1.01], [2.0]] * 4)
    monkeypatch.setattr(policy, "actions", lambda x, plain: 0.3 * x[:, 1:2] + errors * (x[:, 1:2] > 0))
    assert policy.greedy_disagreement(seen) == 0.4


def test_squashed_actions_about_a_centre_are_compared_in_units_of_sb3():
    off = SignedPermutation(cyclic(2), [[0], [0]], [[1], [-1]], centre=[5])
    seen = SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1, 1], [-1, -1]])
    policy = build(sac, spaces.Box(-1, 1, (2,)), spaces.Box(3, 7, (1,)), symmetry=Symmetry(seen, off), net_arch=[8])
    nn.init.constant_(policy.actor.mu.bias, 1.0)
    assert policy.greedy_disagreement(torch.rand(20, 2)) == 0
    assert policy.greedy_disagreement(torch.rand(20, 2), plain=True) > 0.5


def test_every_entry_has_its_own_tolerance():
    box = spaces.Box(np.array([-1, 0, -np.inf, -5]), np.array([3, 0.5, np.inf, np.inf]), dtype=np.float64)
    assert same_within(box, squashed=False).tolist() == pytest.approx([0.04, 0.005, 0.01, 0.01])
    assert same_within(box, squashed=True).tolist() == [0.02] * 4
    for space in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3])):
        assert 0 < same_within(space, squashed=False) < 1  # of one-hot vectors, whose entries differ by 1


numbers = st.floats(-1, 1, width=32)


@given(st.lists(numbers, min_size=3, max_size=3), st.integers(0, 1))
def test_scaled_actions_move_as_actions_do(entries, g):
    """Two entries of equal widths about 5 and -1 change places, and the third is reflected about 2."""
    low, high = torch.tensor([3.0, -3.0, 0.0]), torch.tensor([7.0, 1.0, 4.0])
    rep = SignedPermutation(cyclic(2), [[0, 1, 2], [1, 0, 2]], [[1, 1, 1], [1, 1, -1]], centre=[5, -1, 2])
    y = torch.tensor(entries)

    def scale(a):
        return 2 * (a - low) / (high - low) - 1  # as SB3 scales actions

    action = low + (y + 1) * (high - low) / 2
    assert torch.allclose(scale(rep(g, action)), scaled(rep)(g, scale(action)), atol=1e-5)
    assert torch.equal(magnitudes(rep)(g, y.abs()), scaled(rep)(g, y).abs())


def test_representations_without_a_centre_are_scaled_as_they_are():
    swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    matrix = Matrix(cyclic(2), [np.eye(2).tolist(), (-np.eye(2)).tolist()])
    for rep in (swap, matrix, Trivial(cyclic(2))):
        assert scaled(rep) is rep


def test_standard_deviations_move_without_signs():
    mirror = SignedPermutation(cyclic(2), [[0, 1], [1, 0]], [[1, 1], [-1, -1]], centre=[4, 4])
    spread = torch.tensor([0.5, 2.0])
    assert type(magnitudes(mirror)) is Permutation
    assert magnitudes(mirror)(1, spread).tolist() == [2.0, 0.5]
    swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    assert magnitudes(swap) == swap
    assert magnitudes(Trivial(cyclic(2)))(1, spread).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("rep", [Matrix(cyclic(1), [np.eye(2).tolist()]), Grid(cyclic(4))])
def test_standard_deviations_do_not_move_by_matrices(rep):
    with pytest.raises(UserError, match=r"actions that move by (Matrix|Grid).*: expected \(signed\) permutations"):
        magnitudes(rep)


# How observations are read


@pytest.mark.parametrize("algo", VALUES)
def test_observations_are_read_in_two_steps(algo):
    net, seen = mixed(algo, "equitune").acting, observations()
    moved = net.movable(seen)
    assert moved["picture"].dtype == torch.uint8
    assert torch.equal(moved["picture"], seen["picture"])
    assert moved["heading"].flatten(1).tolist() == [[float(h == i) for i in range(4)] for h in seen["heading"][:, 0]]
    assert torch.equal(moved["vector"], seen["vector"])
    features = net.features(moved)
    assert torch.equal(features, net.extract_features(seen, net.features_extractor))
    assert torch.equal(net.features(moved, lambda x: x["picture"]), seen["picture"] / 255)


def test_bare_observations_are_read_in_two_steps():
    picture_net, vector_net = picture("dqn", "equitune").acting, cartpole("dqn", "equitune").acting
    seen = torch.randint(256, (3, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(picture_net.movable(seen), seen)
    assert torch.equal(picture_net.features(seen, lambda x: x), seen / 255)
    assert vector_net.movable(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float32
    assert torch.equal(vector_net.features(2 * torch.ones(1, 4)), 2 * torch.ones(1, 4))


# Networks chosen for pictures and dictionaries


class Sum(BaseFeaturesExtractor):
    def __init__(self, space, features_dim=4):
        super().__init__(space, features_dim)

    def forward(self, x):
        return x.flatten(1).sum(-1, keepdim=True).expand(-1, self.features_dim)


class WiderCNN(NatureCNN):
    pass


@pytest.mark.parametrize("algo", VALUES)
@pytest.mark.parametrize(
    ("space", "chosen", "extractor", "net_arch"),
    [
        (PICTURE, {}, SmallCNN, []),
        (LARGE, {}, NatureCNN, []),
        (LARGE, {"net_arch": [7]}, NatureCNN, [7]),
        (PICTURE, {"net_arch": [7]}, SmallCNN, [7]),
        (LARGE, {"features_extractor_class": SmallCNN}, SmallCNN, []),
        (LARGE, {"features_extractor_class": WiderCNN}, WiderCNN, [64, 64]),  # as in SB3
        (LARGE, {"features_extractor_class": Sum}, Sum, [64, 64]),
        (LARGE, {"features_extractor_class": Sum, "net_arch": [7]}, Sum, [7]),
        (PICTURE, {"features_extractor_kwargs": {"features_dim": 9}}, SmallCNN, []),
    ],
)
def test_networks_for_pictures(algo, space, chosen, extractor, net_arch):
    algorithm, module, more = VALUES[algo]
    policy_kwargs = {"symmetry": C4, "method": "equitune", **more, **chosen}
    policy: Any = algorithm(module.CnnPolicy, Seeing(space), policy_kwargs=policy_kwargs).policy
    assert type(policy.acting.features_extractor) is extractor
    assert policy.net_arch == policy.acting.net_arch == net_arch
    if "features_extractor_kwargs" in chosen:
        assert policy.acting.features_dim == 9


def test_no_two_policies_share_the_list_of_layers():
    first, second = picture("dqn", "equitune"), picture("dqn", "equizero")
    first_arch = first.net_arch
    assert first_arch == []
    assert first_arch is not second.net_arch
    assert first_arch is not dqn.CnnPolicy.cnn_arch


def test_layers_may_be_given_by_position_as_to_sb3():
    policy = dqn.CnnPolicy(PICTURE, spaces.Discrete(4), lambda _: 1e-3, [7], symmetry=C4, method="equitune")
    assert policy.net_arch == [7]


@pytest.mark.parametrize("algo", VALUES)
def test_networks_for_dictionaries(algo):
    policy = mixed(algo, "equitune")
    assert type(policy.acting.features_extractor) is SizedCombinedExtractor
    algorithm, module, more = VALUES[algo]
    vectors = spaces.Dict({"vector": spaces.Box(-1, 1, (2,))})
    turns = Symmetry.generated_by(({"keys": {"vector": TURNED["vector"]}}, TURN))

    class First(FlattenExtractor):
        def __init__(self, space):
            super().__init__(space["vector"])

        def forward(self, x):
            return super().forward(x["vector"])

    chosen = {"symmetry": turns, "method": "equitune", "features_extractor_class": First, **more}
    chosen_policy: Any = algorithm(module.MultiInputPolicy, Seeing(vectors), policy_kwargs=chosen).policy
    assert type(chosen_policy.acting.features_extractor) is First
    assert chosen_policy.equivariance_error({"vector": torch.rand(5, 2)}) <= 1e-5


# What a policy keeps


@pytest.mark.parametrize("algo", VALUES)
def test_policies_remember_how_they_were_made(algo):
    algorithm, module, more = VALUES[algo]
    options = {"score": "entropy"}
    chosen = {"symmetry": "CartPole-v1", "method": "equizero", "symmetrizer_kwargs": options, **more}
    policy: Any = algorithm(module.MlpPolicy, "CartPole-v1", policy_kwargs={**chosen, "double_selection": True}).policy
    options["score"] = "changed later"
    for kept in (policy._get_constructor_parameters(), policy.acting._get_constructor_parameters()):
        assert kept["symmetry"] == resolve_symmetry("CartPole-v1")
        assert (kept["method"], kept["symmetrizer_kwargs"]) == ("equizero", {"score": "entropy"})
    assert policy._get_constructor_parameters()["double_selection"] is True


# What is refused


def build(module, space, actions, **chosen):
    given = {"symmetry": "none", "method": "equitune", **chosen}
    return module.MlpPolicy(space, actions, lambda _: 1e-3, **given)


@pytest.mark.parametrize("module", [dqn, qrdqn, actor_critic, sac])
def test_gsde_is_refused(module):
    actions = spaces.Discrete(2) if module in (dqn, qrdqn) else spaces.Box(-1, 1, (2,))
    with pytest.raises(UserError, match="use_sde True: expected False, since gSDE draws its noise in features"):
        build(module, spaces.Box(-1, 1, (2,)), actions, use_sde=True)


@pytest.mark.parametrize("shape", [(2, 2), ()])
@pytest.mark.parametrize("module", [actor_critic, sac])
def test_actions_that_are_no_vector_are_refused(module, shape):
    with pytest.raises(UserError, match=r"action space Box\(.*\): expected a vector of actions"):
        build(module, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, shape))


def test_a_reflection_about_another_point_than_the_middle_of_the_actions_is_refused():
    """For squashed actions, mirrors about a centre count as mirrors about 0."""
    off = SignedPermutation(cyclic(2), [[0], [0]], [[1], [-1]], centre=[0.5])
    seen = SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1, 1], [-1, -1]])
    with pytest.raises(UserError, match="action"):
        build(sac, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), symmetry=Symmetry(seen, off))


# ------------------------------------------------------------------------------------------------ the short way to act


CENTRED = Symmetry.generated_by(({"signs": [-1] * 3}, {"signs": [-1], "centre": [5]}))
ACTING = {
    "dqn": lambda: cartpole("dqn", "equitune"),
    "qrdqn": lambda: cartpole("qrdqn", "equizero"),
    "pictures": lambda: picture("dqn", "equitune"),
    "ppo": lambda: (
        PPO(
            actor_critic.MlpPolicy,
            Seeing(spaces.Box(-1, 1, (3,)), spaces.Box(0, 10, (1,))),
            policy_kwargs={"symmetry": CENTRED, "method": "equitune"},
        ).policy
    ),
    "sac": lambda: (
        SAC(
            sac.MlpPolicy,
            Seeing(spaces.Box(-1, 1, (3,)), spaces.Box(0, 10, (1,))),
            buffer_size=1,
            policy_kwargs={"symmetry": CENTRED, "method": "lambda"},
        ).policy
    ),
}


@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("form", ["batch", "batch of one", "single", "list", "other floats"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_short_way_acts_as_sb3_does(name, form, deterministic):
    policy = ACTING[name]()
    space = policy.observation_space
    space.seed(3)
    batch = np.stack([space.sample() for _ in range(1 if form == "batch of one" else 6)])
    given = {"single": batch[0], "list": batch.tolist(), "other floats": batch.astype(np.float64)}.get(form, batch)
    if form == "list" and name == "pictures":
        pytest.skip("SB3 takes pictures as arrays alone")
    torch.manual_seed(0)
    actions, state = policy.predict(given, deterministic=deterministic)
    torch.manual_seed(0)
    expected, _ = BasePolicy.predict(policy, given, deterministic=deterministic)
    assert state is None
    assert (actions.shape, actions.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(actions, expected)


def test_mistakes_in_observations_are_sb3s_own():
    policy = cartpole("dqn", "equitune")
    mistakes: list[Any] = [np.zeros((2, 5)), np.zeros(3), (np.zeros(4), {})]
    for wrong in mistakes:
        with pytest.raises(ValueError, match=r"shape|tuple"):
            policy.predict(wrong)


def test_acting_leaves_nothing_that_training_cannot_use():
    model = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs={"symmetry": "CartPole-v1", "method": "equitune"})
    model.policy.predict(np.ones((2, 4), np.float32))
    model.q_net(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.q_net.parameters())


class Dropped(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x)


@pytest.mark.parametrize(("extractor", "walks"), [(FlattenExtractor, False), (Dropped, True)])
def test_the_mode_is_set_where_something_depends_on_it(extractor, walks):
    chosen = {"symmetry": "CartPole-v1", "method": "equitune", "features_extractor_class": extractor}
    net = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs=chosen).policy.q_net
    seen = torch.rand(64, 4)
    for mode in (True, False, False, True, True, False):
        net.set_training_mode(mode)
        assert net.training is mode
        assert torch.equal(net(seen), net(seen)) is not (walks and mode)


def test_equizero_in_training_keeps_its_own_gradients():
    net = deepcopy(cartpole("dqn", "equizero").q_net)
    for mode, straight_through in ((True, True), (False, False)):
        net.set_training_mode(mode)
        assert net.symmetrizer.training is straight_through


@pytest.mark.parametrize(("method", "fused"), [("identity", None), ("equitune", True)])
def test_adam_steps_in_one_kernel_unless_told_otherwise(method, fused):
    chosen = {"symmetry": "CartPole-v1", "method": method}
    model = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs=chosen)
    assert model.policy.optimizer.defaults["fused"] is fused
    own = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs={**chosen, "optimizer_kwargs": {"fused": False, "eps": 0.5}})
    assert (own.policy.optimizer.defaults["fused"], own.policy.optimizer.defaults["eps"]) == (False, 0.5)
    other = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs={**chosen, "optimizer_class": torch.optim.SGD})
    assert isinstance(other.policy.optimizer, torch.optim.SGD)
    many = DQN(dqn.MlpPolicy, "CartPole-v1", policy_kwargs={**chosen, "optimizer_kwargs": {"foreach": True}})
    assert (many.policy.optimizer.defaults["fused"], many.policy.optimizer.defaults["foreach"]) == (None, True)
    ppo = PPO(actor_critic.MlpPolicy, "CartPole-v1", policy_kwargs=chosen, n_steps=8, batch_size=8)
    assert (ppo.policy.optimizer.defaults["fused"], ppo.policy.optimizer.defaults["eps"]) == (fused, 1e-5)


def test_fused_steps_are_adams():
    runs = [
        DQN(
            dqn.MlpPolicy,
            "CartPole-v1",
            policy_kwargs={"symmetry": "CartPole-v1", "method": "equitune", "optimizer_kwargs": {"fused": fused}},
            learning_starts=10,
            seed=0,
        ).learn(60)
        for fused in (True, False)
    ]
    ours, slow = (nn.utils.parameters_to_vector(model.q_net.parameters()) for model in runs)
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-6)
