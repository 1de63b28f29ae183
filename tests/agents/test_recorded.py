"""Recorded agents learn and act as those that are not.

Without a GPU the operations are recorded by `make_fx`, which like a CUDA graph does nothing while it records, does it
again on the same memory, and fails where an operation depends on numbers.
"""

import pickle
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl._chains import Chain
from equirl._expanded import Expanded
from equirl.agents import recorded
from equirl.agents.dqn import DQN, CnnPolicy, MlpPolicy
from equirl.agents.recorded import BEFORE, METHODS, Recording
from equirl.errors import UserError

COPIED = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
"""How numbers of Python's or NumPy's become tensors: on a GPU by a copy that cannot be recorded."""
CASES: dict[str, Any] = {
    "CartPole": (MlpPolicy, "CartPole-v1", "CartPole-v1", {"net_arch": [16]}),
    "GridWorld": (CnnPolicy, "equirl/GridWorld-v0", "equirl/GridWorld-v0:C4", {}),
}


class StandIn:
    """Records operations on the CPU, and counts what it recorded and replayed."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, function, on):
        graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)()
        assert not [node for node in graph.graph.nodes if node.target in COPIED]
        self.recorded += 1

        def replay():
            self.replayed += 1
            with torch.no_grad():
                return graph().clone()

        return replay


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(recorded, "DEVICE", "cpu")
    monkeypatch.setattr(recorded, "record", made)
    monkeypatch.setattr(recorded, "on", lambda device: "here")
    monkeypatch.setattr(recorded, "beside", lambda function, on: function())
    monkeypatch.setattr(Chain, "serves", lambda self, x: False)  # as on a GPU, and so is this:
    monkeypatch.setattr(Expanded, "expanded", lambda self: self.expand())
    return made


def build(case="CartPole", method="equitune", device="cpu", policy_kwargs=None, **kwargs):
    policy, env, symmetry, more = CASES[case]
    given = {"symmetry": symmetry, "method": method, "optimizer_kwargs": {"eps": 1e-2}, **more, **(policy_kwargs or {})}
    chosen: Any = {"learning_starts": 20, "batch_size": 8, "train_freq": 4, "gradient_steps": 2, "learning_rate": 1e-2}
    chosen |= {"buffer_size": 200, "seed": 3, "target_update_interval": 12, "exploration_final_eps": 0.3, **kwargs}
    return DQN(policy, gym.make(env), policy_kwargs=given, device=device, **chosen)


def numbers(model):
    """Return weights of both networks, and Adam's moments and counters, as one vector."""
    own = model.policy.optimizer.state
    moments = [own[p][key] for p in model.q_net.parameters() for key in ("exp_avg", "exp_avg_sq", "step")]
    every = [*model.q_net.state_dict().values(), *model.q_net_target.state_dict().values(), *moments]
    return torch.cat([each.detach().double().reshape(-1).cpu() for each in every])


def assert_equal(one, other):
    assert torch.allclose(numbers(one), numbers(other), rtol=1e-4, atol=1e-5)


def graphs(model):
    return [each for each in model.policy.recordings.made.values() if isinstance(each, Recording)]


@pytest.mark.parametrize(("case", "method"), [*(("CartPole", method) for method in METHODS), ("GridWorld", "equitune")])
def test_an_agent_learns_and_acts_as_it_would_without_graphs(case, method, stand_in):
    as_it_is, ours = build(case, method).learn(60), build(case, method).compile().learn(60)
    assert stand_in.recorded == len(graphs(ours)) == 3  # actions, targets, steps
    assert stand_in.replayed > 3 * BEFORE
    assert_equal(ours, as_it_is)
    fresh = numbers(build(case, method).learn(24))
    assert (numbers(ours) - fresh).abs().max() > 1e-3
    seen = np.stack([ours.observation_space.sample() for _ in range(5)])
    for _ in range(BEFORE + 2):
        assert np.array_equal(ours.predict(seen, deterministic=True)[0], as_it_is.predict(seen, deterministic=True)[0])
    assert ours.policy.equivariance_error(ours.policy.obs_to_tensor(seen)[0]) <= 1e-5


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "given",
    [
        {"learning_rate": lambda rest: 1e-2 * rest},
        {"max_grad_norm": 0.02},
        {"n_steps": 3},
        {"gradient_steps": -1},
        {"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-2, "weight_decay": 0.1}}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_so_it_does_whatever_the_settings(given):
    as_it_is, ours = build(**given).learn(60), build(**given).compile().learn(60)
    assert len(graphs(ours)) == 3
    assert_equal(ours, as_it_is)


@pytest.mark.usefixtures("stand_in")
def test_settings_that_change_meanwhile_are_followed():
    def learn(model):
        model.learn(48)
        model.max_grad_norm = 0.01
        model.policy.optimizer.param_groups[0]["weight_decay"] = 0.5
        model.q_net.q_net[0].bias.requires_grad_(False)
        return model.learn(48, reset_num_timesteps=False)

    ours = learn(build().compile())
    assert len(graphs(ours)) == 4  # the steps anew
    assert_equal(ours, learn(build()))


@pytest.mark.usefixtures("stand_in")
def test_weights_written_to_or_put_elsewhere_are_followed():
    model = build().compile().learn(60)
    seen = np.eye(4, dtype=np.float32)[:1] * 0.1

    def value():
        model.predict(seen, deterministic=True)
        return model.policy.recordings(model._best, torch.as_tensor(seen))

    for _ in range(BEFORE + 1):
        value()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.data.mul_(-1)  # where it is
    assert torch.allclose(value(), model._best(torch.as_tensor(seen)))
    before = len(graphs(model))
    for parameter in model.policy.parameters():
        parameter.data = parameter.data * -2
    for _ in range(BEFORE + 2):
        assert torch.allclose(value(), model._best(torch.as_tensor(seen)))
    assert len(graphs(model)) == before


def with_another_activation(model):
    model.q_net.q_net[1] = nn.Tanh()
    return model


def with_another_optimizer(model):
    model.policy.optimizer = torch.optim.Adam(model.q_net.parameters(), lr=1e-2, eps=1e-2, fused=True)
    return model


def with_another_tolerance(model):
    model.q_net.symmetrizer.tolerance = 10.0  # of equizero: all views tie
    return model


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("equitune", with_another_activation),
        ("equitune", with_another_optimizer),
        ("equizero", with_another_tolerance),
    ],
)
def test_what_is_exchanged_meanwhile_is_followed(method, change):
    ours = change(build(method=method).compile().learn(48)).learn(48, reset_num_timesteps=False)
    as_it_is = change(build(method=method).learn(48)).learn(48, reset_num_timesteps=False)
    assert len(graphs(ours)) == 3
    assert_equal(ours, as_it_is)


def test_there_are_only_so_many_graphs(stand_in, monkeypatch):
    monkeypatch.setattr(recorded, "MOST", 2)
    as_it_is, ours = build().learn(60), build().compile().learn(60)
    assert stand_in.recorded == len(graphs(ours)) == 2
    assert_equal(ours, as_it_is)


@pytest.mark.usefixtures("stand_in")
def test_copies_learn_with_graphs_of_their_own():
    first = build().compile().learn(40)
    env, first.env = first.env, None
    copied = deepcopy(first)
    copied.set_env(env)
    copied.compile().learn(40, reset_num_timesteps=False)
    assert len(graphs(copied)) == 3


@pytest.mark.usefixtures("stand_in")
def test_files_and_copies_are_those_of_an_agent_without_graphs(tmp_path):
    model = build().compile().learn(60)
    model.save(tmp_path / "agent")
    (group,) = model.policy.optimizer.param_groups
    assert group["lr"] == 1e-2
    assert group["capturable"] is False
    loaded, copied = DQN.load(tmp_path / "agent", env=model.get_env()), deepcopy(model.policy)
    policy: Any = loaded.policy
    assert policy.recordings is None
    assert copied.recordings is None
    assert torch.equal(numbers(loaded), numbers(model))
    assert pickle.loads(pickle.dumps(model.policy)).recordings is None
    assert type(policy.optimizer.param_groups[0]["lr"]) is float
    assert len(graphs(loaded.compile().learn(60))) == 3


@pytest.mark.parametrize(
    ("given", "learns", "acts"),
    [
        ({"method": "canonical"}, False, False),
        ({"method": "identity"}, False, False),
        ({"policy_kwargs": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {}}}, False, True),
        ({"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {}}}, False, True),
        ({"policy_kwargs": {"optimizer_kwargs": {"foreach": True}}}, False, True),
    ],
    ids=["canonical", "identity", "RMSprop", "SB3's RMSprop", "foreach"],
)
def test_what_cannot_be_recorded_is_done_as_it_is(given, learns, acts, stand_in):
    as_it_is, ours = build(**given).learn(60), build(**given).compile().learn(60)
    assert (ours.policy.recordings.learns(), ours.policy.recordings.acts()) == (learns, acts)
    assert stand_in.recorded == (2 if acts else 0)
    for one, other in zip(ours.policy.state_dict().values(), as_it_is.policy.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


class Reading(FlattenExtractor):
    """Features that depend on whether a number is positive, which the CPU has to know."""

    def forward(self, observations):
        features = super().forward(observations)
        return features if float(features.sum()) > 0 else 2 * features


@pytest.mark.usefixtures("stand_in")
def test_what_reads_numbers_back_is_one_line():
    model = build(policy_kwargs={"features_extractor_class": Reading}).compile()
    with pytest.raises(UserError, match=r"^recording a CUDA graph failed: .*: expected layers that read no") as caught:
        model.learn(60)
    assert "\n" not in str(caught.value)


def test_whoever_listens_hears_everything(stand_in):
    model = build().compile().learn(60)
    known, heard = stand_in.replayed, []
    handle = model.q_net.q_net[0].register_forward_hook(lambda *_: heard.append(1))
    model.learn(20, reset_num_timesteps=False)
    assert stand_in.replayed == known
    assert len(heard) > 10
    handle.remove()
    model.learn(20, reset_num_timesteps=False)
    assert stand_in.replayed > known


def test_whoever_listens_to_the_optimizer_hears_every_step(stand_in):
    model, heard = build().compile().learn(60), []
    model.policy.optimizer.register_step_post_hook(lambda *_: heard.append(1))
    before = model._n_updates
    model.learn(20, reset_num_timesteps=False)
    assert len(heard) == model._n_updates - before > 5


def test_on_the_cpu_nothing_is_recorded():
    model = build().compile()
    assert not model.policy.recordings.acts()
    assert model._excluded_save_params().count("programs") == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_everything_is_on_the_device(case, method):
    """Tensors without numbers stand for those of a GPU: nothing of the CPU may be among them."""
    model = build(case, method)
    net = model.q_net.to("meta")
    obs = torch.as_tensor(np.stack([model.observation_space.sample() for _ in range(5)])).to("meta")
    actions, targets = torch.zeros(5, 1, dtype=torch.long, device="meta"), torch.zeros(5, 1, device="meta")
    for mode in (False, True):
        net.set_training_mode(mode)
        assert net(obs).device.type == "meta"
    model.policy.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert model._step(obs, actions, targets).device.type == "meta"
    assert {each.grad.device.type for each in net.parameters() if each.grad is not None} == {"meta"}


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_graphs_do_the_same(case, method):
    as_it_is, ours = build(case, method, "cuda").learn(60), build(case, method, "cuda").compile().learn(60)
    assert len(graphs(ours)) == 3
    assert_equal(ours, as_it_is)
    seen = np.stack([ours.observation_space.sample() for _ in range(5)])
    for _ in range(BEFORE + 2):
        assert np.array_equal(ours.predict(seen, deterministic=True)[0], as_it_is.predict(seen, deterministic=True)[0])


@needs_gpu
def test_on_a_gpu_files_are_those_of_an_agent_without_graphs(tmp_path):
    model = build(device="cuda").compile().learn(60)
    model.save(tmp_path / "agent")
    loaded = DQN.load(tmp_path / "agent", device="cpu", env=model.get_env())
    assert torch.equal(numbers(loaded), numbers(model))
    loaded.learn(40)
    assert nn.utils.parameters_to_vector(loaded.q_net.parameters()).isfinite().all()
