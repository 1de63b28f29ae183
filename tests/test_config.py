"""The configuration of a run: what is read, what is refused, and that nothing a user writes is ever executed."""

import inspect
import json
import re
import sys
from contextlib import suppress
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO, TD3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import nn

from equirl.config import (
    ALGORITHMS,
    action_noise,
    algorithm_class,
    algorithm_kwargs,
    load_hyperparameters,
    parse_overrides,
    policy_class,
    read_yaml,
    valid_keys,
    validate,
)
from equirl.errors import UserError
from equirl.hyperparameters import imported, keywords_of, named_callables, parse_value
from equirl.runs import settings_of
from equirl.symmetry import Symmetry

BASE: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 100}


def shipped(algo: str) -> dict[str, Any]:
    with resources.as_file(resources.files("equirl.configs") / f"{algo}.yml") as path:
        return read_yaml(path)


SHIPPED = [(algo, entry) for algo in ALGORITHMS for entry in shipped(algo)]


@pytest.fixture
def write(tmp_path: Path):
    """Write a YAML file and return its path."""

    def _write(text: str) -> Path:
        path = tmp_path / "given.yml"
        path.write_text(text)
        return path

    return _write


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


# ------------------------------------------------------------------------------------------------- shipped files


SMALL = {"buffer_size": 10, "n_steps": 8, "batch_size": 8}


@pytest.mark.parametrize(("algo", "entry"), SHIPPED)
def test_every_shipped_entry_builds_its_algorithm(algo: str, entry: str) -> None:
    hyperparameters = load_hyperparameters(algo, entry, atari=False)
    assert {"symmetry", "method"} <= hyperparameters.keys()
    assert yaml.safe_load(yaml.safe_dump(hyperparameters)) == hyperparameters == json.loads(json.dumps(hyperparameters))
    kwargs = algorithm_kwargs(hyperparameters)
    # Small stand-ins for what takes memory and time: the environment's observations, the buffer, the rollout.
    small = {key: value for key, value in SMALL.items() if key in valid_keys(algo)}
    env_id = "Pendulum-v1" if algo in ("sac", "td3") else "CartPole-v1"
    model: Any = algorithm_class(algo)("MlpPolicy", env_id, device="cpu", **{**kwargs, **small})
    for key in kwargs.keys() - {*small, "learning_rate", "policy_kwargs", "train_freq", "clip_range", "use_rms_prop"}:
        assert getattr(model, key) == kwargs[key]
    for key, schedule in (("learning_rate", "lr_schedule"), ("clip_range", "clip_range")):
        if key in kwargs:
            assert getattr(model, schedule)(0.5) == (kwargs[key](0.5) if callable(kwargs[key]) else kwargs[key])
    assert kwargs["policy_kwargs"].items() <= model.policy_kwargs.items()
    if algo == "ppo":  # SB3 warns of minibatches that are cut short
        rollout = hyperparameters.get("n_steps", 2048) * hyperparameters.get("n_envs", 1)
        assert rollout % hyperparameters.get("batch_size", 64) == 0
    noise = action_noise(hyperparameters, model.action_space)
    assert (noise is None) == (algo != "td3")
    assert noise is None or noise().shape == model.action_space.shape


@pytest.mark.parametrize(("algo", "entry"), [(algo, entry) for algo, entry in SHIPPED if entry != "default"])
def test_every_shipped_entry_suits_its_environment(algo: str, entry: str) -> None:
    settings = settings_of(algo, "ALE/Pong-v5" if entry == "atari" else entry)  # builds both, the buffers small
    assert (len(settings.symmetry.group) > 1) == (entry != "MountainCar-v0")


def test_rl_zoos_own_reader_reads_the_shipped_files() -> None:
    for algo in ALGORITHMS:
        with resources.as_file(resources.files("equirl.configs") / f"{algo}.yml") as path:
            assert yaml.safe_load(path.read_text()) == read_yaml(path)


OUR_CHANGES = {"CartPole-v1": {"n_timesteps", "learning_rate"}}  # with the reason in the file


def test_shipped_values_are_rl_zoos(data_dir: Path) -> None:
    for env_id, ours in shipped("dqn").items():
        for path in data_dir.glob(f"agents/dqn/{env_id}_1/{env_id}/config.yml"):
            zoos = validate("dqn", read_yaml(path))
            changed = {key for key in zoos if ours[key] != zoos[key]}
            assert changed == OUR_CHANGES.get(env_id, set())


def test_entry_is_the_environments_then_atari_then_default(write: Any) -> None:
    text = "".join(
        f"{name}: {{policy: MlpPolicy, n_timesteps: {n}}}\n"
        for n, name in enumerate(["default", "atari", "ALE/Pong-v5"], start=1)
    )
    path = write(text)
    picked = [
        load_hyperparameters("dqn", env_id, atari=atari, config_file=path)["n_timesteps"]
        for env_id, atari in [("Some-v0", False), ("ALE/Other-v5", True), ("ALE/Pong-v5", True)]
    ]
    assert picked == [1, 2, 3]


def test_negative_control_is_trained_plain() -> None:
    hyperparameters = load_hyperparameters("dqn", "MountainCar-v0", atari=False)
    assert (hyperparameters["symmetry"], hyperparameters["method"]) == ("none", "identity")


def test_shipped_policies_exist() -> None:
    for algo in ALGORITHMS:
        for name in algorithm_class(algo).policy_aliases:
            assert policy_class(algo, name).__module__ == ALGORITHMS[algo].policies


OF_THE_RUN = {"policy", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}


def test_every_argument_of_every_algorithm_is_a_valid_key() -> None:
    for algo in ALGORITHMS:
        arguments = set(inspect.signature(algorithm_class(algo)).parameters)
        assert arguments > OF_THE_RUN
        assert arguments - OF_THE_RUN <= set(valid_keys(algo))
        assert ({"noise_type", "noise_std"} <= set(valid_keys(algo))) == ("action_noise" in arguments)


def test_sb3s_defaults_are_valid() -> None:
    for algo in ALGORITHMS:
        for name, argument in inspect.signature(algorithm_class(algo)).parameters.items():
            if name not in OF_THE_RUN:
                default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
                assert validate(algo, BASE | {name: default})[name] == default


def test_every_valid_key_has_a_check() -> None:
    for algo in ALGORITHMS:
        for key in valid_keys(algo):
            with pytest.raises(UserError, match=rf"^{key} <object"):
                validate(algo, BASE | {key: object()})


# ------------------------------------------------------------------------------------------------- values

GOOD: list[tuple[str, Any]] = [
    ("n_timesteps", 1e6),
    ("buffer_size", 1),
    ("learning_rate", 1),
    ("learning_rate", "lin_1e-3"),
    ("learning_starts", 0),
    ("gamma", 0),
    ("gamma", 1.0),
    ("tau", 1.0),
    ("tau", 1e-9),
    ("train_freq", [2, "episode"]),
    ("train_freq", [4, "step"]),
    ("gradient_steps", -1),
    ("exploration_fraction", 0.0),
    ("max_grad_norm", float("inf")),
    ("policy", "stable_baselines3.dqn.policies.MlpPolicy"),
    ("policy_kwargs", None),
    ("policy_kwargs", "dict(net_arch=[64], activation_fn=nn.ELU)"),
    ("policy_kwargs", {"net_arch": [64], "optimizer_kwargs": {"eps": 1e-5}}),
    ("replay_buffer_class", "stable_baselines3.common.buffers.NStepReplayBuffer"),
    ("replay_buffer_kwargs", {"handle_timeout_termination": False}),
    ("env_wrapper", None),
    ("env_wrapper", "stable_baselines3.common.atari_wrappers.AtariWrapper"),
    (
        "env_wrapper",
        ["gymnasium.wrappers.FlattenObservation", {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 9}}],
    ),
    ("vec_env_wrapper", {"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": 4}}),
    ("callback", "stable_baselines3.common.callbacks.ProgressBarCallback"),
    ("normalize", True),
    ("normalize", "{'norm_obs': False, 'norm_reward': True}"),
    ("normalize", {"norm_reward": False}),
    ("env_kwargs", {"size": 7}),
    ("monitor_kwargs", "dict(info_keywords=('is_success',))"),
    ("symmetry", Symmetry.generated_by(({"signs": [-1, -1]}, [1, 0]), name="mine")),
]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_good_value_is_kept(key: str, value: Any) -> None:
    assert validate("dqn", BASE | {key: value})[key] == value


BAD: list[tuple[str, Any, str]] = [
    ("n_timesteps", 0, "at least 1"),
    ("n_timesteps", 1.5, "an integer"),
    ("n_envs", 0, "at least 1"),
    ("n_envs", True, "an integer"),
    ("frame_stack", 0, "at least 1"),
    ("buffer_size", 0, "at least 1"),
    ("buffer_size", "many", "an integer"),
    ("batch_size", 0, "at least 1"),
    ("batch_size", float("nan"), "an integer"),
    ("gamma", 1.01, "from 0 to 1"),
    ("gamma", -0.1, "from 0 to 1"),
    ("gamma", "0.9", "a number"),
    ("gamma", float("nan"), "from 0 to 1"),
    ("learning_rate", 0, "above 0"),
    ("learning_rate", float("inf"), "above 0"),
    ("learning_rate", "lin_x", "lin_<number>"),
    ("learning_rate", "lin_0", "lin_<number>"),
    ("learning_rate", "exp_1e-3", "lin_<number>"),
    ("train_freq", 0, "at least 1"),
    ("train_freq", [1, "epoch"], "'step' or 'episode'"),
    ("train_freq", [0, "step"], "at least 1"),
    ("train_freq", [[1, "step"], "step"], "integer"),
    ("gradient_steps", 0, "at least 1, or -1"),
    ("gradient_steps", -2, "at least 1, or -1"),
    ("exploration_fraction", 1.1, "from 0 to 1"),
    ("exploration_initial_eps", -1, "from 0 to 1"),
    ("exploration_final_eps", "0", "from 0 to 1"),
    ("target_update_interval", 0, "at least 1"),
    ("tau", 0, "above 0"),
    ("tau", 1.5, "at most 1"),
    ("learning_starts", -1, "at least 0"),
    ("max_grad_norm", 0, "above 0"),
    ("n_steps", 0, "at least 1"),
    ("stats_window_size", 0, "at least 1"),
    ("optimize_memory_usage", "yes", "True or False"),
    ("optimize_memory_usage", True, "handle_timeout_termination False"),
    ("policy", "MlpPolcy", "did you mean 'MlpPolicy'"),
    ("policy", 3, "dotted path"),
    ("policy", "no_such_module.Policy", "No module named 'no_such_module'"),
    ("policy", "torch.nn.Linear", "BasePolicy: it is none"),
    ("policy", "stable_baselines3.ppo.MlpPolicy", "a policy of dqn, a subclass of DQNPolicy"),
    ("policy_kwargs", 3, "keyword arguments"),
    ("policy_kwargs", "dict(net_arch=[64", "keyword arguments"),
    ("policy_kwargs", "[64, 64]", "keyword arguments"),
    ("policy_kwargs", "dict(net_arhc=[64])", "did you mean 'net_arch'"),
    ("policy_kwargs", "dict(activation_fn=nn.Relu)", "did you mean 'nn.ReLU'"),
    ("policy_kwargs", "dict(method='equitune')", "'method'"),
    ("replay_buffer_class", "HerReplayBuffer", "dotted path"),
    ("replay_buffer_kwargs", {"handle_timeout": False}, "did you mean 'handle_timeout_termination'"),
    ("replay_buffer_kwargs", [9], "keyword arguments"),
    ("replay_buffer_kwargs", {"buffer_size": 9}, "'buffer_size'"),
    ("env_wrapper", 3, "or a list of these"),
    ("env_wrapper", "AtariWrapper", "or a list of these"),
    ("env_wrapper", ["a.b", 3], "or a list of these"),
    ("env_wrapper", {"a.b": 3}, "or a list of these"),
    ("env_wrapper", {"a.b": {}, "c.d": {}}, "or a list of these"),
    ("env_wrapper", "gymnasium.wrappers.TimLimit", "module gymnasium.wrappers has no TimLimit"),
    ("env_wrapper", "gymnasium.wrappers.__path__", "a subclass of gymnasium.Wrapper: it is none"),
    ("env_wrapper", {"pydoc.pipepager": {"cmd": "true"}}, "a subclass of gymnasium.Wrapper: it is none"),
    ("vec_env_wrapper", "gymnasium.wrappers.TimeLimit", "VecEnvWrapper: it is none"),
    ("callback", "os.system", "BaseCallback: it is none"),
    ("replay_buffer_class", "collections.deque", "ReplayBuffer: it is none"),
    ("env_wrapper", {"gymnasium.wrappers.TimeLimit": {"max_steps": 9}}, "max_episode_steps"),
    ("env_wrapper", {"gymnasium.wrappers.TimeLimit": {"env": 9}}, "max_episode_steps"),
    ("vec_env_wrapper", 3, "or a list of these"),
    ("vec_env_wrapper", {"stable_baselines3.common.vec_env.VecFrameStack": {"venv": 4}}, "n_stack"),
    ("vec_env_wrapper", "no_such_module.Wrapper", "No module named"),
    ("callback", 3, "or a list of these"),
    ("callback", {"stable_baselines3.common.callbacks.CheckpointCallback": {"freq": 9}}, "save_freq"),
    ("normalize", "yes", "True, False or dict(...)"),
    ("normalize", {"training": False}, "unknown keyword"),
    ("normalize", {"norm_rewards": True}, "did you mean 'norm_reward'"),
    ("env_kwargs", "dict(size=7)", "a mapping"),
    ("env_kwargs", {"size": object()}, "plain data"),
    ("monitor_kwargs", [1], "keyword arguments"),
    ("symmetry", None, "auto, none"),
    ("symmetry", {}, "auto, none"),
    ("symmetry", "nome", "did you mean 'none'"),
    ("symmetry", {"group": 3}, "symmetry"),
    ("method", "equitun", "did you mean 'equitune'"),
    ("method", ["equitune"], "one of identity, equitune"),
    ("lerning_rate", 1e-3, "did you mean 'learning_rate'"),
    ("seed", 1, "expected one of"),
    ("verbose", 1, "expected one of"),
]


@pytest.mark.parametrize(("key", "value", "expected"), BAD)
def test_bad_value_is_refused_in_one_line(key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as error:
        validate("dqn", BASE | {key: value})
    message = one_line(error)
    assert expected in message
    assert key in message or "nn.Relu" in message


GOOD_FOR: list[tuple[str, str, Any]] = [
    ("qrdqn", "max_grad_norm", None),
    ("qrdqn", "policy_kwargs", "dict(net_arch=[8], n_quantiles=5)"),
    ("ppo", "clip_range", "lin_0.2"),
    ("ppo", "clip_range_vf", "lin_0.2"),
    ("ppo", "clip_range_vf", None),
    ("ppo", "target_kl", 0.01),
    ("ppo", "use_sde", False),
    ("ppo", "sde_sample_freq", -1),
    ("ppo", "rollout_buffer_class", "stable_baselines3.common.buffers.RolloutBuffer"),
    ("ppo", "policy_kwargs", {"net_arch": {"pi": [8], "vf": []}, "ortho_init": False, "log_std_init": -2}),
    ("ppo", "policy_kwargs", {"activation_fn": "torch.nn.Tanh", "optimizer_class": "torch.optim.AdamW"}),
    ("ppo", "policy_kwargs", "dict(features_extractor_class='stable_baselines3.common.torch_layers.FlattenExtractor')"),
    ("a2c", "ent_coef", 0),
    ("a2c", "policy_kwargs", "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"),
    ("a2c", "policy", "stable_baselines3.ppo.MlpPolicy"),
    ("sac", "ent_coef", "auto"),
    ("sac", "ent_coef", "auto_0.1"),
    ("sac", "ent_coef", 0.2),
    ("sac", "target_entropy", -3),
    ("sac", "policy_kwargs", {"net_arch": {"pi": [8], "qf": [8]}, "n_critics": 3}),
    ("td3", "policy_delay", 2.0),
    ("td3", "target_policy_noise", 0),
]


@pytest.mark.parametrize(("algo", "key", "value"), GOOD_FOR)
def test_good_value_of_an_algorithm_is_kept(algo: str, key: str, value: Any) -> None:
    checked = validate(algo, BASE | {key: value})
    assert checked[key] == value
    algorithm_kwargs(checked)


BAD_FOR: list[tuple[str, str, Any, str]] = [
    ("dqn", "clip_range", 0.2, "expected one of"),
    ("dqn", "max_grad_norm", None, "above 0"),
    ("dqn", "noise_type", "normal", "expected one of"),
    ("ppo", "tau", 0.1, "expected one of"),
    ("ppo", "use_sde", True, "which the group does not move"),
    ("sac", "use_sde", True, "which the group does not move"),
    ("ppo", "sde_sample_freq", 0, "at least 1, or -1"),
    ("ppo", "clip_range", "exp_0.2", "lin_<number>"),
    ("ppo", "clip_range", 0, "above 0"),
    ("ppo", "clip_range_vf", -1, "or None"),
    ("ppo", "gae_lambda", 1.5, "from 0 to 1"),
    ("ppo", "n_epochs", 0, "at least 1"),
    ("ppo", "normalize_advantage", 1, "True or False"),
    ("ppo", "vf_coef", -0.5, "at least 0"),
    ("ppo", "vf_coef", float("nan"), "at least 0"),
    ("ppo", "target_kl", 0, "above 0, or None"),
    ("ppo", "ent_coef", "auto", "a number of at least 0"),
    ("ppo", "rollout_buffer_class", "stable_baselines3.common.buffers.ReplayBuffer", "RolloutBuffer: it is none"),
    ("ppo", "rollout_buffer_kwargs", {"gamma": 1}, "expected one of none"),
    ("ppo", "policy", "stable_baselines3.dqn.MlpPolicy", "a policy of ppo, a subclass of ActorCriticPolicy"),
    ("ppo", "policy_kwargs", {"net_arch": [0]}, "net_arch [0] in policy_kwargs: expected a list of layers"),
    ("ppo", "policy_kwargs", {"net_arch": [{"pi": [8]}]}, "expected a list of layers"),
    ("ppo", "policy_kwargs", {"net_arch": {"actor": [8]}}, "expected a list of layers"),
    ("ppo", "policy_kwargs", {"use_sde": True}, "'use_sde'"),
    ("ppo", "policy_kwargs", {"activation_fn": "nn.Softplus"}, "unknown activation_fn 'nn.Softplus'"),
    ("ppo", "policy_kwargs", {"activation_fn": "optim.Adam"}, "unknown activation_fn 'optim.Adam'"),
    ("ppo", "policy_kwargs", {"activation_fn": ["nn.ReLU"]}, "unknown activation_fn"),
    ("ppo", "policy_kwargs", {"optimizer_class": "nn.ReLU"}, "a subclass of torch.optim.Optimizer"),
    ("ppo", "policy_kwargs", {"optimizer_class": "torch.nn.ReLU"}, "a subclass of torch.optim.Optimizer"),
    ("ppo", "policy_kwargs", {"features_extractor_class": "torch.nn.ReLU"}, "BaseFeaturesExtractor: it is none"),
    ("ppo", "policy_kwargs", {"features_extractor_class": 3}, "BaseFeaturesExtractor"),
    ("ppo", "policy_kwargs", "dict(optimizer_class=os.system)", "unknown name 'os.system'"),
    ("a2c", "rms_prop_eps", 0, "above 0"),
    ("a2c", "use_rms_prop", "no", "True or False"),
    ("a2c", "batch_size", 8, "expected one of"),
    ("sac", "ent_coef", "auto_0", "auto_<number above 0>"),
    ("sac", "ent_coef", "automatic", "auto_<number above 0>"),
    ("sac", "ent_coef", -1, "at least 0"),
    ("sac", "target_entropy", "high", "a number, or auto"),
    ("sac", "use_sde_at_warmup", None, "True or False"),
    ("sac", "action_noise", "normal", "write noise_type and noise_std"),
    ("sac", "policy_kwargs", {"n_critics": 0}, "n_critics 0 in policy_kwargs: expected an integer"),
    ("td3", "policy_delay", 0, "at least 1"),
    ("td3", "target_noise_clip", -0.5, "at least 0"),
    ("td3", "noise_type", "normal", "expected both or neither"),
    ("td3", "noise_std", 0.1, "expected both or neither"),
    ("td3", "noise_type", "brown", "one of normal, ornstein-uhlenbeck"),
    ("qrdqn", "policy_kwargs", "dict(n_quantiles=0)", "n_quantiles 0 in policy_kwargs"),
    ("qrdqn", "policy_kwargs", "dict(n_quantile=5)", "did you mean 'n_quantiles'"),
]


@pytest.mark.parametrize(("algo", "key", "value", "expected"), BAD_FOR)
def test_bad_value_of_an_algorithm_is_refused_in_one_line(algo: str, key: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as error:
        validate(algo, BASE | {key: value})
    assert expected in one_line(error)


WEIRD: list[Any] = [
    *(None, True, 0, 1, -1, 0.5, 1e308, float("nan"), float("inf"), 2**63, 10**400, -(10**400), "", "a", ".", "a..b"),
    *("gymnasium.wrappers.", "gymnasium.wrappers.JaxToTorch", "dict(", "dict(a=1)", "nn.ReLU", b"bytes", (1, 2), {1}),
    *([], [1], [[1]], ["a.b"], {}, {1: 2}, {"a": 1}, {"a.b": None}, {"gymnasium.wrappers.TimeLimit": "dict("}),
    *({"net_arch": [10**400]}, {"net_arch": None}, {"activation_fn": {}}, {"log_std_init": 10**400}, object()),
    *({"optimizer_class": None}, {"features_extractor_class": []}, {"n_quantiles": True}, {"n_critics": 1.0}),
]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_any_value_of_any_key_is_taken_or_refused(algo: str) -> None:
    taken = 0
    for key in valid_keys(algo):
        for value in WEIRD:
            with suppress(UserError):
                algorithm_kwargs(validate(algo, BASE | {key: value}, trusted=()))
                taken += 1
    assert len(valid_keys(algo)) < taken < 0.5 * len(WEIRD) * len(valid_keys(algo))


@pytest.mark.parametrize("key", ["policy", "n_timesteps"])
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        validate("dqn", {name: value for name, value in BASE.items() if name != key})


def test_episodes_need_one_environment() -> None:
    with pytest.raises(UserError, match="n_envs"):
        validate("dqn", BASE | {"n_envs": 2, "train_freq": [1, "episode"]})


def test_unknown_algorithm() -> None:
    with pytest.raises(UserError, match=r"unknown algorithm 'dqm': expected one of dqn, .*; did you mean 'dqn'"):
        load_hyperparameters("dqm", "CartPole-v1", atari=False)


def test_whole_floats_become_counts() -> None:
    count = validate("dqn", BASE | {"buffer_size": 1e5})["buffer_size"]
    assert (count, type(count)) == (100000, int)


# ------------------------------------------------------------------------------------------------- SB3's arguments


def test_algorithm_kwargs_are_sb3s() -> None:
    given = BASE | {
        "learning_rate": "lin_2e-3",
        "train_freq": [1, "episode"],
        "policy_kwargs": "dict(net_arch=[8], activation_fn=nn.Tanh, features_extractor_kwargs=dict(a=[nn.SiLU]))",
        "replay_buffer_class": "stable_baselines3.common.buffers.ReplayBuffer",
        "replay_buffer_kwargs": "dict(handle_timeout_termination=False)",
        "method": "equitune",
        "symmetry": "auto",
        "n_envs": 1,
    }
    checked = validate("dqn", given)
    kwargs = algorithm_kwargs(checked)
    assert kwargs["policy_kwargs"].pop("features_extractor_kwargs") == {"a": [nn.SiLU]}
    assert kwargs["policy_kwargs"] == {"net_arch": [8], "activation_fn": nn.Tanh}
    assert isinstance(kwargs["learning_rate"], LinearSchedule)
    assert kwargs["learning_rate"](0.5) == pytest.approx(1e-3)
    model: Any = DQN("MlpPolicy", "CartPole-v1", device="cpu", **kwargs)
    assert model.train_freq.unit.value == "episode"
    assert not model.replay_buffer.handle_timeout_termination
    assert isinstance(model.q_net.q_net[1], nn.Tanh)
    assert checked["policy_kwargs"] == given["policy_kwargs"], "the saved configuration keeps the text"


def test_schedules_and_classes_of_actor_critics() -> None:
    given = {"learning_rate": "lin_1e-3", "clip_range": "lin_0.2", "clip_range_vf": "lin_0.4"}
    classes = "dict(optimizer_class=th.optim.AdamW, activation_fn=torch.nn.Tanh, net_arch=dict(pi=[8], vf=[8]))"
    model: Any = PPO("MlpPolicy", "CartPole-v1", device="cpu", **algorithm_kwargs({**given, "policy_kwargs": classes}))
    assert [schedule(0.5) for schedule in (model.lr_schedule, model.clip_range, model.clip_range_vf)] == [
        5e-4,
        0.1,
        0.2,
    ]
    assert type(model.policy.optimizer) is torch.optim.AdamW
    assert isinstance(model.policy.mlp_extractor.policy_net[1], nn.Tanh)
    named = algorithm_kwargs({"policy_kwargs": "dict(optimizer_class=RMSpropTFLike)"})["policy_kwargs"]
    assert named["optimizer_class"] is RMSpropTFLike
    made = algorithm_kwargs({"rollout_buffer_class": "stable_baselines3.common.buffers.RolloutBuffer"})
    assert made["rollout_buffer_class"] is RolloutBuffer


@pytest.mark.parametrize("kind", ["normal", "ornstein-uhlenbeck"])
def test_noise_has_the_size_of_the_actions(kind: str) -> None:
    box = gym.spaces.Box(-2, 2, (3,))
    noise = action_noise({"noise_type": kind, "noise_std": 0.5}, box)
    assert noise is not None
    drawn = np.array([noise() for _ in range(2000)])
    assert drawn.shape == (2000, 3)
    correlated = abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) > 0.5
    assert correlated == (kind == "ornstein-uhlenbeck")
    if kind == "normal":
        np.testing.assert_allclose(drawn.std(0), 0.5, rtol=0.1)
    model: Any = TD3("MlpPolicy", "Pendulum-v1", device="cpu", buffer_size=10, action_noise=noise)
    assert model.action_noise is noise
    assert action_noise({}, box) is action_noise({"noise_type": None}, box) is None
    with pytest.raises(UserError, match="expected actions in a Box"):
        action_noise({"noise_type": kind, "noise_std": 0.5}, gym.spaces.Discrete(2))


def test_policy_kwargs_are_a_copy() -> None:
    saved = {"policy_kwargs": {"net_arch": [8]}}
    algorithm_kwargs(saved)["policy_kwargs"]["method"] = "equitune"
    assert saved == {"policy_kwargs": {"net_arch": [8]}}


def test_wrappers_keep_their_order() -> None:
    limit = {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 1}}
    found = named_callables("env_wrapper", ["gymnasium.wrappers.FlattenObservation", limit])
    assert [taker.__name__ for taker, _ in found] == ["FlattenObservation", "TimeLimit"]
    assert [keywords for _, keywords in found] == [{}, {"max_episode_steps": 1}]


# ------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("1e-3", 1e-3),
        ("True", True),
        ("None", None),
        ("'text'", "text"),
        ("lin_1e-3", "lin_1e-3"),
        ("MlpPolicy", "MlpPolicy"),
        ("equirl.envs.atari.PongFrame", "equirl.envs.atari.PongFrame"),
        ("equirl/GridWorld-v0", "equirl/GridWorld-v0"),
        ("[1, (2, 'a')]", [1, [2, "a"]]),
        ("{'a': {}, 'b': nn.GELU}", {"a": {}, "b": "nn.GELU"}),
        ("dict(a=dict(b=[-1.5, True]))", {"a": {"b": [-1.5, True]}}),
        ("not an expression", "not an expression"),
        ("", ""),
    ],
)
def test_parse_value(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert parse_overrides([f"key:{text}"]) == {"key": value}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_parse_value_reads_back_what_python_writes(value: Any) -> None:
    assert parse_value(repr(value)) == value


@given(st.text(alphabet="dictlambdaos.()[]{}'\",:=*-+ 01"))
def test_parse_value_gives_plain_data_or_a_user_error(text: str) -> None:
    try:
        value = parse_value(text)
    except UserError as error:
        value = str(error).splitlines()[0] == str(error)
    assert json.dumps(value) != "false"


@pytest.mark.parametrize("item", ["gamma", "gamma=0.9", ":0.9", ""])
def test_override_without_key_and_value(item: str) -> None:
    with pytest.raises(UserError, match="expected key:value"):
        parse_overrides([item])


def test_overrides_replace_and_are_validated() -> None:
    overrides = parse_overrides(["gamma:0.5", "policy_kwargs:dict(net_arch=[8])", "train_freq:(2, 'episode')"])
    loaded = load_hyperparameters("dqn", "CartPole-v1", atari=False, overrides=overrides)
    assert loaded["gamma"] == 0.5
    assert loaded["policy_kwargs"] == {"net_arch": [8]}
    assert loaded["train_freq"] == [2, "episode"]
    assert loaded["batch_size"] == 64
    with pytest.raises(UserError, match="gamma 5"):
        load_hyperparameters("dqn", "CartPole-v1", atari=False, overrides={"gamma": 5})


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('{}')",
        "dict(a=__import__('os').mkdir('{}'))",
        "[open('{}', 'w')]",
        "open(file='{}', mode='w')",
        "(lambda: open('{}', 'w'))()",
        "dict([('a', open('{}', 'w'))])",
        "dict(**{{'a': open('{}', 'w')}})",
        "f\"{{open('{}', 'w')}}\"",
        "{{**open('{}', 'w')}}",
    ],
)
def test_override_is_never_executed(text: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    with pytest.raises(UserError) as error:
        parse_overrides([f"policy_kwargs:{text.format(planted)}"])
    one_line(error)
    with pytest.raises(UserError):
        validate("dqn", BASE | {"policy_kwargs": text.format(planted)})
    assert not planted.exists()


# ------------------------------------------------------------------------------------------------- files


def test_floats_are_yaml_1_2(write: Any) -> None:
    path = write("[1e-3, 1.0e3, -2E+4, .5e1, 1., 0.5, 12, 1e, v1e3, '1e-3', .inf]")
    assert read_yaml(path) == [1e-3, 1e3, -2e4, 5.0, 1.0, 0.5, 12, "1e", "v1e3", "1e-3", float("inf")]
    assert [type(value) for value in read_yaml(path)[:7]] == [float] * 6 + [int]


@pytest.mark.parametrize("tag", ["os.system", "os.mkdir", "subprocess.Popen"])
def test_planted_yaml_is_never_executed(tag: str, write: Any, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    argument = planted if tag == "os.mkdir" else f"touch {planted}"
    path = write(f"default:\n  policy: !!python/object/apply:{tag} ['{argument}']\n")
    with pytest.raises(UserError) as error:
        load_hyperparameters("dqn", "CartPole-v1", atari=False, config_file=path)
    assert f"{path}, line 2" in one_line(error)
    assert not planted.exists()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", ", line 3"),
        ("a: 1\nb: {c: !!python/name:os.system }\n", ", line 2"),
        ("a: 1\n\nb: \x07\n", ", line 3"),
        ("!!python/object/apply:collections.OrderedDict\n- [1, 2]\n", ", line 1"),
        ("!!python/object/apply:collections.OrderedDict {a: 1}\n", ", line 1"),
        ("a: !!int x\n", ""),
        ("a: !!bool x\n", ""),
        ("a: 2001-99-99\n", ""),
        ("a: " + "[" * 5000, ""),
    ],
)
def test_malformed_yaml_names_file_and_line(text: str, where: str, write: Any) -> None:
    path = write(text)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert one_line(error).startswith(f"{path}{where}: expected YAML")


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yml", tmp_path):
        with pytest.raises(UserError) as error:
            read_yaml(path)
        assert one_line(error).startswith(f"cannot read {str(path)!r}: ")
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"bytes\.yml: expected YAML"):
        read_yaml(tmp_path / "bytes.yml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", "expected a mapping from environment ids"),
        ("default:", "default None: expected a mapping"),
        ("default: [1]", "default [1]: expected a mapping"),
        ("CartPole-v0: {}", "did you mean 'CartPole-v0'?"),
        ("default: {policy: MlpPolicy, n_timesteps: 1, 2: 3}", "unknown hyper-parameter 2"),
    ],
)
def test_config_file_without_a_usable_entry(text: str, expected: str, write: Any) -> None:
    with pytest.raises(UserError) as error:
        load_hyperparameters("dqn", "CartPole-v1", atari=False, config_file=write(text))
    assert expected in one_line(error)


def test_saved_configuration_reads_back(write: Any) -> None:
    loaded = load_hyperparameters("dqn", "CartPole-v1", atari=False, overrides={"learning_rate": 1e-5})
    assert read_yaml(write(yaml.safe_dump(loaded))) == loaded
    assert validate("dqn", loaded) == loaded


def test_rl_zoo_files_are_read(data_dir: Path) -> None:
    folders = sorted(data_dir.glob("agents/dqn/*/*/"))
    configs = [folder / "config.yml" for folder in folders if (folder / "config.yml").is_file()]
    assert configs
    for path in configs:
        arguments = read_yaml(path.with_name("args.yml"))
        assert (arguments["algo"], arguments["env"]) == ("dqn", path.parent.name)
        saved = validate("dqn", read_yaml(path))
        assert algorithm_kwargs(saved)["policy_kwargs"] == {"net_arch": [256, 256]}


# ------------------------------------------------------------------------------------------------- others' files

PLANTED = """
from pathlib import Path
import gymnasium, torch
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnvWrapper
Path(__file__).with_name("imported").touch()
class Wrapper(gymnasium.Wrapper): pass
class VecWrapper(VecEnvWrapper): pass
class Callback(BaseCallback): pass
class Replay(ReplayBuffer): pass
class Rollout(RolloutBuffer): pass
class Policy(ActorCriticPolicy): pass
class Extractor(BaseFeaturesExtractor): pass
class Adam(torch.optim.Adam): pass
"""
PLACES: list[tuple[str, str, Any]] = [
    ("ppo", "policy", "planted.Policy"),
    ("ppo", "env_wrapper", "planted.Wrapper"),
    ("ppo", "env_wrapper", ["gymnasium.wrappers.FlattenObservation", {"planted.Wrapper": {}}]),
    ("ppo", "vec_env_wrapper", {"planted.VecWrapper": {}}),
    ("ppo", "callback", ["planted.Callback"]),
    ("dqn", "replay_buffer_class", "planted.Replay"),
    ("ppo", "rollout_buffer_class", "planted.Rollout"),
    ("ppo", "policy_kwargs", {"features_extractor_class": "planted.Extractor"}),
    ("ppo", "policy_kwargs", "dict(optimizer_class='planted.Adam')"),
]


@pytest.mark.parametrize(("algo", "key", "value"), PLACES)
def test_nothing_of_somebody_elses_file_is_imported(
    algo: str, key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    for trusted in ((), ["plant"], ["planted.envs"], ["plante*"]):
        with pytest.raises(UserError) as error:
            validate(algo, BASE | {key: value}, trusted)
        message = one_line(error)
        assert "'planted." in message
        assert "--gym-packages" in message
        assert "--trust" in message
    assert not (tmp_path / "imported").exists()
    assert validate(algo, BASE | {key: value}, ["planted"]) == validate(algo, BASE | {key: value})
    assert (tmp_path / "imported").exists(), "the user's own paths, and packages that the user names, are imported"
    monkeypatch.delitem(sys.modules, "planted")


KNOWN = [
    ("dqn", "env_wrapper", {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 9}}),
    ("dqn", "env_wrapper", "equirl.envs.atari.SymmetricAtari"),
    ("dqn", "env_wrapper", "stable_baselines3.common.atari_wrappers.AtariWrapper"),
    ("dqn", "env_wrapper", "sb3_contrib.common.wrappers.TimeFeatureWrapper"),
    ("dqn", "env_wrapper", "minigrid.wrappers.NoDeath"),
    ("dqn", "policy", "stable_baselines3.dqn.MlpPolicy"),
    ("dqn", "replay_buffer_class", "stable_baselines3.common.buffers.ReplayBuffer"),
    ("a2c", "policy_kwargs", "dict(optimizer_class=RMSpropTFLike, activation_fn=nn.ELU)"),
    ("a2c", "policy_kwargs", {"optimizer_class": "torch.optim.SGD"}),
]


@pytest.mark.parametrize(("algo", "key", "value"), KNOWN)
def test_what_equirl_stands_on_is_imported_for_everybody(algo: str, key: str, value: Any) -> None:
    assert validate(algo, BASE | {key: value}, trusted=())[key] == value


@pytest.mark.parametrize(
    "path",
    ["equirl.__main__.Wrapper", "rl_zoo3.benchmark.Wrapper", "equirlish.Wrapper", "equirl", "torch.hub.Wrapper"],
)
def test_paths_beside_the_known_packages_are_not_imported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equirl.hyperparameters.import_module", lambda name: pytest.fail(f"imports {name}"))
    with pytest.raises(UserError):
        imported("env_wrapper", path, trusted=())


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        imported("env_wrapper", "broken_module.Wrapper")
    assert one_line(error).endswith("RuntimeError: two lines")


def writers() -> list[tuple[str, str, str]]:
    """Return key, path and keyword of every argument of known classes that looks like a place to write to."""
    modules = {
        "env_wrapper": [
            "gymnasium.wrappers",
            "stable_baselines3.common.monitor",
            "stable_baselines3.common.atari_wrappers",
            "sb3_contrib.common.wrappers",
            "minigrid.wrappers",
            "equirl.envs.atari",
        ],
        "vec_env_wrapper": ["stable_baselines3.common.vec_env", "stable_baselines3.common.vec_env.vec_video_recorder"],
        "callback": ["stable_baselines3.common.callbacks", "equirl.callbacks"],
    }
    bases: dict[str, type] = {"env_wrapper": gym.Wrapper, "vec_env_wrapper": VecEnvWrapper, "callback": BaseCallback}
    found = []
    for key, names in modules.items():
        for name in names:
            module = import_module(name)
            for exported in getattr(module, "__all__", None) or dir(module):
                try:
                    part = getattr(module, exported)
                except (ImportError, gym.error.DependencyNotInstalled):
                    continue  # wrappers of JAX
                if isinstance(part, type) and issubclass(part, bases[key]):
                    words = [word for word in keywords_of(part) if re.search("path|file|folder|dir$|directory", word)]
                    found += [(key, f"{name}.{exported}", word) for word in words]
    return found


def test_nothing_is_written_where_somebody_elses_file_says() -> None:
    found = writers()
    named = {path.rpartition(".")[2] for _, path, _ in found}
    assert {"RecordVideo", "Monitor", "VecVideoRecorder", "VecMonitor", "CheckpointCallback", "EvalCallback"} <= named
    for key, path, word in found:
        with pytest.raises(UserError, match=f"would write to 'somewhere': expected no {word}"):
            validate("dqn", BASE | {key: {path: {word: "somewhere"}}}, trusted=())
        assert validate("dqn", BASE | {key: {path: {word: "somewhere"}}})
