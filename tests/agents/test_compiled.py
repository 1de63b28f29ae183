"""Compiled gradient steps are the same steps, and those that have no program are taken as they are."""

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import equirl.envs  # noqa: F401, registers equirl/GridWorld-v0
from equirl.agents import compiled as module
from equirl.agents.compiled import compiled
from equirl.agents.dqn import DQN, CnnPolicy, MlpPolicy
from equirl.agents.orbit_steps import OrbitSteps
from equirl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's, by its inductor
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
GRID = {"symmetry": "equirl/GridWorld-v0:C4"}


def build(policy=MlpPolicy, env="CartPole-v1", most=10.0, wide=48, **given):
    kwargs = {"symmetry": env, "method": "equitune", "optimizer_kwargs": {"eps": 1e-3}, **given}
    if policy is MlpPolicy:
        kwargs["net_arch"] = [wide, wide]
    settings: Any = {"seed": 0, "learning_starts": 20, "batch_size": 8, "train_freq": 8, "gradient_steps": 4}
    return DQN(policy, env, policy_kwargs=kwargs, max_grad_norm=most, learning_rate=1e-3, **settings)


def state(model):
    """Return weights and Adam's moments and counters, as one vector."""
    own = model.policy.optimizer.state
    moments = [own[p][key].reshape(-1) for p in model.q_net.parameters() for key in ("exp_avg", "exp_avg_sq", "step")]
    return nn.utils.parameters_to_vector(model.q_net.parameters()).detach(), torch.cat(moments)


PROGRAMS = [
    (MlpPolicy, {"most": 0.02}, 1),
    (MlpPolicy, {"wide": 600}, 1),  # large products
    (CnnPolicy, {"env": "equirl/GridWorld-v0", **GRID}, 1),
]


@needs_compiler
@pytest.mark.parametrize(
    ("policy", "given", "programs"),
    [
        (MlpPolicy, {"most": 0.02, "wide": 600}, 1),
        *(pytest.param(*program, marks=pytest.mark.slow) for program in PROGRAMS),
    ],
)
def test_the_steps_built_are_the_same(policy, given, programs):
    assert_the_steps_are_the_same(policy, given, programs)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("policy", "given", "programs"),
    [
        *PROGRAMS,
        (MlpPolicy, {"optimizer_class": torch.optim.RMSprop}, 0),
        (MlpPolicy, {"optimizer_kwargs": {"weight_decay": 0.1}}, 0),
        (MlpPolicy, {"method": "equizero"}, 0),
    ],
)
def test_the_steps_are_the_same(policy, given, programs):
    assert_the_steps_are_the_same(policy, given, programs)


def assert_the_steps_are_the_same(policy, given, programs):
    eager = build(policy, **given).learn(80)
    ours = build(policy, **given).compile().learn(80)
    assert len(ours.programs) == programs
    start = nn.utils.parameters_to_vector(build(policy, **given).q_net.parameters()).detach()
    weights = nn.utils.parameters_to_vector(ours.q_net.parameters()).detach()
    assert (weights - start).abs().max() > 1e-3
    if type(ours.policy.optimizer) is torch.optim.Adam:
        for one, other in zip(state(ours), state(eager), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=2e-5)
    else:
        assert torch.equal(weights, nn.utils.parameters_to_vector(eager.q_net.parameters()))


@pytest.mark.usefixtures("traced")
def test_an_agent_goes_on_from_its_zip_and_programs_stay_behind(tmp_path):
    model = build().compile().learn(60)
    model.save(tmp_path / "agent")
    loaded = DQN.load(tmp_path / "agent", env=model.get_env())
    assert loaded.programs is None
    assert all(map(torch.equal, state(loaded), state(model)))
    assert loaded.compile().learn(40).num_timesteps == 40
    assert len(loaded.programs or ()) == 1


def test_before_the_first_step_there_is_no_program():
    model = build()
    programs: dict[Any, Any] = {}
    zeros = torch.zeros(8, 4), torch.zeros(8, 1).long()
    steps = OrbitSteps.of(model.q_net, *zeros, 1, model.policy.optimizer, 10)
    assert steps is not None
    assert compiled(steps, programs) is steps
    assert not programs


@pytest.mark.parametrize("count", [9])
def test_as_many_agents_as_one_likes_have_programs_of_their_own(monkeypatch, count):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    assert count > torch._dynamo.config.recompile_limit
    for i in range(count):
        model = build(wide=8 + i).compile().learn(40)
        assert len(model.programs or ()) == 1


def test_what_torch_cannot_build_is_one_line(monkeypatch):
    def fails(*_):
        def program(*_):
            raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nat all")

        return program

    monkeypatch.setattr(module, "_program", fails)
    with pytest.raises(UserError, match=r"^torch.compile failed: no compiler: expected a C\+\+ compiler") as caught:
        build().compile().learn(60)
    assert "\n" not in str(caught.value)
