"""The configuration of a run: what is read, what is refused, and that nothing a user writes is ever executed."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.utils import LinearSchedule
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
from equirl.hyperparameters import named_callables, parse_value
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
