"""Agents of every algorithm under canonical, product and soft: exact, or exact at the start, and cheap."""

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

from equirl import Symmetry, UserError, equivariance_error, resolve_symmetry, symmetrize
from equirl.agents import actor_critic, dqn, qrdqn, sac, td3
from equirl.canonicalizers import Canonicalize, CentroidScores, GridScores, KeyScores
from equirl.multigroup import Product
from equirl.soft import SoftEquitune

ALGORITHMS: dict[str, Any] = {
    "dqn": (sb3.DQN, dqn),
    "qrdqn": (QRDQN, qrdqn),
    "ppo": (sb3.PPO, actor_critic),
    "a2c": (sb3.A2C, actor_critic),
    "sac": (sb3.SAC, sac),
    "td3": (sb3.TD3, td3),
}
OFF_POLICY: dict[str, Any] = {"buffer_size": 200, "learning_starts": 20, "batch_size": 8}
ON_POLICY: dict[str, Any] = {"n_steps": 32}
QUICK: dict[str, Any] = {
    **dict.fromkeys(("dqn", "qrdqn", "sac", "td3"), OFF_POLICY),
    "ppo": {**ON_POLICY, "batch_size": 16, "n_epochs": 2},
    "a2c": ON_POLICY,
}
LEFT, UP = {"signs": [-1, 1]}, {"signs": [1, -1]}
MIRRORS: dict[bool, Any] = {  # of two coordinates; actions are left, right, up, down, or speeds
    False: [(LEFT, [1, 0, 2, 3]), (UP, [0, 1, 3, 2])],
    True: [(LEFT, LEFT), (UP, UP)],
}
PICTURE = spaces.Box(0, 255, (3, 12, 12), np.uint8)
FLIPS: dict[bool, Any] = {
    False: [("flip_x", [1, 0, 2, 3]), ("flip_y", [0, 1, 3, 2])],
    True: [("flip_x", LEFT), ("flip_y", UP)],
}


class Walk(gym.Env[Any, Any]):
    """Random observations of a space, and a reward that knows of no symmetry."""

    def __init__(self, space: spaces.Space[Any], continuous: bool) -> None:
        self.observation_space, self.steps = space, 0
        self.action_space = spaces.Box(-1, 1, (2,)) if continuous else spaces.Discrete(4)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.steps == 10, {}


def spaces_of(case: str, continuous: bool) -> tuple[Any, Any, str]:
    """Return the space of observations, a symmetry whose group is C2xC2, and the policy's name."""
    vector = spaces.Box(-2, 2, (2,))
    if case == "vector":
        return vector, Symmetry.generated_by(*MIRRORS[continuous]), "MlpPolicy"
    if case == "picture":
        return PICTURE, Symmetry.generated_by(*FLIPS[continuous]), "CnnPolicy"
    both = spaces.Dict({"eye": PICTURE, "feet": vector, "time": spaces.Discrete(3)})
    parts: dict[str, Any] = {
        "eye": Symmetry.generated_by(FLIPS[continuous][0]),
        "feet": Symmetry.generated_by(MIRRORS[continuous][1]),
        "time": "none",
    }
    return both, Symmetry.per_key(parts), "MultiInputPolicy"


def build(algo: str, case: str, method: str, **options: Any) -> Any:
    cls, module = ALGORITHMS[algo]
    space, symmetry, policy = spaces_of(case, algo in ("sac", "td3"))
    keywords: dict[str, Any] = {"symmetry": symmetry, "method": method, "symmetrizer_kwargs": options}
    if case != "picture":
        keywords["net_arch"] = [16]
    env = Walk(space, algo in ("sac", "td3"))
    return cls(getattr(module, policy), env, policy_kwargs=keywords, seed=0, **QUICK[algo])


@cache
def trained(algo: str, case: str, method: str) -> Any:
    return build(algo, case, method).learn(32)


def stacked(rows: list[Any]) -> Any:
    return (
        {key: np.stack([row[key] for row in rows]) for key in rows[0]} if isinstance(rows[0], dict) else np.stack(rows)
    )


def points(agent: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return observations of which some are left as they are by some elements or by all."""
    policy, rep = agent.policy, agent.policy.symmetry.observation
    agent.observation_space.seed(0)
    rows = [agent.observation_space.sample() for _ in range(8)]
    x = policy.acting.movable(policy.obs_to_tensor(stacked(rows))[0])
    orbit = rep.orbit(x)

    def sums(part: Any) -> Any:
        still = [part[: 2 * k].max(0).values if part.dtype == torch.uint8 else part[: 2 * k].mean(0) for k in (1, 2)]
        return torch.cat([part[0], *still, torch.zeros_like(part[0])]).to(part.dtype)

    found = {key: sums(part) for key, part in orbit.items()} if isinstance(orbit, dict) else sums(orbit)
    if dtype == torch.float32:
        return found
    parts = found.items() if isinstance(found, dict) else [("", found)]
    double = {key: part if part.dtype == torch.uint8 else part.to(dtype) for key, part in parts}
    return double if isinstance(found, dict) else double[""]


def largest_error(agent: Any, dtype: torch.dtype = torch.float32) -> float:
    policy = agent.policy
    x, acting = points(agent, dtype), policy.acting
    kept = acting.movable
    acting.movable = lambda obs: obs  # they are movable already
    try:
        return max(equivariance_error(*each) for each in policy.measured(x).values())
    finally:
        acting.movable = kept


CASES = ("vector", "picture", "dictionary")
COVERED = ("a2c", "qrdqn", "td3")  # their pictures and dictionaries take the same code as those of PPO, DQN and SAC
EVERY = [
    pytest.param(algo, case, marks=[pytest.mark.slow] if algo in COVERED and case != "vector" else [])
    for algo in ALGORITHMS
    for case in CASES
]


@pytest.mark.parametrize("method", ["canonical", "product"])
@pytest.mark.parametrize(("algo", "case"), EVERY)
def test_agents_are_equivariant_at_fixed_points_before_and_after_training_and_loading(algo, case, method, tmp_path):
    fresh, agent = build(algo, case, method), trained(algo, case, method)
    agent.save(tmp_path / "agent")
    loaded = ALGORITHMS[algo][0].load(tmp_path / "agent")
    for each in (fresh, agent, loaded):
        each.policy.set_training_mode(False)
        assert largest_error(each) <= 1e-5
    x = points(agent)
    assert torch.equal(agent.policy.scores(x), loaded.policy.scores(x))
    changed = zip(fresh.policy.state_dict().values(), agent.policy.state_dict().values(), strict=True)
    assert any(not torch.equal(before, after) for before, after in changed)


@pytest.mark.parametrize("method", ["equitune", "equizero", "lambda", "soft"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_everything_is_on_the_device(algo, method):
    """Tensors without numbers stand for those of a GPU: nothing of the CPU may be among them."""
    agent = build(algo, "dictionary", method)
    x = {key: part.to("meta") for key, part in points(agent).items()}
    policy = agent.policy.to("meta")
    for mode in (True, False):
        policy.set_training_mode(mode)
        assert policy.scores(x).device.type == "meta"


@pytest.mark.parametrize("method", ["canonical", "product"])
@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_the_errors_are_rounding(algo, method):
    agent = build(algo, "vector", method)
    agent.policy.double()
    assert largest_error(agent, torch.float64) <= 1e-12


@pytest.mark.parametrize(("algo", "case"), EVERY)
def test_soft_agents_start_exactly_and_stay_so_until_they_have_learnt(algo, case):
    fresh = build(algo, case, "soft")
    fresh.policy.set_training_mode(False)
    assert largest_error(fresh) <= 1e-5
    weights = trained(algo, case, "soft").policy.element_weights(
        trained(algo, case, "soft").policy.obs_to_tensor(fresh.observation_space.sample())[0]
    )
    assert torch.allclose(weights.sum(0), torch.ones_like(weights[0]), atol=1e-6)
    assert torch.allclose(weights[1:], weights[1:2].expand_as(weights[1:]))  # the average, and the plain output beside


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_a_soft_agent_is_not_equivariant_where_its_gate_is_open(algo):
    agent = build(algo, "vector", "soft")
    assert largest_error(agent) <= 1e-5
    for part in agent.policy.modules():
        if isinstance(part, SoftEquitune):
            last: Any = part.score[-1]
            nn.init.constant_(last.bias, 0.5)
    assert largest_error(agent) > 1e-3


def parts_of(agent: Any, kind: Any) -> list[Any]:
    return [part for part in agent.policy.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
@pytest.mark.parametrize("case", CASES)
def test_acting_takes_one_forward_or_the_sum_of_orders(algo, case):
    """Of every observation: one in the pose that is chosen; 2 + 2 views for two mirrors, where all would be 4."""
    for method, count in (("canonical", 1), ("product", 4)):
        agent = build(algo, case, method)
        seen: list[int] = []
        extractor = agent.policy.acting.features_extractor
        extractor.register_forward_hook(lambda _, __, y, seen=seen: seen.append(len(y)))
        agent.observation_space.seed(1)
        agent.predict(stacked([agent.observation_space.sample() for _ in range(5)]), deterministic=True)
        assert seen == [5 * count]


@pytest.mark.parametrize("algo", ["dqn", "ppo", "sac"])
def test_scores_learn_in_every_algorithm(algo):
    for method, kind in (("canonical", Canonicalize), ("product", Product)):
        before, after = (
            parts_of(each, kind) for each in (build(algo, "vector", method), trained(algo, "vector", method))
        )
        one, other = (nn.utils.parameters_to_vector(each[0].scores.parameters()) for each in (before, after))
        assert not torch.equal(one, other)


def test_scores_fit_the_observations():
    of = {case: parts_of(build("dqn", case, "canonical"), Canonicalize)[0].scores for case in CASES}
    assert type(of["picture"]) is CentroidScores
    assert type(of["dictionary"]) is KeyScores
    assert of["dictionary"].names == ["eye", "feet"]  # time stands still
    assert type(parts_of(build("dqn", "picture", "product"), Product)[0].scores) is GridScores
    critic = parts_of(build("sac", "vector", "canonical"), Canonicalize)[1]
    assert critic.scores.names == ["observation"]  # actions have no part in the choice


def test_a_prior_takes_the_place_of_alignment():
    assert [part.align for part in parts_of(build("dqn", "vector", "canonical"), Canonicalize)] == [1.0, 1.0]
    assert [part.align for part in parts_of(build("dqn", "vector", "canonical", prior=0.1), Canonicalize)] == [0.0, 0.0]


def test_a_key_without_a_group_is_named():
    space, _, _ = spaces_of("dictionary", False)
    partly = Symmetry.per_key({"feet": Symmetry.generated_by(MIRRORS[False][1])})
    with pytest.raises(UserError) as caught:
        dqn.MultiInputPolicy(space, spaces.Discrete(4), lambda _: 1e-3, symmetry=partly, method="product")
    assert "observation keys ['eye', 'feet', 'time']: expected ['feet'], a representation each" in str(caught.value)
    with pytest.raises(UserError, match="expected a mapping from each key to its symmetry"):
        Symmetry.per_key({})


def test_symmetries_of_keys_compose_on_actions():
    _, symmetry, _ = spaces_of("dictionary", False)
    assert str(symmetry.group) == "C2xC2xC1"
    x = {"eye": torch.rand(1, 3, 4, 4), "feet": torch.rand(1, 2), "time": torch.rand(1, 3)}
    moved = symmetry.observation(3, x)
    assert torch.equal(moved["eye"], x["eye"].flip(-1))
    assert torch.equal(moved["feet"], x["feet"] * torch.tensor([1.0, -1.0]))
    assert symmetry.action(3, torch.arange(4)[None]).tolist() == [[1, 0, 3, 2]]
    clash = {"a": Symmetry.generated_by((LEFT, [1, 0, 2, 3])), "b": Symmetry.generated_by((UP, [0, 2, 1, 3]))}
    with pytest.raises(UserError, match="do not commute"):
        Symmetry.per_key(clash)
    assert resolve_symmetry(dict(symmetry)) == symmetry


@pytest.mark.parametrize("method", ["canonical", "product", "soft"])
def test_trained_agents_of_sb3_take_them_and_give_them_back(method):
    plain = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, seed=0)
    agent = symmetrize(plain, symmetry="CartPole-v1", method=method).learn(32)
    back = symmetrize(agent, symmetry="CartPole-v1", method="identity")
    assert torch.equal(back.policy.state_dict()["action_net.weight"], agent.policy.state_dict()["action_net.weight"])
    assert set(back.policy.state_dict()) == set(plain.policy.state_dict())
