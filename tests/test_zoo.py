"""config.yml of agents that RL Zoo trained, of whatever age: read, brought up to date, and nothing of it executed."""

import copy
from pathlib import Path
from typing import Any

import pytest

from equirl.config import algorithm_kwargs, read_yaml, validate
from equirl.errors import UserError
from equirl.zoo import read_zoo_hyperparameters

BASE: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 100000.0}

# What agents of 2020 to 2024 were saved with, and what that is today.
OLD: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("ppo", {"normalize": True, "sde_sample_freq": 4, "use_sde": False}, {"normalize": True}, []),
    ("ppo", {"normalize": "{'norm_obs': True, 'norm_reward': False}"}, {}, []),
    (
        "ppo",
        {"normalize": True, "normalize_kwargs": {"norm_obs": True, "norm_reward": False}},
        {"normalize": {"norm_obs": True, "norm_reward": False}},
        [],
    ),
    (
        "ppo",
        {
            "policy_kwargs": "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=[dict(pi=[256,\n"
            "  256], vf=[256, 256])] )"
        },
        {
            "policy_kwargs": {
                "log_std_init": -2,
                "ortho_init": False,
                "activation_fn": "nn.ReLU",
                "net_arch": {"pi": [256, 256], "vf": [256, 256]},
            }
        },
        [],
    ),
    ("ppo", {"policy_kwargs": "dict(activation_fn=th.nn.Tanh)"}, {"policy_kwargs": {"activation_fn": "nn.Tanh"}}, []),
    (
        "ppo",
        {"policy_kwargs": {"sde_net_arch": [64], "net_arch": [8]}},
        {"policy_kwargs": {"net_arch": [8]}},
        ["sde_net_arch"],
    ),
    ("ppo", {"clip_range_vf": -1, "create_eval_env": False}, {"clip_range_vf": None}, ["create_eval_env"]),
    (
        "a2c",
        {"policy_kwargs": "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"},
        {
            "policy_kwargs": {
                "optimizer_class": "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike",
                "optimizer_kwargs": {"eps": 1e-5},
            }
        },
        [],
    ),
    ("sac", {"remove_time_limit_termination": True}, {}, ["remove_time_limit_termination"]),
    (
        "sac",
        {
            "replay_buffer_class": "HerReplayBuffer",
            "replay_buffer_kwargs": "dict( online_sampling=True,\n goal_selection_strategy='future', n_sampled_goal=4)",
        },
        {
            "replay_buffer_class": "stable_baselines3.HerReplayBuffer",
            "replay_buffer_kwargs": {"goal_selection_strategy": "future", "n_sampled_goal": 4},
        },
        ["online_sampling"],
    ),
    (
        "td3",
        {"train_freq": -1, "n_episodes_rollout": 1, "noise_type": "normal", "noise_std": 0.1},
        {"train_freq": [1, "episode"], "noise_type": "normal"},
        ["n_episodes_rollout"],
    ),
    ("td3", {"train_freq": [1, "episode"], "gradient_steps": -1}, {"train_freq": [1, "episode"]}, []),
    ("dqn", {"optimize_memory_usage": True}, {}, ["optimize_memory_usage"]),
    (
        "dqn",
        {"optimize_memory_usage": True, "replay_buffer_kwargs": "dict(handle_timeout_termination=False)"},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        [],
    ),
    (
        "dqn",
        {"env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"], "frame_stack": 4},
        {"env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"]},
        [],
    ),
    (
        "dqn",
        {
            "env_wrapper": [
                {"gym.wrappers.resize_observation.ResizeObservation": {"shape": [64, 64]}},
                {"gym.wrappers.gray_scale_observation.GrayScaleObservation": {"keep_dim": True}},
                {"gymnasium.wrappers.time_limit.TimeLimit": {"max_episode_steps": 9}},
                "sb3_contrib.common.wrappers.TimeFeatureWrapper",
            ]
        },
        {
            "env_wrapper": [
                {"gymnasium.wrappers.ResizeObservation": {"shape": [64, 64]}},
                {"gymnasium.wrappers.GrayscaleObservation": {"keep_dim": True}},
                {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 9}},
                "sb3_contrib.common.wrappers.TimeFeatureWrapper",
            ]
        },
        [],
    ),
    (
        "dqn",
        {"env_wrapper": "gym_minigrid.wrappers.NoDeath"},
        {"env_wrapper": "minigrid.wrappers.NoDeath"},
        [],
    ),
    ("qrdqn", {"policy_kwargs": "dict(net_arch=[256, 256], n_quantiles=170)", "max_grad_norm": None}, {}, []),
]


@pytest.mark.parametrize(("algo", "given", "expected", "dropped"), OLD)
def test_old_files_are_brought_up_to_date(
    algo: str, given: dict[str, Any], expected: dict[str, Any], dropped: list[str]
) -> None:
    before = copy.deepcopy(data := BASE | given)
    read, gone = read_zoo_hyperparameters(algo, data)
    assert gone == dropped
    assert read.keys() == (BASE | given).keys() - {*dropped, "normalize_kwargs"} | expected.keys()
    assert {key: read[key] for key in expected} == expected
    assert validate(algo, read) == read
    algorithm_kwargs(read)
    assert data == before, "what was given is not changed"


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("ppo", {"use_sde": True}, "use_sde True: expected False, since its noise"),
    ("ppo", {"policy_kwargs": "dict(net_arch=[64, dict(pi=[64], vf=[64])])"}, "no longer shares layers"),
    (
        "ppo",
        {"policy_kwargs": "dict(activation_fn=nn.Softplus)"},
        "unknown name 'nn.Softplus': expected one of nn.ReLU",
    ),
    ("ppo", {"policy_kwargs": "dict(activation_fn=os.system)"}, "unknown name 'os.system'"),
    ("ppo", {"policy_kwargs": "__import__('os').system('ls')"}, "expected a literal or dict(...)"),
    ("ppo", {"policy_kwargs": 3}, "policy_kwargs 3: expected keyword arguments"),
    ("dqn", {"replay_buffer_kwargs": 3, "optimize_memory_usage": True}, "replay_buffer_kwargs 3"),
    ("ppo", {"net_arch": [64]}, "unknown hyper-parameter 'net_arch'"),
    (
        "ppo",
        {"env_wrapper": {"utils.wrappers.HistoryWrapper": 3}},
        "env_wrapper {'rl_zoo3.wrappers.HistoryWrapper': 3}",
    ),
    ("td3", {"noise_type": "adaptive-param", "noise_std": 0.1}, "one of normal, ornstein-uhlenbeck"),
]


@pytest.mark.parametrize(("algo", "given", "expected"), BAD)
def test_what_cannot_be_brought_up_to_date_is_one_line(algo: str, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        read_zoo_hyperparameters(algo, BASE | given, trusted=())
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_imports_are_as_trusted_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gym_of_mine.py").write_text("import gymnasium\nclass Mine(gymnasium.Wrapper): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = BASE | {"env_wrapper": "gym_of_mine.Mine"}
    with pytest.raises(UserError, match="--gym-packages"):
        read_zoo_hyperparameters("ppo", given, trusted=())
    assert read_zoo_hyperparameters("ppo", given, trusted=["gym_of_mine"])[1] == []


def test_zoos_own_agents_are_read(data_dir: Path) -> None:
    paths = sorted(data_dir.glob("agents/*/*/*/config.yml"))
    assert paths
    for path in paths:
        read, dropped = read_zoo_hyperparameters(path.parts[-4], read_yaml(path), trusted=())
        assert not dropped
        assert read.keys() == read_yaml(path).keys()
