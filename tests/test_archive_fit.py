"""Weights of a file go into a model whole or not at all, and an odd one is named."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from torch import nn

from equirl.agents import dqn
from equirl.archives import Archive, check_fit, load_parameters
from equirl.errors import UserError


def make(algorithm=DQN, env="CartPole-v1", policy="MlpPolicy", seed=0, **policy_kwargs):
    kwargs = (
        {"n_steps": 8, "batch_size": 8}
        if algorithm is PPO
        else {"learning_starts": 4, "batch_size": 4, "buffer_size": 30}
    )
    return algorithm(policy, env, seed=seed, policy_kwargs={"net_arch": [4], **policy_kwargs}, **kwargs)


def archive_of(model):
    names = model._get_torch_save_params()[1]
    variables = {name: getattr(model, name).detach().clone() for name in names}
    return Archive(Path("x.zip"), {}, {}, deepcopy(model.get_parameters()), variables, "", [])


@pytest.fixture(scope="module")
def source():
    model = make(seed=1)
    model.learn(12)
    return model


@pytest.fixture
def archive(source):
    return archive_of(source)


def flat(value):
    if isinstance(value, dict):
        return [part for key in value for part in flat(value[key])]
    if isinstance(value, list | tuple):
        return [part for item in value for part in flat(item)]
    return [value.clone() if isinstance(value, torch.Tensor) else value]


def unchanged(before, after):
    before, after = flat(before), flat(after)
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True)
    )


WEIGHT = "q_net.q_net.0.weight"


def of_policy(change):
    return lambda parameters: change(parameters["policy"])


def of_optimizer(change):
    return lambda parameters: change(parameters["policy.optimizer"])


def of_group(**settings):
    return of_optimizer(lambda state: state["param_groups"][0].update(settings))


def of_state(**values):
    return of_optimizer(lambda state: state["state"][0].update(values))


REFUSED = {
    "missing": ("lacks 'q_net.q_net.0.weight'", of_policy(lambda state: state.pop(WEIGHT))),
    "unexpected": ("unexpected 'extra'", of_policy(lambda state: state.update(extra=torch.ones(1)))),
    "shape": (
        r"policy\.pth: q_net\.q_net\.0\.weight has shape \(64, 4\): expected \(4, 4\)",
        of_policy(lambda state: state.update({WEIGHT: torch.ones(64, 4)})),
    ),
    "turned": ("shape", of_policy(lambda state: state.update({"q_net.q_net.2.weight": torch.ones(4, 2)}))),
    "whole numbers": ("int64", of_policy(lambda state: state.update({WEIGHT: torch.ones(4, 4, dtype=torch.int64)}))),
    "no tensor": ("no mapping", of_policy(lambda state: state.update({WEIGHT: 1.0}))),
    "no policy": (r"policy\.pth is missing", lambda parameters: parameters.pop("policy")),
    "no optimizer": (r"policy\.optimizer\.pth is missing", lambda parameters: parameters.pop("policy.optimizer")),
    "other part": (r"actor\.optimizer\.pth", lambda parameters: parameters.update({"actor.optimizer": {}})),
    "part by path": ("__class__", lambda parameters: parameters.update({"policy.__class__": {}})),
    "optimizer as policy": (
        "no mapping",
        lambda parameters: parameters.update(policy=parameters["policy.optimizer"]),
    ),
    "policy as optimizer": (
        "no state of an optimizer",
        lambda parameters: parameters.update({"policy.optimizer": parameters["policy"]}),
    ),
    "no groups": ("0 groups", of_optimizer(lambda state: state["param_groups"].clear())),
    "two groups": ("2 groups", of_optimizer(lambda state: state["param_groups"].append(state["param_groups"][0]))),
    "fewer parameters": ("for 3 parameters", of_group(params=[0, 1, 2])),
    "other order": ("for 4 parameters", of_group(params=[1, 0, 2, 3])),
    "unknown setting": ("momentum", of_group(momentum=0.9)),
    "text as setting": ("'lr' = 'fast'", of_group(lr="fast")),
    "tensor as setting": ("'lr'", of_group(lr=torch.ones(3))),
    "infinite setting": ("'lr' = inf", of_group(lr=float("inf"))),
    "one beta": ("'betas'", of_group(betas=(0.9,))),
    "switch as number": ("'amsgrad'", of_group(amsgrad=1.5)),
    "state of nobody": ("parameter 9", of_optimizer(lambda state: state["state"].update({9: {}}))),
    "state of a name": ("parameter 'a'", of_optimizer(lambda state: state["state"].update(a={}))),
    "state with a hole": (
        "has 'step', 'exp_avg_sq' for parameter 0",
        of_optimizer(lambda state: state["state"][0].pop("exp_avg")),
    ),
    "state of another shape": ("exp_avg.*shape", of_state(exp_avg=torch.ones(3))),
    "state of one number": ("exp_avg.*shape", of_state(exp_avg=torch.ones(()))),
    "state that is text": ("'abc'", of_state(step="abc")),
    "states no mapping": ("no state", of_optimizer(lambda state: state.update(state=7))),
    "amsgrad without its state": ("max_exp_avg_sq", of_group(amsgrad=True)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named_and_leaves_the_model_as_it_was(case, archive):
    message, change = REFUSED[case]
    change(archive.parameters)
    model = make()
    model.learn(12)
    before = deepcopy(model.get_parameters())
    for refused in (
        lambda: check_fit(archive.parameters, model),
        lambda: load_parameters(model, archive),
    ):
        with pytest.raises(UserError, match=message):
            refused()
    assert unchanged(before, model.get_parameters())


def test_what_fits_is_checked_without_being_loaded(archive):
    model = make()
    before = deepcopy(model.get_parameters())
    check_fit(archive.parameters, model)
    assert unchanged(before, model.get_parameters())
    load_parameters(model, archive)
    assert unchanged(archive.parameters, model.get_parameters())


def test_weights_load_without_the_optimizer(archive):
    del archive.parameters["policy.optimizer"]
    model = make()
    load_parameters(model, archive, optimizers=False)
    assert unchanged(archive.parameters["policy"], model.policy.state_dict())
    assert model.policy.optimizer.state_dict()["state"] == {}


def test_settings_of_an_older_torch_are_completed(archive):
    (group,) = archive.parameters["policy.optimizer"]["param_groups"]
    for key in set(group) - {"params", "lr", "betas"}:
        del group[key]
    group["lr"] = 0.5
    model = make()
    load_parameters(model, archive)
    model.learn(12)
    assert model.policy.optimizer.param_groups[0]["eps"] == 1e-8


def test_a_target_network_in_an_old_optimizer_is_left_out(archive):
    archive.parameters["policy.optimizer"]["param_groups"][0]["params"] = list(range(8))
    model = make()
    load_parameters(model, archive)
    assert len(model.policy.optimizer.param_groups[0]["params"]) == 4


def test_only_modules_named_fresh_may_be_missing(archive):
    model = make(policy=dqn.MlpPolicy, symmetry="CartPole-v1", method="lambda")
    kept = {key: tensor.clone() for key, tensor in model.policy.state_dict().items() if ".symmetrizer." in key}
    assert kept
    with pytest.raises(UserError, match="symmetrizer"):
        load_parameters(model, archive)
    load_parameters(model, archive, fresh=("symmetrizer",))
    state = model.policy.state_dict()
    assert unchanged(archive.parameters["policy"], {key: state[key] for key in archive.parameters["policy"]})
    assert unchanged(kept, {key: state[key] for key in kept})
    assert model.policy.optimizer.state_dict()["state"] == {}
    del archive.parameters["policy"][WEIGHT]
    with pytest.raises(UserError, match=r"q_net\.0\.weight"):
        load_parameters(model, archive, fresh=("symmetrizer",))


class _Small(nn.Module):
    def __init__(self, space, features_dim=3):
        super().__init__()
        self.features_dim, self.net = features_dim, nn.Linear(space.shape[0], features_dim)

    def forward(self, x):
        return self.net(x)


def test_a_shared_extractor_has_one_name_in_old_files():
    old = make(PPO, seed=1, features_extractor_class=_Small)
    archive = archive_of(old)
    for key in [key for key in archive.parameters["policy"] if key.startswith(("pi_f", "vf_f"))]:
        del archive.parameters["policy"][key]
    model = make(PPO, features_extractor_class=_Small)
    load_parameters(model, archive)
    assert unchanged(old.policy.state_dict(), model.policy.state_dict())
    alone = make(PPO, features_extractor_class=_Small, share_features_extractor=False)
    with pytest.raises(UserError, match="vf_features_extractor"):
        load_parameters(alone, archive)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("lacks 'log_ent_coef'", lambda variables: variables.clear()),
        ("'other': expected 'log_ent_coef'", lambda variables: variables.update(other=torch.ones(1))),
        ("shape", lambda variables: variables.update(log_ent_coef=torch.ones(2))),
    ],
)
def test_loose_variables_are_compared_too(message, change):
    archive = archive_of(make(SAC, "Pendulum-v1", seed=1))
    model = make(SAC, "Pendulum-v1")
    load_parameters(model, archive)
    before = deepcopy(model.get_parameters())
    change(archive.variables)
    archive.parameters["policy"]["actor.mu.bias"] += 1
    with pytest.raises(UserError, match=message):
        load_parameters(model, archive)
    assert unchanged(before, model.get_parameters())


def test_a_file_of_another_algorithm_is_refused(archive):
    with pytest.raises(UserError, match=r"policy\.optimizer\.pth.*SAC"):
        load_parameters(make(SAC, "Pendulum-v1"), archive)
    with pytest.raises(UserError, match="lacks"):
        load_parameters(make(PPO), archive)
