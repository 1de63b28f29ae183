"""method="native": networks of DQN and QR-DQN that are equivariant by construction, at one forward of a batch."""

import json
import sys
from copy import deepcopy
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl import Permutation, Symmetry, Trivial, dihedral, equivariance_error, symmetrize
from equirl import cli as command_line
from equirl import training as training_module
from equirl.agents import actor_critic, dqn, qrdqn, sac, td3
from equirl.agents.extractors import SmallCNN
from equirl.agents.native import NativeExtractor, OrbitFeatures
from equirl.agents.wrapping import symmetrize_model
from equirl.config import validate
from equirl.convolutions import Collapse
from equirl.errors import UserError
from equirl.evaluation import methods_for
from equirl.layers import Project
from equirl.methods import METHODS, make_symmetrizer
from equirl.networks import NativeCNN
from tests._elsewhere import run_code

QUICK: dict[str, Any] = {
    "seed": 0,
    "buffer_size": 100,
    "learning_starts": 16,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "target_update_interval": 20,
}
POLICIES = {"dqn": (DQN, dqn), "qrdqn": (QRDQN, qrdqn)}


class Noise(gym.Env):
    """Observations of a space drawn at random; the first action earns 1."""

    def __init__(self, observation_space, actions):
        self.observation_space, self.action_space = observation_space, spaces.Discrete(actions)
        observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action == 0), False, self.steps >= 5, {}


def picture(channels, side, dtype: Any = np.uint8):
    return spaces.Box(0, 255 if dtype == np.uint8 else 1, (channels, side, side), dtype)


def d4_without_actions():
    turn = Symmetry.generated_by(("rot90", [1, 2, 3, 0]), ("flip_x", [0, 3, 2, 1])).observation
    return Symmetry(turn, Trivial(dihedral(4)))


TURN = [1, 2, 3, 0]
VECTOR = spaces.Box(-1, 1, (2,))
DICT = {"heading": spaces.Discrete(4), "vector": VECTOR, "small": picture(1, 6), "two": spaces.MultiDiscrete([2, 2])}
QUARTER = {"permutation": [1, 0], "signs": [1, -1]}
IN_DICT = {"heading": TURN, "vector": QUARTER, "small": "rot90", "two": [2, 3, 1, 0]}

# name: observations, number of actions, policy, symmetry
CASES: dict[str, Any] = {
    "signs": (spaces.Box(-1, 1, (4,)), 2, "MlpPolicy", lambda: "CartPole-v1"),
    "centre": (VECTOR, 2, "MlpPolicy", lambda: {"generators": [[{"signs": [-1, 1], "centre": [0.5, 0]}, [1, 0]]]}),
    "permutation": (spaces.Discrete(4), 4, "MlpPolicy", lambda: Symmetry.generated_by((TURN, TURN))),
    "rows": (spaces.Box(-1, 1, (3, 2)), 4, "MlpPolicy", lambda: Symmetry.generated_by((QUARTER, TURN))),
    "C4": (picture(3, 5), 4, "CnnPolicy", lambda: "equirl/GridWorld-v0:C4"),
    "D4": (picture(3, 5), 4, "CnnPolicy", lambda: "equirl/GridWorld-v0"),
    "C2": (picture(2, 44), 3, "CnnPolicy", lambda: Symmetry.generated_by(("flip_x", [1, 0, 2]))),
    "flat": (picture(1, 5), 4, "MlpPolicy", lambda: Symmetry.generated_by(("rot90", TURN))),
    "dict": (spaces.Dict(DICT), 4, "MultiInputPolicy", lambda: Symmetry.generated_by(({"keys": IN_DICT}, TURN))),
    "same actions": (picture(1, 5), 3, "CnnPolicy", d4_without_actions),
    "none": (picture(1, 5), 3, "CnnPolicy", lambda: "none"),
    "none of vectors": (VECTOR, 3, "MlpPolicy", lambda: "none"),
    "none of dict": (spaces.Dict(DICT), 4, "MultiInputPolicy", lambda: "none"),
}


def build(algo, case, method="native", policy_kwargs=None, **kwargs):
    space, actions, policy, symmetry = CASES[case]
    model, module = POLICIES[algo]
    own = {"n_quantiles": 5} if algo == "qrdqn" else {}
    own |= {"symmetry": symmetry(), "method": method, **(policy_kwargs or {})}
    return model(getattr(module, policy), Noise(space, actions), policy_kwargs=own, **{**QUICK, **kwargs})


@cache
def trained(algo, case):
    """Return an agent that tests may read but must not change."""
    return build(algo, case).learn(40)


def observations_of(space, n=8):
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return torch.randint(int(space.n), (n, 1))
    if isinstance(space, spaces.MultiDiscrete):
        return torch.randint(2, (n, len(space.nvec)))
    if space.dtype == np.uint8:
        return torch.randint(256, (n, *space.shape), dtype=torch.uint8)
    return torch.randn(n, *space.shape)


def mapped(tree, f):
    return {key: f(part) for key, part in tree.items()} if isinstance(tree, dict) else f(tree)


def with_fixed_points(net):
    """Return movable observations, as floating-point numbers, and as many that every element leaves as they are."""
    seen = mapped(net.movable(observations_of(net.observation_space)), lambda part: part.double())
    fixed = mapped(net.symmetry.observation.orbit(seen), lambda images: images.mean(0))
    if isinstance(seen, dict):
        return {key: torch.cat([part, fixed[key]]) for key, part in seen.items()}
    return torch.cat([seen, fixed])


def error_of(net, dtype):
    """Return the equivariance error of what lies behind SB3's preprocessing, in a data type."""
    net, rep = deepcopy(net).to(dtype), net.symmetry.observation

    def f(x):
        return net._shaped(net.head(net.features_extractor(x)))

    x = mapped(with_fixed_points(net), lambda part: part.to(dtype))
    x = mapped(x, lambda part: part / 255 if part.ndim == 4 else part)
    return equivariance_error(f, rep, net.symmetry.action, x)


def outputs(net, seen):
    net.set_training_mode(False)
    with torch.no_grad():
        return net(seen)


# Equivariance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algo", POLICIES)
def test_networks_are_equivariant_before_and_after_learning(algo, case):
    fresh, learned = build(algo, case), trained(algo, case)
    before, after = fresh.policy.nets[0].state_dict(), learned.policy.nets[0].state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))
    for model in (fresh, learned):
        assert model.policy.equivariance_error(observations_of(model.observation_space)) <= 1e-5
        for net in model.policy.nets:
            assert error_of(net, torch.float32) <= 1e-5
            assert error_of(net, torch.float64) <= 1e-12
            assert type(net.head[-1]) is Project


@pytest.mark.parametrize("case", ["signs", "C4", "dict"])
def test_a_weight_that_leaves_the_expansion_is_noticed(case):
    net = deepcopy(trained("dqn", case).q_net)
    layer = net.head[-1]
    made = layer.expand
    layer.expand = lambda: (made()[0] + 0.1 * torch.randn(made()[0].shape).to(made()[0]), made()[1])
    assert error_of(net, torch.float32) > 1e-3


@pytest.mark.parametrize("case", ["centre", "C4", "dict", "same actions"])
@pytest.mark.parametrize("algo", POLICIES)
def test_outputs_depend_on_all_that_is_seen_and_differ_between_actions(algo, case):
    net = build(algo, case).policy.nets[0]
    seen = net.movable(observations_of(net.observation_space))
    if isinstance(seen, dict):
        for key, part in seen.items():
            assert not torch.allclose(net.symmetrized(seen), net.symmetrized({**seen, key: part.flip(0)}))
    else:
        assert not torch.allclose(net.symmetrized(seen), net.symmetrized(seen.flip(0)), atol=1e-4)
    found = net.symmetrized(seen)
    assert found.shape == (8, *((5,) if algo == "qrdqn" else ()), net.action_space.n)
    assert (found.std(-1).amax(0) > 1e-3).all()


def test_pictures_of_a_dictionary_pass_convolutions_and_the_rest_stays_as_it_is():
    extractor = build("dqn", "dict").q_net.features_extractor
    kinds = {key: type(part) for key, part in extractor.extractors.items()}
    assert kinds == dict.fromkeys(("heading", "two", "vector"), OrbitFeatures) | {"small": NativeCNN}
    assert extractor.features_dim == 4 * (4 + 4 + 2) + 256


# Cost


@pytest.mark.parametrize("case", ["signs", "C4", "D4", "C2"])
def test_at_equal_widths_there_are_as_many_weights_as_plain_by_the_order(case):
    native, plain = build("dqn", case), build("dqn", case, "identity")
    count = [sum(p.numel() for p in model.q_net.parameters()) for model in (native, plain)]
    assert 0.9 <= count[1] / count[0] / len(native.policy.symmetry.group) <= 1.15
    assert native.q_net.features_dim == plain.q_net.features_dim


def test_width_is_a_factor_for_every_layer():
    kwargs = {"net_arch": [64]}
    nets = [
        build("dqn", "C4", policy_kwargs=kwargs | more).q_net for more in ({}, {"symmetrizer_kwargs": {"width": 2}})
    ]
    one, two = [[m.weight.shape for m in net.modules() if hasattr(m, "expand")] for net in nets]
    assert [shape[0] for shape in one] == [8, 8, 8, 32, 16, 4]
    assert [wide[0] / narrow[0] for narrow, wide in zip(one[:-1], two[:-1], strict=True)] == [2] * 5
    assert nets[1].features_dim == 256


@pytest.mark.parametrize("case", ["none", "none of vectors"])
def test_without_a_symmetry_it_is_the_plain_network(case):
    native, plain = build("dqn", case), build("dqn", case, "identity")
    ours = [p for p in native.q_net.parameters() if p.numel()]
    if case == "none":
        theirs = list(plain.q_net.parameters())
        assert [a.numel() for a in ours] == [b.numel() for b in theirs]
        with torch.no_grad():
            for a, b in zip(ours, theirs, strict=True):
                a.copy_(b.reshape(a.shape))
        seen = observations_of(native.observation_space)
        assert torch.allclose(native.q_net(seen), plain.q_net(seen), atol=1e-5)
    assert sum(p.numel() for p in ours) == sum(p.numel() for p in plain.q_net.parameters())


@pytest.mark.parametrize("case", ["signs", "D4", "dict"])
@pytest.mark.parametrize("algo", POLICIES)
def test_a_batch_passes_the_network_once_as_it_is(algo, case):
    model = build(algo, case)
    net, batches = model.policy.nets[0], []
    net.head[-1].register_forward_hook(lambda layer, inputs, output: batches.append(len(output)))
    net(observations_of(net.observation_space, n=7))
    assert batches == [7]
    several = mapped(observations_of(net.observation_space, n=3), torch.Tensor.numpy)
    if isinstance(several, dict):
        several["heading"] = several["heading"][:, 0]
    model.predict(several, deterministic=True)
    assert batches == [7, 3]


def test_acting_follows_every_change_of_the_weights():
    model = build("dqn", "C4")
    seen = observations_of(model.observation_space, n=4).numpy()
    net = model.q_net

    def acts_as_told():
        kept = model.policy.predict(seen, deterministic=True)[0], outputs(net, torch.as_tensor(seen))
        again = deepcopy(net)  # a copy has nothing kept
        assert torch.equal(kept[1], outputs(again, torch.as_tensor(seen)))
        assert np.array_equal(kept[0], outputs(again, torch.as_tensor(seen)).argmax(-1))
        return kept[1]

    first = acts_as_told()
    model.learn(40)  # by fused Adam, which a tensor's version does not count
    assert not torch.equal(first, acts_as_told())
    model.policy.load_state_dict(build("dqn", "C4", seed=1).policy.state_dict())
    before = acts_as_told()
    layer = next(layer for layer in net.modules() if isinstance(layer, Collapse))
    layer.weight.data[:, 7] += 3.0  # a few entries among thousands, uncounted too
    assert not torch.equal(before, acts_as_told())


def test_modes_are_not_walked():
    for case in ("dict", "C4", "signs"):
        net = build("dqn", case).q_net
        net.set_training_mode(True)
        assert net._mode_readers == []


def test_adam_is_fused():
    assert build("dqn", "C4").policy.optimizer.param_groups[0]["fused"] is True


# What else the policies say of themselves


@pytest.mark.parametrize("algo", POLICIES)
def test_the_network_inside_is_as_symmetric_as_the_agent(algo):
    policy = trained(algo, "C4").policy
    seen = torch.randint(256, (12, 3, 5, 5), dtype=torch.uint8)
    assert policy.greedy_disagreement(seen) == policy.greedy_disagreement(seen, plain=True) == 0.0
    assert torch.equal(policy.acting.plain(seen), policy.acting(seen))
    assert policy.scores(seen).shape == (12, 4)
    assert torch.equal(policy.actions(seen, plain=True), policy.actions(seen))
    weights = policy.element_weights(seen)
    assert torch.equal(weights, torch.tensor([1.0, 0, 0, 0])[:, None].expand(4, 12))


# Saving


READ_ELSEWHERE = """
import sys, torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
for path in sys.argv[1:]:
    model = (QRDQN if "qrdqn" in path else DQN).load(path)
    seen = torch.load(path + ".seen")
    for net in model.policy.nets:
        net.set_training_mode(False)
    with torch.no_grad():
        torch.save([net(seen) for net in model.policy.nets], path + ".outputs")
"""


def test_models_load_bit_for_bit_in_another_process(tmp_path):
    expected, nets = {}, {}
    for algo, case in [("dqn", "D4"), ("dqn", "dict"), ("dqn", "signs"), ("qrdqn", "C4")]:
        model = trained(algo, case)
        path, seen = tmp_path / f"{algo}-{case}.zip", observations_of(model.observation_space)
        model.save(path)
        torch.save(seen, f"{path}.seen")
        expected[path] = [outputs(net, seen) for net in model.policy.nets]
        nets[path] = model.policy.nets
    done = run_code(READ_ELSEWHERE, *expected)
    assert (done.returncode, done.stderr) == (0, "")
    for path, values in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(values, torch.load(f"{path}.outputs"), strict=True)), path


@pytest.mark.parametrize("case", ["signs", "C4", "dict", "none"])
@pytest.mark.parametrize("algo", POLICIES)
def test_policies_and_networks_save_and_load_alone(algo, case, tmp_path):
    kwargs = {"symmetrizer_kwargs": {"width": 1.5}}
    policy = build(algo, case, policy_kwargs=kwargs).policy
    seen = observations_of(policy.observation_space)
    policy.save(tmp_path / "policy.pt")
    policy.acting.save(tmp_path / "net.pt")
    again, net = type(policy).load(tmp_path / "policy.pt"), type(policy.acting).load(str(tmp_path / "net.pt"))
    expected = outputs(policy.acting, seen)
    assert torch.equal(outputs(again.acting, seen), expected)
    assert torch.equal(outputs(net, seen), expected)


def test_a_loaded_agent_goes_on_learning(tmp_path):
    trained("qrdqn", "D4").save(tmp_path / "model.zip")
    model = QRDQN.load(tmp_path / "model.zip", env=Noise(picture(3, 5), 4))
    before = deepcopy(model.policy.state_dict())
    model.learn(40)
    assert any(not torch.equal(before[key], now) for key, now in model.policy.state_dict().items())
    assert error_of(model.policy.acting, torch.float32) <= 1e-5


# Refusals


class Blind(FlattenExtractor):
    """Neither one that flattens nor a native one."""


@pytest.mark.parametrize(
    ("case", "kwargs", "words"),
    [
        ("C4", {"features_extractor_class": SmallCNN}, "SmallCNN with method 'native': expected none"),
        ("C4", {"features_extractor_class": NatureCNN}, "NatureCNN with method 'native': expected none"),
        ("signs", {"features_extractor_class": Blind}, "Blind with method 'native': expected none"),
        ("C4", {"symmetrizer_kwargs": {"width": 0}}, "width 0: expected a number from 0.25 to 16"),
        ("C4", {"symmetrizer_kwargs": {"width": 1e9}}, "width 1000000000.0: expected a number from 0.25"),
        ("signs", {"symmetrizer_kwargs": {"width": "2"}}, "width '2': expected a number from 0.25"),
        ("signs", {"symmetrizer_kwargs": {"widht": 2}}, "option of native 'widht': .* did you mean 'width'"),
        (
            "signs",
            {"symmetrizer_kwargs": {"orbit_samples": 1}},
            "option of native 'orbit_samples': expected one of width",
        ),
        ("C4", {"features_extractor_kwargs": {"width": 16}}, "width in features_extractor_kwargs with method 'native'"),
        ("C4", {"features_extractor_kwargs": {"feature_dim": 16}}, "'feature_dim': .* did you mean 'features_dim'"),
        ("C4", {"features_extractor_kwargs": {"features_dim": 0}}, "features_dim 0: expected a whole number"),
        ("signs", {"double_selection": True}, "double_selection with method 'native'"),
        ("signs", {"method": "nativ"}, "unknown method 'nativ'"),
        (
            "C4",
            {"method": "equitune", "features_extractor_class": NativeExtractor},
            "NativeExtractor with method 'equi",
        ),
    ],
)
@pytest.mark.parametrize("algo", POLICIES)
def test_a_mistake_is_one_line(algo, case, kwargs, words):
    with pytest.raises(UserError, match=words):
        build(algo, case, policy_kwargs=kwargs)


def test_pictures_that_strides_leave_over_are_one_line():
    turn = Symmetry.generated_by(("rot90", TURN))
    with pytest.raises(UserError, match=r"all layers of 'nature' fit 36, 44, 52 rows and columns"):
        DQN(dqn.CnnPolicy, Noise(picture(1, 40), 4), policy_kwargs={"symmetry": turn, "method": "native"})
    space, _, _, symmetry = CASES["dict"]
    with pytest.raises(UserError, match="acts on dictionaries: expected a Dict space"):
        DQN(dqn.MlpPolicy, Noise(space, 4), policy_kwargs={"symmetry": symmetry(), "method": "native"})


@pytest.mark.parametrize(
    ("algorithm", "module", "env"),
    [
        (PPO, actor_critic, "CartPole-v1"),
        (A2C, actor_critic, "CartPole-v1"),
        (PPO, actor_critic, "equirl/GridWorld-v0"),
        (SAC, sac, "Pendulum-v1"),
        (TD3, td3, "Pendulum-v1"),
    ],
)
def test_other_algorithms_refuse_it(algorithm, module, env):
    policy = module.CnnPolicy if "Grid" in env else module.MlpPolicy
    with pytest.raises(UserError, match=r"method 'native': expected one of identity, .*; native is for fresh"):
        algorithm(policy, env, policy_kwargs={"symmetry": env, "method": "native"})


def test_it_wraps_nothing():
    swap = Permutation(dihedral(1), [[0, 1], [1, 0]])
    plain, native = build("dqn", "signs", "identity"), build("dqn", "signs")
    assert "native" not in METHODS
    for wrap in (
        lambda: make_symmetrizer("native", swap, swap),
        lambda: symmetrize(nn.Linear(2, 2), method="native", input=swap, output=swap),
        lambda: symmetrize(plain, "CartPole-v1", "native"),
        lambda: symmetrize_model(native, "CartPole-v1", "native"),
    ):
        with pytest.raises(UserError, match="method 'native': expected one of identity, equitune"):
            wrap()
    with pytest.raises(UserError, match="method 'equitune' for an agent trained under 'native'"):
        symmetrize_model(native, "CartPole-v1", "equitune")


@pytest.mark.parametrize(
    ("names", "own", "words"),
    [
        ("all,identity", "native", "expected all alone"),
        ("identity", "native", "'identity' for a native agent: expected 'native'"),
        ("native,equitune", "native", "'equitune' for a native agent: expected 'native'"),
        ("equitune,native", "equitune", "method 'native': expected one of all, identity"),
    ],
)
def test_a_native_agent_is_compared_with_no_other_method(names, own, words):
    with pytest.raises(UserError, match=words):
        methods_for(names, own)
    assert methods_for("all", "native") == methods_for("native", "native") == methods_for("native, native", "native")
    assert methods_for("all", "equitune") == ["identity", "equitune", "equizero"]


def test_configurations_name_it_where_it_is_built():
    plain = {"policy": "MlpPolicy", "n_timesteps": 10}
    assert validate("dqn", {**plain, "method": "native"})["method"] == "native"
    assert validate("qrdqn", {**plain, "method": "native"})["method"] == "native"
    for algo in ("ppo", "a2c", "sac", "td3"):
        with pytest.raises(UserError, match=r"method 'native': expected one of identity, .*, soft; native is for"):
            validate(algo, {**plain, "method": "native"})
    with pytest.raises(UserError, match=r"unknown method 'natve': .*; did you mean 'native'\?"):
        validate("dqn", {**plain, "method": "natve"})


# The command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a short native run."""
    logs = tmp_path_factory.mktemp("logs")
    args = ["train", "--env", "equirl/GridWorld-v0", "--method", "native", "-n", "300", "-f", str(logs), "--json"]
    args += ["-P", "env_kwargs:dict(size=5, n_walls=2)", "-P", "learning_starts:100", "-P", "buffer_size:500"]
    args += ["-P", "policy_kwargs:dict(net_arch=[256, 256], symmetrizer_kwargs=dict(width=0.5))", "--eval-freq", "300"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "FINAL_EPISODES", 2)
        patch.setattr(sys, "argv", ["equirl", *args])
        with pytest.raises(SystemExit) as left:
            command_line.main()
    assert left.value.code == 0
    return logs / "dqn" / "equirl-GridWorld-v0_1"


def test_a_native_run_is_read_again(run, equirl):
    said = equirl("evaluate", run, "--methods", "all", "--episodes", "2", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert [row["method"] for row in found["methods"]] == ["native"]
    assert found["methods"][0]["equivariance_error"] <= 1e-5
    assert found["recommended"] == "native"
    assert list(run.glob("**/events.out.tfevents*")) != []


def test_a_native_run_goes_on_but_for_its_method_and_symmetry(run, equirl, tmp_path):
    went = equirl("train", "-i", run, "-n", "60", "-f", tmp_path / "logs", "--eval-freq", "60", "--json")
    assert went.code == 0, went.err
    changes = (
        ("train", "-i", run, "--method", "equitune"),
        ("train", "-i", run, "--symmetry", "equirl/GridWorld-v0:C4"),
        ("wrap", run, "-o", tmp_path / "wrapped.zip", "--method", "native"),
        ("wrap", run, "-o", tmp_path / "wrapped.zip", "--method", "equitune"),
        ("evaluate", run, "--methods", "equitune"),
        ("train", "--algo", "ppo", "--method", "native"),
    )
    for args in changes:
        said = equirl(*args, *(["-f", tmp_path / "logs"] if args[0] == "train" else []))
        assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said.err
        assert "native" in said.err
    assert not (tmp_path / "wrapped.zip").exists()
