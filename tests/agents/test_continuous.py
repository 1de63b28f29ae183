"""Equivariant SAC, TD3 and DDPG: actors follow the symmetry, critics do not see it, and SB3's ways stay SB3's."""

from copy import deepcopy
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from equirl import (
    Matrix,
    SignedPermutation,
    Symmetry,
    Trivial,
    cyclic,
    equivariance_error,
    resolve_symmetry,
)
from equirl.agents import sac, td3
from equirl.agents.continuous import SymmetricCritic
from equirl.agents.extractors import SmallCNN
from equirl.errors import UserError
from equirl.symmetrizers import SCORES
from tests._elsewhere import run_code

METHODS = ("identity", "equitune", "equizero", "lambda")  # test_designs.py has the others
EQUIVARIANT = METHODS[1:]
MODULES: dict[Any, Any] = {SAC: sac, TD3: td3, DDPG: td3}
ALGOS = [SAC, TD3]
QUICK: dict[str, Any] = {
    "seed": 0,
    "buffer_size": 300,
    "learning_starts": 10,
    "batch_size": 8,
    "learning_rate": 3e-3,
}
PENDULUM = {"symmetry": "Pendulum-v1", "method": "equitune"}

TURN = {"permutation": [1, 0], "signs": [1, -1]}  # (x, y) -> (-y, x)
MIRROR = {"signs": [-1, 1]}
SEEN: dict[str, Any] = {
    "place": (spaces.Box(-9, 9, (2,)), TURN, MIRROR),
    "distant": (spaces.Box(91, 109, (2,)), {**TURN, "centre": [100, 100]}, {**MIRROR, "centre": [100, 100]}),
    "action": (spaces.Box(-1, 1, (2,)), TURN, MIRROR),
    "small": (spaces.Box(0, 255, (1, 5, 5), np.uint8), "rot90", "flip_x"),
    "large": (spaces.Box(0, 255, (1, 40, 40), np.uint8), "rot90", "flip_x"),
}


class Plane(gym.Env):
    """Push a point of the plane to the middle; turns and mirrors of the square change nothing.

    `keys` names what is seen, from SEEN: the place, the place about (100, 100), the last action, or pictures of the
    place. One key is seen bare, several as a dictionary. Actions lie in `bounds`, whose middle pushes nowhere.
    """

    def __init__(self, *keys, bounds=(-1, 1)):
        self.keys = keys
        parts = {key: SEEN[key][0] for key in keys}
        self.observation_space = parts[keys[0]] if len(keys) == 1 else spaces.Dict(parts)
        low, high = bounds
        self.action_space = spaces.Box(low, high, (2,))

    @staticmethod
    def symmetry(*keys, bounds=(-1, 1)):
        centre = {"centre": [sum(bounds) / 2] * 2}
        pairs = []
        for number, done in ((1, TURN), (2, MIRROR)):
            seen = {key: SEEN[key][number] for key in keys}
            pairs.append((seen[keys[0]] if len(keys) == 1 else {"keys": seen}, {**done, **centre}))
        return Symmetry.generated_by(*pairs, name="plane")

    def _picture(self, side):
        picture = np.zeros((1, side, side), np.uint8)
        column, row = (round(float(1 + at / 2) * (side - 1) / 2) for at in (self.at[0], -self.at[1]))
        picture[0, row, column] = 255
        return picture

    def _see(self):
        parts = {
            "place": self.at,
            "distant": 100 + self.at,
            "action": self.push,
            "small": self._picture(5),
            "large": self._picture(40),
        }
        seen = {key: np.asarray(parts[key], SEEN[key][0].dtype) for key in self.keys}
        return seen[self.keys[0]] if len(self.keys) == 1 else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.at, self.push = 0, self.np_random.uniform(-2, 2, 2), np.zeros(2)
        return self._see(), {}

    def step(self, action):
        low, high = self.action_space.low, self.action_space.high
        self.push = 2 * (action - low) / (high - low) - 1
        self.at = (self.at + 0.5 * self.push).clip(-2, 2)
        self.steps += 1
        return self._see(), -float(self.at @ self.at), False, self.steps >= 8, {}


DICT = ("place", "small", "action")
FROM_0_TO_10 = {"bounds": (0, 10)}
# name: environment, policy, symmetry, steps
CASES: dict[str, Any] = {
    "pendulum": (lambda: gym.make("Pendulum-v1"), "MlpPolicy", lambda: "Pendulum-v1", 40),
    "plane": (lambda: Plane("place"), "MlpPolicy", lambda: Plane.symmetry("place"), 40),
    "centre": (
        lambda: Plane("distant", **FROM_0_TO_10),
        "MlpPolicy",
        lambda: Plane.symmetry("distant", **FROM_0_TO_10),
        40,
    ),
    "dict": (lambda: Plane(*DICT), "MultiInputPolicy", lambda: Plane.symmetry(*DICT), 18),
    "picture": (lambda: Plane("small"), "CnnPolicy", lambda: Plane.symmetry("small"), 18),
}
VECTORS = ["pendulum", "plane", "centre"]


def build(algo, case, method, policy_kwargs=None, **kwargs):
    make, policy, symmetry, _ = CASES[case]
    given = {"symmetry": symmetry(), "method": method, "net_arch": [16, 12], **(policy_kwargs or {})}
    model = algo(getattr(MODULES[algo], policy), make(), policy_kwargs=given, **{**QUICK, **kwargs})
    with torch.no_grad():
        for module in model.policy.modules():
            if isinstance(module, SmallCNN):  # fresh ones hardly tell pictures apart, which would hide errors
                for parameter in module.parameters():
                    parameter.mul_(2.5)
    return model


@cache
def trained(algo, case, method):
    """Return an agent that tests may read but must not change."""
    model = build(algo, case, method).learn(CASES[case][3])
    model.policy.set_training_mode(False)
    return model


def observations_of(space, n=12):
    """Return a batch of random observations as SB3 stores them, as tensors."""
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part, n) for key, part in space.spaces.items()}
    if space.dtype == np.uint8:
        return torch.randint(256, (n, *space.shape), dtype=torch.uint8) * (torch.rand(n, *space.shape) < 0.1)
    low, high = (torch.as_tensor(bound).clamp(-9, 109) for bound in (space.low, space.high))
    return low + torch.rand(n, *space.shape) * (high - low)


def with_fixed_points(rep, x, dtype=torch.float32):
    """Return a batch, and as many members of it that every element leaves as they are."""

    def add(part, images):
        if part.dtype == torch.uint8:
            return torch.cat([part, images.sum(0).to(part.dtype)])  # modulo 256
        return torch.cat([part, images.mean(0)]).to(dtype)  # exact, of whole numbers

    def whole(part):
        return part if part.dtype == torch.uint8 else part.round()

    if isinstance(x, dict):
        images = rep.orbit({key: whole(part) for key, part in x.items()})
        return {key: add(part, images[key]) for key, part in x.items()}
    return add(x, rep.orbit(whole(x)))


def nets_of(policy):
    """Return the actors, and the critics, of a policy."""
    actors = [getattr(policy, name) for name in ("actor", "actor_target") if hasattr(policy, name)]
    return actors, [policy.critic, policy.critic_target]


def errors_of(policy, dtype=torch.float32):
    """Return the equivariance errors of all networks, at random and at fixed points."""
    actors, critics = nets_of(policy)
    seen = actors[0].movable(observations_of(policy.observation_space))
    actions = 2 * torch.rand(12, *policy.action_space.shape) - 1
    found = []
    for actor in actors:
        rep = actor.symmetry.observation
        found.append(equivariance_error(actor.symmetrized, rep, actor.output, with_fixed_points(rep, seen, dtype)))
    for critic in critics:
        x = with_fixed_points(critic.input, critic.joined(seen, actions), dtype)
        found.append(equivariance_error(critic.symmetrized, critic.input, Trivial(critic.symmetry.group), x))
    return found


def outputs(policy, seen, actions):
    """Return what all networks of a policy make of observations and scaled actions, without randomness."""
    policy.set_training_mode(False)
    actors, critics = nets_of(policy)
    with torch.no_grad():
        done = [actor.symmetrized(actor.movable(seen)) for actor in actors]
        return [part for each in done for part in each.values()] + [q for net in critics for q in net(seen, actions)]


def inputs(model, n=12):
    return observations_of(model.observation_space, n), 2 * torch.rand(n, *model.action_space.shape) - 1


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# Equivariance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_actors_follow_the_symmetry_and_critics_do_not_see_it(algo, method, case):
    model, fresh = trained(algo, case, method), build(algo, case, method)
    fresh.policy.set_training_mode(False)
    assert max(errors_of(fresh.policy)) <= 1e-5
    before, after = fresh.policy.state_dict(), model.policy.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in after if key.endswith("qf0.0.weight"))
    assert not torch.equal(
        before["actor.mu.weight" if algo is SAC else "actor.mu.0.weight"],
        after["actor.mu.weight" if algo is SAC else "actor.mu.0.weight"],
    )
    assert max(errors_of(model.policy)) <= 1e-5


@pytest.mark.parametrize("case", VECTORS)
@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_in_double_precision_to_its_rounding(algo, method, case):
    policy = deepcopy(trained(algo, case, method).policy).double()
    assert max(errors_of(policy, torch.float64)) <= 1e-12


@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_in_training_mode_too(algo, method):
    policy = deepcopy(trained(algo, "plane", method).policy)
    policy.set_training_mode(True)
    assert max(errors_of(policy)) <= 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algo", ALGOS)
def test_the_plain_agent_is_not_equivariant(algo, case):
    assert min(errors_of(trained(algo, case, "identity").policy)) > 1e-3


@pytest.mark.parametrize("algo", ALGOS)
def test_another_symmetry_than_the_claimed_one_shows(algo):
    policy, other = (
        trained(algo, "plane", "equitune").policy,
        SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1] * 2, [-1] * 2]),
    )
    still = SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1, 1], [1, -1]])
    seen = policy.actor.movable(observations_of(policy.observation_space))
    assert equivariance_error(lambda x: policy.actions(x), other, other, seen) <= 1e-5  # a half turn is in D4
    assert equivariance_error(lambda x: policy.actions(x), other, still, seen) > 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_every_view_one_by_one_gives_the_same(algo, method, case):
    """A slow and obvious loop over elements and samples, beside the fast path."""
    model = trained(algo, case, method)
    actor, critic, group = model.actor, model.critic, model.policy.symmetry.group
    seen, actions = inputs(model, 3)
    movable = actor.movable(seen)
    rows = [
        ({k: v[i : i + 1] for k, v in movable.items()} if isinstance(movable, dict) else movable[i : i + 1])
        for i in range(3)
    ]
    quick, quick_values = actor.symmetrized(movable), torch.cat(critic(seen, actions), 1)
    with torch.no_grad():
        for i, row in enumerate(rows):
            views, scores, values, value_scores = [], [], [], []
            for g in range(len(group)):
                moved = actor.symmetry.observation(g, row)
                out, latent = actor.outputs_and_features(moved)
                views.append(actor.output(int(group.inverses[g]), out))
                x = critic.input(g, critic.joined(row, actions[i : i + 1]))
                values.append(critic.plain(moved, x["action"])[0])
                if method == "lambda":
                    scores.append(actor.symmetrizer.score(latent)[0, 0])
                    read = torch.cat([critic.features(moved), x["action"]], 1)
                    hidden = [network[:-1](read)[0] for network in critic.q_networks]
                    value_scores.append(critic.symmetrizer.score(torch.cat(hidden))[0])
                elif method == "equizero":
                    scores.append(min(critic.plain(moved, actor.greedy(out))[0]))
            n = len(group)
            weights = value_weights = torch.full((n,), 1 / n)
            if method == "identity":
                weights = value_weights = torch.eye(n)[0]
            elif method == "lambda":
                weights, value_weights = torch.stack(scores).softmax(0), torch.stack(value_scores).softmax(0)
            elif method == "equizero":
                best = torch.stack(scores)
                ties = best >= best.max() - 1.2207e-4 * max(1, abs(float(best.max())))
                weights = ties / ties.sum()
            assert torch.allclose(actor.element_weights(row)[:, 0], weights, atol=1e-5)
            for key, part in quick.items():
                slow = sum(w * view[key][0] for w, view in zip(weights, views, strict=True))
                assert torch.allclose(part[i], slow, atol=1e-5), key
            slow = sum(w * value for w, value in zip(value_weights, values, strict=True))
            assert torch.allclose(quick_values[i], slow, atol=1e-5)


@pytest.mark.parametrize("case", ["pendulum", "centre", "dict"])
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_densities_of_actions_are_equivariant(method, case):
    actor = trained(SAC, case, method).actor
    seen, rep = actor.movable(observations_of(actor.observation_space)), actor.symmetry.observation

    def density(x, actions):
        out = actor.symmetrized(x)
        return actor.action_dist.proba_distribution(out["mean"], out["log_std"]).log_prob(actions)

    actions = 1.8 * torch.rand(12, *actor.action_space.shape) - 0.9
    still = density(seen, actions)
    for g in range(len(rep.group)):
        moved = density(rep(g, seen), actor.output.keys["mean"](g, actions))
        assert torch.allclose(moved, still, rtol=1e-4, atol=1e-4)


def test_deviations_are_clamped_before_they_are_averaged():
    actor = deepcopy(trained(SAC, "plane", "equitune").actor)
    with torch.no_grad():
        actor.log_std.weight.mul_(1000)
    seen = observations_of(actor.observation_space)
    views = [actor.log_std(actor.latent_pi(actor.symmetry.observation(g, seen))) for g in range(8)]
    assert min(view.min() for view in views) < -30
    assert max(view.max() for view in views) > 30
    undone = [actor.symmetry.action.indices[g] for g in range(8)]  # entry i of an action went to entry p[i]
    mean = torch.stack([view.clamp(-20, 2)[:, p] for view, p in zip(views, undone, strict=True)]).mean(0)
    assert torch.allclose(actor.get_action_dist_params(seen)[1], mean, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_predicted_actions_commute_in_the_environments_own_units(algo, method, case):
    model = trained(algo, case, method)
    symmetry, space = model.policy.symmetry, model.action_space
    seen = observations_of(model.observation_space)

    def act(x):
        many = {key: part.numpy() for key, part in x.items()} if isinstance(x, dict) else x.numpy()
        actions = model.predict(many, deterministic=True)[0]
        assert ((space.low <= actions) & (actions <= space.high)).all()
        return torch.as_tensor(actions)

    still = act(seen)
    assert (still - still[:1]).abs().max() > 1e-3
    for g in range(len(symmetry.group)):
        moved = act(symmetry.observation(g, seen))
        assert torch.allclose(moved, symmetry.action(g, still), atol=1e-5 * float((space.high - space.low).max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_critics_do_not_see_it_in_the_environments_own_units(algo, method, case):
    model = trained(algo, case, method)
    symmetry, space = model.policy.symmetry, model.action_space
    seen = observations_of(model.observation_space)
    actions = np.stack([space.sample() for _ in range(12)])

    def value(seen, actions):
        return torch.cat(model.critic(seen, torch.as_tensor(model.policy.scale_action(actions))), 1)

    still = value(seen, actions)
    assert (still - still[:1]).abs().max() > 1e-3
    for g in range(len(symmetry.group)):
        moved = symmetry.action(g, torch.as_tensor(actions)).numpy()
        assert torch.allclose(value(symmetry.observation(g, seen), moved), still, atol=1e-5)


@pytest.mark.parametrize("case", ["pendulum", "centre", "dict"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_what_callbacks_measure(algo, method, case):
    policy = trained(algo, case, method).policy
    seen = observations_of(policy.observation_space)
    assert set(policy.measured(seen)) == {"action", "critic"}
    error, disagreement = policy.equivariance_error(seen), policy.greedy_disagreement(seen)
    assert (error > 1e-3, disagreement > 0.2) == ((method == "identity"),) * 2
    assert method == "identity" or (error <= 1e-5 and disagreement == 0)
    assert policy.greedy_disagreement(seen, plain=True) > 0.2
    movable = policy.acting.movable(seen)
    expected = policy(seen, deterministic=True)
    assert torch.equal(policy.actions(movable), expected)
    assert torch.equal(policy.scores(movable), expected)
    weights = policy.element_weights(seen)
    assert weights.shape == (len(policy.symmetry.group), 12)
    assert torch.allclose(weights.sum(0), torch.ones(12))


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("method", EQUIVARIANT)
def test_all_views_pass_in_one_call(algo, method):
    model = trained(algo, "picture", method)
    calls: list[Any] = []
    hooks = [
        net.features_extractor.register_forward_pre_hook(lambda module, args, net=net: calls.append((net, args[0])))
        for net in (model.actor, model.critic)
    ]
    seen, actions = inputs(model, 3)
    model.actor(seen)
    for net, x in calls:
        assert (x.shape, x.dtype) == ((24, 1, 5, 5), torch.float32), net
    assert [net for net, _ in calls] == [model.actor] + ([model.critic] if method == "equizero" else [])
    calls.clear()
    model.critic(seen, actions)
    model.critic.q1_forward(seen, actions)
    assert [x.shape[0] for _, x in calls] == [24, 24]
    for hook in hooks:
        hook.remove()


# Critics


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_q1_is_the_first_of_all(algo, method):
    model = trained(algo, "plane", method)
    seen, actions = inputs(model)
    first, second = model.critic(seen, actions)
    assert first.shape == second.shape == (12, 1)
    assert torch.equal(model.critic.q1_forward(seen, actions), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_features_shared_with_the_actor_learn_from_it_alone(algo, method):
    smooth = {"activation_fn": torch.nn.Tanh}  # rectifiers may all rest, and pass no gradient
    model = build(algo, "picture", method, {"share_features_extractor": True, **smooth}).learn(14)
    alone = build(algo, "picture", method, smooth).learn(14)
    actor, critic = model.actor, model.critic
    assert actor.features_extractor is critic.features_extractor
    assert critic.features_extractor is not model.critic_target.features_extractor
    model.policy.set_training_mode(False)
    if method != "identity":
        assert max(errors_of(model.policy)) <= 1e-5
    seen, actions = inputs(model, 3)
    actions.requires_grad_()
    for share, value in (
        (True, lambda: critic(seen, actions)[1].sum()),
        (True, lambda: critic.q1_forward(seen, actions).sum()),
        (False, lambda: alone.critic.q1_forward(seen, actions).sum()),
    ):
        extractor = critic.features_extractor if share else alone.critic.features_extractor
        extractor.zero_grad()
        actions.grad = None
        value().backward()
        assert all(p.grad is None or not p.grad.any() for p in extractor.parameters())
        assert actions.grad.abs().sum() > 0
    sum(alone.critic(seen, actions)).sum().backward()
    assert all(p.grad is not None for p in alone.critic.features_extractor.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_many_critics_and_no_hidden_layers(method):
    model = build(SAC, "plane", method, {"n_critics": 3, "net_arch": {"pi": [], "qf": []}}).learn(20)
    seen, actions = inputs(model)
    assert len(model.critic(seen, actions)) == 3
    model.policy.set_training_mode(False)
    if method != "identity":
        assert max(errors_of(model.policy)) <= 1e-5


# Equizero


@pytest.mark.parametrize("algo", ALGOS)
def test_the_critics_choose_equizeros_views_and_are_asked_without_gradients(algo):
    model = build(algo, "plane", "equizero")
    seen = inputs(model, 64)[0]
    before = model.actor.element_weights(seen)
    model.actor.symmetrized(model.actor.movable(seen))[next(iter(model.actor.output.keys))].sum().backward()
    assert all(parameter.grad is None for parameter in model.critic.parameters())
    assert not model.actor._scored(model.actor.movable(seen))[0]["score"].requires_grad
    assert {float(weight) for weight in before.unique()} >= {0.0, 1.0}
    assert model.critic.symmetrizer.method == "equitune"
    with torch.no_grad():
        for parameter in model.critic.parameters():
            parameter.neg_()
    assert not torch.equal(model.actor.element_weights(seen), before)
    if algo is TD3:
        assert torch.equal(model.actor_target.element_weights(seen), before)
        with torch.no_grad():
            for parameter in model.critic_target.parameters():
                parameter.neg_()
        assert torch.equal(model.actor_target.element_weights(seen), model.actor.element_weights(seen))


@pytest.mark.parametrize("algo", ALGOS)
def test_the_chosen_view_is_the_one_of_which_the_critics_expect_most(algo):
    model = trained(algo, "pendulum", "equizero")
    actor, seen = model.actor, inputs(model, 64)[0]
    mirrored = seen * torch.tensor([1, -1, -1])
    values = torch.stack([model.critic.plain(x, actor.greedy(actor.plain(x))).amin(1) for x in (seen, mirrored)])
    clear = (values[0] - values[1]).abs() > 1e-2
    assert clear.sum() > 10
    assert torch.equal(actor.element_weights(seen).argmax(0)[clear], values.argmax(0)[clear])
    plain = torch.where(
        (values[0] > values[1])[:, None], actor.greedy(actor.plain(seen)), -actor.greedy(actor.plain(mirrored))
    )
    assert torch.allclose(model.policy.actions(seen)[clear], plain[clear], atol=1e-6)


def least_action(out):
    return -out["mean" if "mean" in out else "action"].abs().sum(-1)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_score_of_ones_own_replaces_the_critics(algo):
    model = build(algo, "plane", "equizero", {"symmetrizer_kwargs": {"score": least_action}}).learn(20)
    model.policy.set_training_mode(False)
    assert max(errors_of(model.policy)) <= 1e-5
    seen, actor = inputs(model)[0], model.actor
    views = [actor.plain(actor.symmetry.observation(g, seen)) for g in range(8)]
    smallest = torch.stack([-least_action(view) for view in views]).amin(0)
    key = "mean" if algo is SAC else "action"
    assert torch.allclose(actor.symmetrized(seen)[key].abs().sum(-1), smallest, atol=1e-4)
    assert actor._critic == ()


@pytest.mark.parametrize("algo", ALGOS)
def test_an_actor_without_critic_averages(algo):
    actor = trained(algo, "plane", "equizero").actor
    data = {**actor._get_constructor_parameters(), "critic": None}
    alone = type(actor)(**data)
    assert torch.equal(alone.element_weights(torch.randn(5, 2)), torch.full((8, 5), 1 / 8))


# Learning


PLAIN = [
    (SAC, "MlpPolicy", None, {}, 60),
    (SAC, "CnnPolicy", ("large",), {}, 13),
    (SAC, "CnnPolicy", ("large",), {"share_features_extractor": True}, 13),
    (SAC, "MultiInputPolicy", ("large", "place"), {}, 13),
    (TD3, "MlpPolicy", None, {}, 60),
    (TD3, "CnnPolicy", ("large",), {}, 13),
    (TD3, "CnnPolicy", ("large",), {"share_features_extractor": True}, 13),
    (TD3, "MultiInputPolicy", ("large", "place"), {}, 13),
    (DDPG, "MlpPolicy", None, {}, 60),
]


@pytest.mark.parametrize(("algo", "policy", "keys", "more", "steps"), PLAIN)
def test_identity_learns_exactly_what_plain_sb3_learns(algo, policy, keys, more, steps):
    def make():
        return gym.make("Pendulum-v1") if keys is None else Plane(*keys)

    given = {"symmetry": "Pendulum-v1" if keys is None else Plane.symmetry(*keys), "method": "identity", **more}
    ours = algo(getattr(MODULES[algo], policy), make(), policy_kwargs=given, **QUICK).learn(steps)
    theirs = algo(policy, make(), policy_kwargs=more, **QUICK).learn(steps)
    assert same(ours.policy.state_dict(), theirs.policy.state_dict())
    assert not same(ours.policy.state_dict(), algo(policy, make(), policy_kwargs=more, **QUICK).policy.state_dict())
    for name in ("actor", "critic"):
        pair = [getattr(model, name).optimizer.state_dict()["state"] for model in (ours, theirs)]
        assert pair[0].keys() == pair[1].keys()
        assert all(same(pair[0][key], pair[1][key]) for key in pair[0])


@pytest.mark.parametrize("algo", ALGOS)
def test_lambda_learns_its_own_nets(algo):
    model, fresh = trained(algo, "plane", "lambda"), build(algo, "plane", "lambda")
    for name in ("actor", "critic"):
        net, new = getattr(model, name), getattr(fresh, name)
        optimized = {id(p) for group in net.optimizer.param_groups for p in group["params"]}
        assert optimized == {id(p) for p in net.parameters()}
        assert {id(p) for p in net.symmetrizer.score.parameters()} <= optimized
        assert not new.symmetrizer.score[-1].weight.any()
        assert net.symmetrizer.score[-1].weight.abs().max() > 1e-4
        target = getattr(model.policy, f"{name}_target", None)
        if target is not None:
            assert target.symmetrizer.score[-1].weight.abs().max() > 0
    shared = build(algo, "picture", "lambda", {"share_features_extractor": True})
    optimized = {id(p) for group in shared.critic.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in shared.critic.symmetrizer.parameters()} <= optimized


@pytest.mark.parametrize("case", ["plane", "dict"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_networks_share_nothing_with_their_targets_or_one_another(algo, method, case):
    actors, critics = nets_of(trained(algo, case, method).policy)
    nets = actors + critics
    modules = [{id(module) for module in net.modules()} for net in nets]
    tensors = [{t.data_ptr() for t in net.state_dict(keep_vars=True).values()} for net in nets]
    for each in (modules, tensors):
        assert len(set.union(*each)) == sum(map(len, each))


def test_the_entropy_coefficient_of_sac_is_learned():
    model = build(SAC, "pendulum", "equitune", ent_coef="auto")
    before = model.log_ent_coef.detach().clone()
    model.learn(40)
    assert torch.isfinite(model.log_ent_coef).all()
    assert not torch.equal(before, model.log_ent_coef)


@pytest.mark.parametrize("algo", [SAC, TD3, DDPG])
def test_the_middle_is_found_from_all_sides(algo):
    noise = None if algo is SAC else NormalActionNoise(np.zeros(2), np.full(2, 0.3))
    given = {"symmetry": Plane.symmetry("place", **FROM_0_TO_10), "method": "equitune", "net_arch": [32]}
    options = {**QUICK, "gamma": 0.5, "learning_starts": 60, "batch_size": 32, "tau": 0.05, "action_noise": noise}
    model = algo(MODULES[algo].MlpPolicy, Plane("place", **FROM_0_TO_10), policy_kwargs=given, **options).learn(300)
    mean, _ = evaluate_policy(model, Monitor(Plane("place", **FROM_0_TO_10)), n_eval_episodes=10)
    assert float(np.mean(mean)) > -6  # standing still gives -21, the shortest way -1.6


# Files, copies and weights of others


@pytest.mark.parametrize("method", ["identity", "equitune", "equizero"])
@pytest.mark.parametrize("algo", ALGOS)
def test_weights_travel_between_plain_sb3_and_this(algo, method, tmp_path):
    small = {"net_arch": [16, 12]}
    plain = algo("MlpPolicy", "Pendulum-v1", policy_kwargs=small, **QUICK).learn(15)
    plain.save(tmp_path / "plain.zip")
    ours = build(algo, "pendulum", method, seed=1)
    assert ours.policy.state_dict().keys() == plain.policy.state_dict().keys()
    ours.set_parameters(tmp_path / "plain.zip")  # strictly
    assert same(ours.policy.state_dict(), plain.policy.state_dict())
    seen, actions = inputs(ours)
    assert torch.equal(
        ours.policy.actions(seen, plain=True), plain.actor(seen, **({"deterministic": True} if algo is SAC else {}))
    )
    assert torch.equal(ours.critic.plain(seen, actions), torch.cat(plain.critic(seen, actions), 1))
    other = algo("MlpPolicy", "Pendulum-v1", policy_kwargs=small, **{**QUICK, "seed": 2})
    other.set_parameters(ours.get_parameters())
    assert same(other.policy.state_dict(), plain.policy.state_dict())


READ_ELSEWHERE = """
import sys, torch
from stable_baselines3 import SAC, TD3
for path in sys.argv[1:]:
    model = (SAC if "SAC" in path else TD3).load(path)
    seen, actions = torch.load(path + ".seen")
    model.policy.set_training_mode(False)
    with torch.no_grad():
        action = model.actor(seen, **({"deterministic": True} if "SAC" in path else {}))
        torch.save([action, *model.critic(seen, actions), *model.critic_target(seen, actions)], path + ".done")
"""


def test_a_fresh_process_loads_the_same_agents(tmp_path):
    expected, paths = {}, []
    for algo in ALGOS:
        for case, method in (
            ("pendulum", "equitune"),
            ("centre", "equizero"),
            ("dict", "lambda"),
            ("picture", "equizero"),
        ):
            model, path = trained(algo, case, method), tmp_path / f"{algo.__name__}-{case}.zip"
            model.save(path)
            seen, actions = inputs(model)
            torch.save((seen, actions), f"{path}.seen")
            with torch.no_grad():
                first = model.policy(seen, deterministic=True)
                expected[path] = [first, *model.critic(seen, actions), *model.critic_target(seen, actions)]
            paths.append(str(path))
    done = run_code(READ_ELSEWHERE, *paths)
    assert (done.returncode, done.stderr) == (0, "")
    for path, ours in expected.items():
        assert equal(torch.load(f"{path}.done"), ours), path


@pytest.mark.parametrize("case", ["pendulum", "dict", "picture"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_agents_policies_and_networks_load_as_they_were(algo, method, case, tmp_path):
    model = trained(algo, case, method)
    seen, actions = inputs(model)
    expected = outputs(model.policy, seen, actions)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    model.actor.save(tmp_path / "actor.pt")
    model.critic.save(tmp_path / "critic.pt")
    loaded = algo.load(tmp_path / "model.zip").policy
    policy = type(model.policy).load(tmp_path / "policy.pt")
    for each in (loaded, policy):
        assert equal(outputs(each, seen, actions), expected)
        assert each.method == method
        assert each.symmetry == model.policy.symmetry
        assert method == "identity" or max(errors_of(each)) <= 1e-5
    actor, critic = type(model.actor).load(tmp_path / "actor.pt"), SymmetricCritic.load(tmp_path / "critic.pt")
    actor.set_training_mode(False)
    critic.set_training_mode(False)
    with torch.no_grad():
        assert same(actor.symmetrized(actor.movable(seen)), model.actor.symmetrized(model.actor.movable(seen)))
        assert equal(critic(seen, actions), model.critic(seen, actions))
    assert not critic.share_features_extractor


@pytest.mark.parametrize("algo", ALGOS)
def test_policies_keep_shared_features_through_a_file(algo, tmp_path):
    model = build(algo, "picture", "equitune", {"share_features_extractor": True, "n_critics": 3})
    model.policy.save(tmp_path / "policy.pt")
    policy = type(model.policy).load(tmp_path / "policy.pt")
    assert policy.actor.features_extractor is policy.critic.features_extractor
    seen, actions = inputs(model)
    assert equal(outputs(policy, seen, actions), outputs(model.policy, seen, actions))
    model.critic.save(tmp_path / "critic.pt")
    critic = SymmetricCritic.load(tmp_path / "critic.pt")
    assert critic.share_features_extractor
    assert equal(critic(seen, actions), model.critic(seen, actions))


@pytest.mark.parametrize("algo", ALGOS)
def test_the_actor_of_a_copy_asks_the_copys_critic(algo, tmp_path):
    model = trained(algo, "plane", "equizero")
    model.save(tmp_path / "model.zip")
    seen, actions = inputs(model, 64)
    expected = outputs(model.policy, seen, actions)
    for copy in (deepcopy(model.policy), algo.load(tmp_path / "model.zip").policy):
        assert equal(outputs(copy, seen, actions), expected)
        assert copy.actor._critic == (copy.critic,)
        with torch.no_grad():
            for parameter in copy.critic.parameters():
                parameter.neg_()
        assert not equal(outputs(copy, seen, actions), expected)
        assert equal(outputs(model.policy, seen, actions), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_learning_goes_on_after_loading(algo, method, tmp_path):
    trained(algo, "pendulum", method).save(tmp_path / "model.zip")
    model = algo.load(tmp_path / "model.zip", env=gym.make("Pendulum-v1"), learning_starts=45)
    before = deepcopy(model.policy.state_dict())
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 50
    after = model.policy.state_dict()
    assert not torch.equal(before["critic.qf0.0.weight"], after["critic.qf0.0.weight"])
    model.policy.set_training_mode(False)
    assert method == "identity" or max(errors_of(model.policy)) <= 1e-5


# Environments


@pytest.mark.parametrize("method", EQUIVARIANT)
@pytest.mark.parametrize("algo", ALGOS)
def test_stacked_frames_and_several_environments(algo, method):
    envs = VecFrameStack(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2), 3)
    given = {"symmetry": resolve_symmetry("Pendulum-v1").stacked(3), "method": method, "net_arch": [8]}
    model = algo(MODULES[algo].MlpPolicy, envs, policy_kwargs=given, **QUICK).learn(30)
    model.policy.set_training_mode(False)
    assert max(errors_of(model.policy)) <= 1e-5


@pytest.mark.parametrize("case", ["plane", "dict"])
@pytest.mark.parametrize("algo", ALGOS)
def test_evaluate_policy(algo, case):
    mean, std = evaluate_policy(trained(algo, case, "equizero"), Monitor(CASES[case][0]()), n_eval_episodes=2)
    assert np.isfinite([mean, std]).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_symmetry_at_all(method):
    for algo in ALGOS:
        given = {"symmetry": "none", "method": method, "net_arch": [8]}
        model = algo(MODULES[algo].MultiInputPolicy, Plane(*DICT), policy_kwargs=given, **QUICK).learn(12)
        seen, actions = inputs(model)
        assert torch.allclose(
            torch.cat(model.critic(seen, actions), 1), model.critic.plain(model.critic.movable(seen), actions)
        )


@pytest.mark.parametrize("method", EQUIVARIANT)
def test_ddpg_has_the_policies_of_td3(method):
    model = build(DDPG, "plane", method).learn(25)
    model.policy.set_training_mode(False)
    assert len(model.critic.q_networks) == 1
    assert max(errors_of(model.policy)) <= 1e-5


class Goal(Plane):
    """A plane whose middle is a goal that is seen."""

    def __init__(self):
        super().__init__("place")
        self.observation_space = spaces.Dict(
            dict.fromkeys(("observation", "achieved_goal", "desired_goal"), SEEN["place"][0])
        )

    def _see(self):
        at = self.at.astype(np.float32)
        return {"observation": at, "achieved_goal": at, "desired_goal": np.zeros(2, np.float32)}

    def compute_reward(self, achieved, desired, info):
        return -((achieved - desired) ** 2).sum(-1)


@pytest.mark.parametrize("algo", ALGOS)
def test_hindsight_replay(algo):
    maps = [dict.fromkeys(Goal().observation_space.spaces, step) for step in (TURN, MIRROR)]
    symmetry = Symmetry.generated_by(*(({"keys": seen}, done) for seen, done in zip(maps, (TURN, MIRROR), strict=True)))
    given = {"symmetry": symmetry, "method": "equizero", "net_arch": [8]}
    model = algo(
        MODULES[algo].MultiInputPolicy, Goal(), policy_kwargs=given, replay_buffer_class=HerReplayBuffer, **QUICK
    ).learn(30)
    model.policy.set_training_mode(False)
    assert max(errors_of(model.policy)) <= 1e-5


@pytest.mark.parametrize(
    ("algo", "keys", "policy", "extractor", "net_arch"),
    [
        (SAC, ("large",), "CnnPolicy", NatureCNN, [256, 256]),
        (SAC, ("small",), "CnnPolicy", SmallCNN, [256, 256]),
        (TD3, ("large",), "CnnPolicy", NatureCNN, [256, 256]),
        (TD3, ("small",), "CnnPolicy", SmallCNN, [256, 256]),
        (TD3, ("place",), "MlpPolicy", None, [400, 300]),
    ],
)
def test_default_networks(algo, keys, policy, extractor, net_arch):
    given = {"symmetry": Plane.symmetry(*keys), "method": "equitune"}
    model = algo(getattr(MODULES[algo], policy), Plane(*keys), policy_kwargs=given, **QUICK)
    assert model.policy.net_arch == net_arch
    assert extractor is None or type(model.actor.features_extractor) is extractor


# Mistakes


def leading_out():
    return Symmetry.generated_by((TURN, TURN))


MISTAKES: dict[str, Any] = {
    "method": ("Pendulum-v1", {"method": "equitun"}, r"unknown method 'equitun'.*'equitune'\?"),
    "symmetry": ("Pendulum-v1", {"symmetry": "Pendulun-v1"}, r"symmetry 'Pendulun-v1'.*'Pendulum-v1'\?"),
    "size": ("MountainCarContinuous-v0", {}, r"acts on 3 entries, got shape \(2,\)"),
    "bounds": (lambda: Plane("place", **FROM_0_TO_10), {"symmetry": leading_out()}, "leads out of it"),
    "option": ("Pendulum-v1", {"symmetrizer_kwargs": {"hidden": 3}}, "unknown option of equitune 'hidden'"),
    "plain option": ("Pendulum-v1", {"method": "identity", "symmetrizer_kwargs": {"score": 1}}, "option of identity"),
    "equizero's option": (
        "Pendulum-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"scor": least_action}},
        r"unknown option of equizero 'scor'.*'score'\?",
    ),
    "lambda's option": ("Pendulum-v1", {"method": "lambda", "symmetrizer_kwargs": {"hiden": 3}}, "'hidden'"),
    "named score": (
        "Pendulum-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"score": "max"}},
        "score 'max' reads logits of discrete actions.*a function",
    ),
    "named score's function": (
        "Pendulum-v1",
        {"method": "equizero", "symmetrizer_kwargs": {"score": SCORES["entropy"]}},
        "score 'entropy' reads logits",
    ),
    "matrix": (
        "Pendulum-v1",
        {
            "symmetry": Symmetry(
                SignedPermutation(cyclic(2), [[0, 1, 2]] * 2, [[1, 1, 1], [1, -1, -1]]),
                Matrix(cyclic(2), [[[1]], [[-1]]]),
            )
        },
        r"Matrix\(C2, size=1\)",
    ),
    "vectors": ("Pendulum-v1", {"policy": "CnnPolicy"}, r"Box observations of shape \(3,\): expected pictures"),
    "not per key": (lambda: Plane(*DICT), {"policy": "MultiInputPolicy"}, "Dict: expected a PerKey"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("algo", ALGOS)
def test_mistakes_are_told_in_one_line_before_anything_runs(algo, mistake):
    env, given, message = MISTAKES[mistake]
    given = {**PENDULUM, **given}
    policy = getattr(MODULES[algo], given.pop("policy", "MlpPolicy"))
    with pytest.raises(UserError, match=message) as told:
        algo(policy, env() if callable(env) else env, policy_kwargs=given, **QUICK)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("module", [sac, td3])
def test_matrices_are_refused_even_without_bounds(module):
    half = SignedPermutation(cyclic(2), [[0, 1, 2]] * 2, [[1, 1, 1], [1, -1, -1]])
    symmetry = Symmetry(half, Matrix(cyclic(2), [[[1]], [[-1]]]))
    boundless = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(UserError, match=r"Matrix.*signed.*permutations, which commute with tanh"):
        module.MlpPolicy(spaces.Box(-1, 1, (3,)), boundless, lambda _: 1e-3, symmetry=symmetry, method="equitune")


def test_gsde_is_refused():
    with pytest.raises(UserError, match="use_sde True"):
        build(SAC, "pendulum", "equitune", use_sde=True)


@pytest.mark.parametrize("missing", ["symmetry", "method"])
@pytest.mark.parametrize("algo", ALGOS)
def test_symmetry_and_method_have_no_defaults(algo, missing):
    given = {key: value for key, value in PENDULUM.items() if key != missing}
    with pytest.raises(TypeError, match=missing):
        algo(MODULES[algo].MlpPolicy, "Pendulum-v1", policy_kwargs=given, **QUICK)
