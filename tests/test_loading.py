"""Agents that others trained: found with all that decides them, and nothing in their files is run unasked."""

import base64
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from equirl import foreign, symmetrize
from equirl.conversion import wrap
from equirl.errors import UserError
from equirl.evaluation import compare_methods
from equirl.folders import create_folder, write_settings
from equirl.loading import agent_of, find_agent, load_agent
from equirl.runs import Settings, build_model, settings_of
from equirl.runs import make_vec_env as environments_of

EXTRA = {"n_timesteps": 10, "eval_freq": 10, "eval_episodes": 1, "save_freq": 10}
NET: dict[str, Any] = {"net_arch": [8]}
CONFIG: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 30.0, "learning_rate": "lin_0.002", "gamma": 0.9}
CONFIG |= {"buffer_size": 100, "learning_starts": 7, "train_freq": 16, "policy_kwargs": "dict(net_arch=[8])"}


def run_of_ours(folder: Path, algo: str = "dqn", env_id: str = "CartPole-v1", **chosen: Any) -> Path:
    """Write a run folder as training leaves it."""
    made = settings_of(algo, env_id, {"policy_kwargs": NET, **chosen})
    settings = Settings(made.algo, made.env_id, made.hyperparameters, extra=EXTRA)
    run = create_folder(folder, settings)
    write_settings(run, settings)
    build_model(settings, environments_of(settings), learns=False).save(run / f"{env_id}.zip")
    return run


def ordered(data: dict[str, Any]) -> str:
    """Return YAML as RL Zoo writes it."""
    pairs = yaml.safe_dump([[list(pair) for pair in data.items()]])
    return f"!!python/object/apply:collections.OrderedDict\n{pairs}"


def run_of_zoo(folder: Path, model: Any, algo: str = "dqn", env_id: str = "CartPole-v1", **config: Any) -> Path:
    """Write a run folder as RL Zoo leaves it."""
    run = folder / algo / f"{env_id}_1"
    (run / env_id).mkdir(parents=True)
    (run / env_id / "args.yml").write_text(ordered({"algo": algo, "env": env_id, "env_kwargs": None, "seed": 3}))
    (run / env_id / "config.yml").write_text(ordered(CONFIG | config if algo == "dqn" else config))
    model.save(run / f"{env_id}.zip")
    return run


@pytest.fixture(scope="module")
def plain() -> DQN:
    """Return a plain agent that has learnt a little."""
    own: dict[str, Any] = {"learning_starts": 5, "buffer_size": 50, "train_freq": 4, "batch_size": 4}
    return DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(NET), seed=0, device="cpu", **own).learn(20)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    return run_of_ours(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def zoo(plain, tmp_path) -> Path:
    return run_of_zoo(tmp_path / "zoo", plain)


@pytest.fixture(scope="module")
def lone(plain, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lone") / "model.zip"
    plain.save(path)
    return path


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_agent(path, **how)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def with_members(path: Path, **changed: Any) -> None:
    """Write a zip anew with other members; functions are given the old content."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts |= {name: change(parts.get(name)) if callable(change) else change for name, change in changed.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def with_data(path: Path, **values: Any) -> None:
    with_members(path, data=lambda content: json.dumps({**json.loads(content), **values}).encode())


# ------------------------------------------------------------------------------------------------------ what is found


def test_an_agent_is_found_by_its_folder_or_a_zip_in_it(ours, tmp_path):
    checkpoint = ours / "checkpoints" / "rl_model_1_steps.zip"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes((ours / "CartPole-v1.zip").read_bytes())
    alone = tmp_path / "alone.zip"
    alone.write_bytes(checkpoint.read_bytes())
    found = [load_agent(path) for path in (ours, str(ours), ours / "CartPole-v1.zip", checkpoint, alone)]
    x = torch.ones(1, 4)
    assert all(torch.equal(model.q_net(x), found[0][0].q_net(x)) for model, _ in found)
    own = found[0][1].hyperparameters
    assert all({key: settings.hyperparameters[key] for key in own} == own for _, settings in found)
    assert not found[0][0].q_net.training


def test_a_zip_of_ours_tells_all_that_decides_the_agent(tmp_path):
    wrapper = {"gymnasium.wrappers.ClipReward": {"max_reward": 0.5}}
    run = run_of_ours(tmp_path, frame_stack=2, env_wrapper=wrapper, train_freq=8, learning_rate="lin_0.01")
    alone = (run / "CartPole-v1.zip").rename(tmp_path / "alone.zip")
    found = find_agent(alone)
    assert found.notes == []
    chosen = found.settings.hyperparameters
    wanted = {"frame_stack": 2, "env_wrapper": wrapper, "train_freq": 8, "learning_rate": "lin_0.01"}
    assert {key: chosen[key] for key in wanted} == wanted
    assert (chosen["symmetry"], chosen["method"], found.settings.env_id) == ("CartPole-v1", "equitune", "CartPole-v1")
    assert compare_methods(found, ["equitune"], 2)["methods"][0]["mean_return"] > 0
    assert agent_of(found).observation_space.shape == (8,)


def test_rl_zoos_folder_says_what_the_zip_does_not(zoo, plain):
    found = find_agent(zoo)
    assert found.notes == []
    model = agent_of(found, optimizers=True)
    assert (model.lr_schedule(1.0), model.lr_schedule(0.5)) == (0.002, 0.001)
    assert (model.gamma, model.train_freq.frequency, model.learning_starts, model.buffer_size) == (0.9, 16, 7, 100)
    assert (found.settings.seed, found.settings.method, found.settings.n_timesteps) == (3, "identity", 30)
    assert found.settings.symmetry.name == "CartPole-v1"
    state, other = model.policy.optimizer.state_dict()["state"], plain.policy.optimizer.state_dict()["state"]
    assert all(torch.equal(state[place]["exp_avg"], other[place]["exp_avg"]) for place in other)


def test_an_environment_of_another_version_is_noted(zoo):
    args = zoo / "CartPole-v1" / "args.yml"
    args.write_text(args.read_text().replace("LunarLander", "").replace("CartPole-v1", "LunarLander-v2"))
    with pytest.raises(UserError, match=r"policy\.pth: q_net\.q_net\.0\.weight has shape"):
        load_agent(zoo)
    assert find_agent(zoo).notes == ["LunarLander-v2 is no longer in Gymnasium: taking LunarLander-v3"]
    assert find_agent(zoo, env_id="CartPole-v1").settings.env_id == "CartPole-v1"


KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "dqn": (DQN, "CartPole-v1", {}),
    "qrdqn": (QRDQN, "CartPole-v1", {"policy_kwargs": {"net_arch": [6], "n_quantiles": 5}}),
    "ppo": (PPO, "CartPole-v1", {"n_steps": 8, "batch_size": 4, "clip_range": LinearSchedule(0.3, 0.0, 1.0)}),
    "a2c": (A2C, "CartPole-v1", {"learning_rate": LinearSchedule(0.01, 0.0, 1.0)}),
    "sac": (SAC, "Pendulum-v1", {"ent_coef": "auto_0.3", "buffer_size": 9}),
    "td3": (TD3, "Pendulum-v1", {"policy_kwargs": {"net_arch": {"pi": [4], "qf": [5]}}, "buffer_size": 9}),
    "ddpg": (DDPG, "Pendulum-v1", {"buffer_size": 9}),
    "ppo with more": (
        PPO,
        "Pendulum-v1",
        {"n_steps": 8, "batch_size": 4, "policy_kwargs": {"net_arch": {"pi": [5], "vf": [7, 3]}, "ortho_init": False}},
    ),
    "dqn of another class": (
        DQN,
        "CartPole-v1",
        {"policy_kwargs": {"net_arch": [4], "optimizer_class": torch.optim.RMSprop}, "buffer_size": 9},
    ),
}


@pytest.mark.parametrize("activation", [None, torch.nn.Tanh, torch.nn.ELU])
@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_alone_tells_algorithm_policy_and_hyper_parameters(kind, activation, tmp_path):
    algo, env_id, own = KINDS[kind]
    kwargs = {"net_arch": [8], **own.get("policy_kwargs", {})} | ({"activation_fn": activation} if activation else {})
    model: Any = algo("MlpPolicy", env_id, **{**own, "policy_kwargs": kwargs}, gamma=0.7, device="cpu")
    model.save(tmp_path / "x.zip")
    found = find_agent(tmp_path / "x.zip", env_id)
    loaded = agent_of(found, optimizers=True)
    assert found.settings.algo == {"ddpg": "td3"}.get(kind.split()[0], kind.split()[0])
    assert loaded.gamma == 0.7
    if kind in ("ppo", "a2c"):
        assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)
    if kind == "ppo":
        assert loaded.clip_range(0.5) == 0.15
    if kind == "sac":
        assert torch.equal(loaded.log_ent_coef, model.log_ent_coef)
    obs = np.random.default_rng(0).normal(size=(20, *model.observation_space.shape)).astype(np.float32)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_what_a_zip_alone_cannot_tell_is_asked_for(lone):
    assert "expected --env ID" in refused(lone)
    with pytest.raises(UserError, match="did you mean 'CartPole-v1'"):
        find_agent(lone, "CartPole")
    with pytest.raises(UserError, match="did you mean 'dqn'"):
        find_agent(lone, "CartPole-v1", "dqm")
    assert "policy.pth" in refused(lone, env_id="CartPole-v1", algo="ppo")
    [note] = find_agent(lone, "CartPole-v1").notes
    assert "model.zip: train_freq: pickled Python, not read" in note


def test_a_zip_of_another_agent_in_a_run_folder_is_what_it_is(zoo):
    wrap(find_agent(zoo), None, "equizero", zoo / "zero.zip")
    assert find_agent(zoo / "zero.zip").settings.method == "equizero"
    assert find_agent(zoo / "CartPole-v1.zip").settings.method == "identity"
    found = find_agent(zoo / "zero.zip").settings.hyperparameters
    assert (found["learning_rate"], found["train_freq"]) == ("lin_0.002", 16)


def test_a_folder_whose_config_names_another_method_than_its_zip_is_the_zips(plain, tmp_path):
    wrapped = symmetrize(plain, "CartPole-v1", "equitune")
    said = {**NET, "method": "identity", "symmetry": "none"}  # as RL Zoo leaves it after resuming with other settings
    found = find_agent(run_of_zoo(tmp_path, wrapped, policy_kwargs=said))
    assert (found.settings.method, str(found.settings.symmetry.group)) == ("equitune", "C2")
    assert agent_of(found).policy.method == "equitune"


def test_no_agent_is_one_line(tmp_path, ours, zoo):
    for path in (tmp_path / "nowhere", ours / "worst_model.zip", tmp_path / ("x" * 300), tmp_path / "x\0y"):
        assert "no agent at" in refused(path)
    assert "no run folder" in refused(tmp_path)
    assert "expected dqn, as its args.yml says" in refused(zoo, algo="ppo")
    (zoo / "CartPole-v1.zip").unlink()
    assert "no weights at" in refused(zoo)


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "no zip of SB3", "other shapes"])
def test_a_damaged_zip_is_one_line(damage, zoo):
    path = zoo / "CartPole-v1.zip"
    data = path.read_bytes()
    if damage == "no zip of SB3":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "")
    elif damage == "other shapes":
        DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [5]}, buffer_size=9).save(path)
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "noise": data[:200] + b"\0" * 5000}[damage])
    assert str(path) in refused(zoo)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("args.yml", "algo", "trpo", "args.yml: unknown algorithm 'trpo'"),
        ("args.yml", "algo", 3, "expected a mapping with algo and env"),
        ("args.yml", "env", "CartPole-v9", "unknown environment 'CartPole-v9'"),
        ("args.yml", "env", "planted:CartPole-v1", "unknown environment 'planted:CartPole-v1'"),
        ("args.yml", "env", "X-v" + "9" * 5000, "unknown environment"),
        ("args.yml", "env_kwargs", "open('x')", "args.yml: env_kwargs"),
        ("args.yml", "env_kwargs", {"nonsense": 1}, "nonsense"),
        ("config.yml", "policy", "MlpPolicyy", "config.yml: unknown policy 'MlpPolicyy'"),
        ("config.yml", "gamma", 3, "config.yml: gamma 3"),
        ("config.yml", "gama", 0.5, "did you mean 'gamma'"),
        ("config.yml", "policy_kwargs", "dict(net_arch=[9])", "policy.pth"),
        ("config.yml", "policy_kwargs", "dict(net_arch=[1000000000])", "weights in all"),
        ("config.yml", "policy_kwargs", "dict(net_arch=[100, 100])", "weights in all"),
        ("config.yml", "frame_stack", 10**9, "frame_stack 1000000000: expected at most"),
        ("config.yml", "normalize", True, "expected the statistics in"),
    ],
)
def test_files_that_do_not_make_sense_are_one_line(name, key, value, words, zoo):
    data = {"algo": "dqn", "env": "CartPole-v1", "env_kwargs": None, "seed": 3} if name == "args.yml" else CONFIG
    (zoo / "CartPole-v1" / name).write_text(ordered({**data, key: value}))
    assert words in refused(zoo)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gamma": "much"}, "member 'data': gamma 'much'"),
        ({"policy_kwargs": [3]}, "policy_kwargs"),
        ({"policy_kwargs": {"net_arch": [10**9]}}, "weights in all"),
        ({"policy_kwargs": {"net_arch": [8], "features_extractor_class": "<class 'planted.Own'>"}}, "planted.Own"),
        ({"policy_class": {":serialized:": "", "__module__": ["x"]}}, "expected --algo"),
        ({"equirl_settings": {"env": 3, "frame_stack": "x"}}, "frame_stack 'x'"),
        ({"equirl_settings": {"frame_stack": 10**9}}, "expected at most"),
        ({"equirl_settings": {"env_wrapper": "planted.Own"}}, "env_wrapper 'planted.Own'"),
        ({"equirl_settings": {"policy_kwargs": {"net_arch": [3]}}}, "policy.pth"),
        ({"policy_kwargs": {"symmetry": {"kind": "x"}, "method": "equitune"}}, "data"),
        ({"policy_kwargs": {"symmetry": "CartPole-v1", "method": ["x"]}}, "method"),
        ({"seed": None, "n_steps": [1]}, "n_steps"),
    ],
)
def test_data_that_do_not_make_sense_are_one_line(values, words, lone, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(lone.read_bytes())
    with_data(path, **values)
    said = refused(path, env_id="CartPole-v1")
    assert words in said
    assert str(path) in said


def test_data_that_no_model_of_sb3_has_choose_nothing(lone, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(lone.read_bytes())
    with_data(path, env_wrapper="gymnasium.wrappers.ClipReward", frame_stack=2, normalize=True, symmetry="Acrobot-v1")
    found = find_agent(path, "CartPole-v1").settings.hyperparameters
    assert not {"env_wrapper", "frame_stack", "normalize"} & found.keys()
    assert found["symmetry"] == "CartPole-v1"


@pytest.mark.parametrize("twin", [{"value_schedule": "ConstantSchedule(val=-.e)"}, {"start": [1], "end": {}}])
def test_a_schedules_text_that_is_none_is_left_aside(twin, lone, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(lone.read_bytes())
    with_data(path, learning_rate={":type:": "x", ":serialized:": "", **twin})
    assert "learning_rate" in " ".join(find_agent(path, "CartPole-v1").notes)


# ---------------------------------------------------------------------------------------------------- planted programs


def pickled(canary: Path) -> dict[str, str]:
    return {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Canary(canary))).decode()}


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def torch_saved(canary: Path) -> bytes:
    path = canary.with_name("saved.pth")
    torch.save({"q_net.weight": Canary(canary)}, path)
    content = path.read_bytes()
    path.unlink()
    return content


ZIP_PLACES: dict[str, tuple[str, Any]] = {
    "value": ("ep_info_buffer", lambda path, canary: with_data(path, ep_info_buffer=pickled(canary))),
    "unknown key": ("strange", lambda path, canary: with_data(path, strange=pickled(canary))),
    "key that counts": ("learning_rate", lambda path, canary: with_data(path, learning_rate=pickled(canary))),
    "weights": ("policy.pth", lambda path, canary: with_members(path, **{"policy.pth": torch_saved(canary)})),
    "bare pickle": ("policy.pth", lambda path, canary: with_members(path, **{"policy.pth": _bare(canary)})),
    "optimizer": (
        "policy.optimizer.pth",
        lambda path, canary: with_members(path, **{"policy.optimizer.pth": torch_saved(canary)}),
    ),
    "variables": (
        "pytorch_variables.pth",
        lambda path, canary: with_members(path, **{"pytorch_variables.pth": torch_saved(canary)}),
    ),
    "another member": ("extra.pkl", lambda path, canary: with_members(path, **{"extra.pkl": _bare(canary)})),
}


def _bare(canary: Path) -> bytes:
    return pickle.dumps(Canary(canary))


def commands(model: Path, out: Path) -> dict[str, list[Any]]:
    """Return every command that reads an agent."""
    return {
        "evaluate": ["evaluate", model, "--episodes", "1", "--methods", "all"],
        "enjoy": ["enjoy", model, "-n", "1"],
        "wrap": ["wrap", model, "--method", "equitune", "-o", out / "new.zip"],
        "train": ["train", "-i", model, "-n", "4", "-f", out / "logs", "-P", "learning_starts:100"],
    }


def said_of(equirl: Any, *args: Any) -> str:
    """Return what a command says on standard error, and check that it is an answer or one line that says why not."""
    said = equirl(*args)
    lines = said.err.splitlines()
    assert "Traceback" not in said.err
    assert said.code in (0, 2)
    if said.code:
        assert lines[-1].startswith("error: ")
        assert all(line.startswith("note: ") for line in lines[:-1])
    return str(said.err)


@pytest.mark.parametrize(
    ("place", "command"),
    [
        *((place, command) for place in ZIP_PLACES for command in ("evaluate", "wrap")),
        *((place, "train") for place in ("unknown key", "weights", "optimizer", "another member")),
        *((place, "enjoy") for place in ("value", "bare pickle", "variables")),
    ],
)
def test_nothing_planted_in_a_zip_is_run_unasked(place, command, zoo, tmp_path, equirl):
    member, plant = ZIP_PLACES[place]
    canary = tmp_path / "canary"
    plant(zoo / "CartPole-v1.zip", canary)
    said = said_of(equirl, *commands(zoo, tmp_path / "out")[command])
    assert not canary.exists()
    assert member in said


def test_a_zip_alone_is_not_run_either(lone, tmp_path, equirl):
    canary, path = tmp_path / "canary", tmp_path / "model.zip"
    for member, plant in ZIP_PLACES.values():
        path.write_bytes(lone.read_bytes())
        plant(path, canary)
        assert member in said_of(equirl, "evaluate", path, "--env", "CartPole-v1", "--episodes", "1")
        assert not canary.exists()


@pytest.mark.parametrize("command", ["evaluate", "enjoy", "wrap", "train"])
def test_what_is_trusted_is_run_and_said_to_be(command, zoo, tmp_path, equirl):
    canary = tmp_path / "canary"
    with_data(zoo / "CartPole-v1.zip", strange=pickled(canary))
    said = said_of(equirl, *commands(zoo, tmp_path / "out")[command], "--trust")
    assert "--trust: CartPole-v1.zip is unpickled, which runs whatever its author put there" in said
    assert canary.exists()


@pytest.mark.parametrize("place", ["value", "unknown key", "weights", "optimizer"])
def test_the_payloads_work(place, lone, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.zip"
    path.write_bytes(lone.read_bytes())
    ZIP_PLACES[place][1](path, canary)
    with zipfile.ZipFile(path) as archive:
        if place in ("value", "unknown key"):
            value = json.loads(archive.read("data"))[ZIP_PLACES[place][0]]
            pickle.loads(base64.b64decode(value[":serialized:"]))
        else:
            with archive.open(ZIP_PLACES[place][0]) as member:
                torch.load(member, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("command", ["evaluate", "enjoy", "wrap", "train"])
@pytest.mark.parametrize("name", ["replay_buffer.pkl", "vecnormalize.pkl"])
def test_pickles_beside_the_weights_are_not_run_unasked(name, command, zoo, tmp_path, equirl):
    canary = tmp_path / "canary"
    folder = zoo if name == "replay_buffer.pkl" else zoo / "CartPole-v1"
    (folder / name).write_bytes(_bare(canary))
    said = said_of(equirl, *commands(zoo, tmp_path / "out")[command])
    assert f"{name} is pickled Python and was not read" in said
    if name == "vecnormalize.pkl":
        (zoo / "CartPole-v1" / "config.yml").write_text(ordered({**CONFIG, "normalize": True}))
        said = said_of(equirl, *commands(zoo, tmp_path / "more")[command])
        assert "vecnormalize.pkl" in said
        assert "expected --trust" in said
    assert not canary.exists()
    if command == ("evaluate" if name == "vecnormalize.pkl" else "train"):
        assert "cannot be unpickled" in said_of(equirl, *commands(zoo, tmp_path / "more")[command], "--trust")
        assert canary.exists()


PLANTED = "import gymnasium, pathlib\npathlib.Path({!r}).mkdir()\nclass Own(gymnasium.Wrapper): pass\n"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Put a module on the path that creates a file when it is imported."""
    canary, folder = tmp_path / "canary", tmp_path / "path"
    folder.mkdir()
    (folder / "planted_module.py").write_text(PLANTED.format(str(canary)))
    monkeypatch.syspath_prepend(folder)
    yield canary
    sys.modules.pop("planted_module", None)


@pytest.mark.parametrize("kind", ["zoo", "ours"])
@pytest.mark.parametrize("command", ["evaluate", "enjoy", "wrap", "train", "resume"])
def test_modules_that_files_name_are_not_imported_unasked(command, kind, planted, plain, tmp_path, equirl):
    run = run_of_zoo(tmp_path / "zoo", plain) if kind == "zoo" else run_of_ours(tmp_path / "ours")
    config = run / "CartPole-v1" / "config.yml"
    data = CONFIG if kind == "zoo" else yaml.safe_load(config.read_text())
    (ordered if kind == "zoo" else yaml.safe_dump)(data)
    for key, value in {
        "env_wrapper": "planted_module.Own",
        "vec_env_wrapper": [{"planted_module.Own": {}}],
        "callback": "planted_module.Own",
        "policy": "planted_module.Own",
        "replay_buffer_class": "planted_module.Own",
        "policy_kwargs": {"features_extractor_class": "planted_module.Own"},
    }.items():
        config.write_text((ordered if kind == "zoo" else yaml.safe_dump)({**data, key: value}))
        out = tmp_path / "out"
        args = ["train", "--resume", run] if command == "resume" else commands(run, out)[command]
        said = equirl(*args)
        assert said.code == 2
        [line] = said.err.splitlines()
        assert line.startswith("error: ")
        assert "planted_module.Own" in line
        assert "config.yml" in line
        assert not planted.exists()
        assert not out.exists()
    if command == "evaluate":
        config.write_text((ordered if kind == "zoo" else yaml.safe_dump)({**data, "env_wrapper": "planted_module.Own"}))
        assert equirl(*args, "--trust").code == 0
        assert planted.exists()


TAGS = ("!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]", "!!python/name:os.mkdir ''")


@pytest.mark.parametrize(
    "tag", [*TAGS, "!!python/module:antigravity ''", "!!python/object/apply:os.system ['mkdir {}']"]
)
@pytest.mark.parametrize("name", ["config.yml", "args.yml"])
def test_tags_in_yaml_build_nothing_whoever_is_trusted(name, tag, zoo, tmp_path, equirl):
    canary = tmp_path / "canary"
    path = zoo / "CartPole-v1" / name
    for text in (f"{tag.format(canary)}\n", path.read_text() + f"- - - evil\n    - {tag.format(canary)}\n"):
        path.write_text(text)
        for trust in ([], ["--trust"]):
            for args in commands(zoo, tmp_path / "out").values():
                said = equirl(*args, *trust)
                assert said.code == 2
                [line] = said.err.splitlines()
                assert name in line
        assert equirl("train", "--resume", zoo).code == 2
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def checkpointed(tmp_path: Path, equirl: Any) -> Path:
    args = ["--env", "CartPole-v1", "-n", "8", "-f", tmp_path / "logs", "-P", "policy_kwargs:dict(net_arch=[4])"]
    assert equirl("train", *args, "-P", "buffer_size:20", "-P", "train_freq:1", "-P", "learning_starts:99").code == 0
    return tmp_path / "logs" / "dqn" / "CartPole-v1_1"


def test_nothing_planted_in_a_checkpoint_is_run(tmp_path, equirl):
    run = checkpointed(tmp_path, equirl)
    saved, canary = run / "checkpoints" / "rl_model_8_steps.zip", tmp_path / "canary"
    whole = saved.read_bytes()
    for number, (member, plant) in enumerate(ZIP_PLACES.values()):
        saved.write_bytes(whole)
        plant(saved, canary)
        assert member in said_of(equirl, "train", "--resume", run, "-n", str(9 + number))
        assert not canary.exists()
        state = run / "checkpoints" / "state.json"
        state.write_text(json.dumps({**json.loads(state.read_text()), "model": saved.name}))
    saved.write_bytes(whole)
    state = json.loads((run / "checkpoints" / "state.json").read_text())
    buffer = run / "checkpoints" / state["replay_buffer"]
    np.savez(buffer, place=np.array([Canary(canary), 1], dtype=object), allow_pickle=True)
    assert "checkpoints" in said_of(equirl, "train", "--resume", run, "-n", "40")
    buffer.write_bytes(_bare(canary))
    assert "checkpoints" in said_of(equirl, "train", "--resume", run, "-n", "40")
    (run / "checkpoints" / "state.json").write_bytes(_bare(canary))
    assert "state.json" in said_of(equirl, "train", "--resume", run, "-n", "40")
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------------ malformed zips


def test_every_command_refuses_malformed_zips_in_one_line(malformed, lone, tmp_path, equirl, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    paths = malformed.corpus(tmp_path / "zips", lone.read_bytes())
    assert len(paths) >= 40
    before, tried = files(tmp_path), list[str]()
    for name, path in paths.items():
        # All by one command, and a third of them by each other one: what reads them is the same.
        others = list(commands(path, tmp_path / "out").items())
        for command, args in (others[0], others[1 + len(tried) % 3]):
            tried.append(command)
            said = equirl(*args, *([] if command == "enjoy" else ["--json"]), "--env", "CartPole-v1")
            assert (said.code, said.out) == (2, ""), name
            assert [line[:7] for line in said.err.splitlines()] == ["error: "], name
            assert str(path) in said.err
        assert files(tmp_path) == before, name


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.fixture(scope="module")
def normalized(tmp_path_factory) -> Path:
    """Return RL Zoo's folder of a PPO agent that reads normalised observations."""
    env = VecNormalize(make_vec_env("CartPole-v1", seed=0), gamma=0.9)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=16, policy_kwargs=dict(NET), device="cpu").learn(64)
    config: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 64.0, "normalize": "{'norm_obs': True}"}
    config |= {"normalize": True, "policy_kwargs": "dict(net_arch=[8])", "n_steps": 32, "batch_size": 16}
    run = run_of_zoo(tmp_path_factory.mktemp("ppo"), model, "ppo", **config)
    env.save(str(run / "CartPole-v1" / "vecnormalize.pkl"))
    return run


def test_normalised_observations_are_read_as_they_were(normalized, equirl):
    assert "vecnormalize.pkl" in refused(normalized)
    found = find_agent(normalized, trust=True)
    model = agent_of(found)
    known = VecNormalize.load(str(normalized / "CartPole-v1" / "vecnormalize.pkl"), make_vec_env("CartPole-v1"))
    own = model.get_vec_normalize_env()
    assert np.array_equal(own.obs_rms.mean, known.obs_rms.mean)
    assert not own.training
    assert not own.norm_reward
    loaded = PPO.load(normalized / "CartPole-v1.zip", device="cpu")
    obs = known.normalize_obs(np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    row = compare_methods(found, ["identity"], 3)["methods"][0]
    env = make_vec_env("CartPole-v1", seed=3 + 20_000)
    state: Any = env.reset()
    total, done = 0, False
    while not done:
        actions, _ = loaded.predict(known.normalize_obs(state), deterministic=True)
        state, _, [done], _ = env.step(actions)
        total += 1
    assert compare_methods(found, ["identity"], 1)["methods"][0]["mean_return"] == total
    assert row["mean_return"] < 500
    said = equirl("evaluate", normalized, "--trust", "--methods", "identity", "--episodes", "1", "--json")
    assert json.loads(said.out)["methods"][0]["mean_return"] == total
    with pytest.raises(UserError, match="VecNormalize statistics"):
        compare_methods(found, ["equitune"], 1)


def test_statistics_of_rewards_alone_do_not_matter(normalized, tmp_path):
    config = normalized / "CartPole-v1" / "config.yml"
    text = config.read_text()
    try:
        config.write_text(text.replace("normalize\n    - true", "normalize\n    - '{''norm_obs'': False}'"))
        assert config.read_text() != text
        [note] = find_agent(normalized).notes
        assert "vecnormalize.pkl is pickled Python and was not read" in note
    finally:
        config.write_text(text)


def test_stacked_frames_of_normalised_observations(tmp_path):
    inner = VecNormalize(make_vec_env("CartPole-v1", seed=0))
    model = PPO("MlpPolicy", VecFrameStack(inner, 2), n_steps=8, batch_size=8, policy_kwargs=dict(NET), device="cpu")
    config: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 8.0, "normalize": True, "frame_stack": 2}
    run = run_of_zoo(tmp_path, model, "ppo", **config, policy_kwargs="dict(net_arch=[8])", n_steps=8, batch_size=8)
    inner.save(str(run / "CartPole-v1" / "vecnormalize.pkl"))
    found = find_agent(run, trust=True)
    assert compare_methods(found, ["identity"], 1)["methods"][0]["mean_return"] > 0


# -------------------------------------------------------------------------------------------------- RL Zoo's own agents

AGENTS = {"CartPole-v1": "C2", "Acrobot-v1": "C2", "MountainCar-v0": "C1", "LunarLander-v2": "C2"}


@pytest.mark.parametrize("name", AGENTS)
def test_real_agents_act_as_sb3s_own(name, data_dir, tmp_path):
    folder = data_dir / "agents" / "dqn" / f"{name}_1"
    found = find_agent(folder)
    assert str(found.settings.symmetry.group) == AGENTS[name]
    assert [*found.notes] == (
        ["LunarLander-v2 is no longer in Gymnasium: taking LunarLander-v3"] if "v2" in name else []
    )
    model = agent_of(found, optimizers=True)
    config = found.settings.hyperparameters
    for key in ("gamma", "batch_size", "buffer_size", "learning_starts", "gradient_steps", "target_update_interval"):
        assert getattr(model, key) == config[key]
    assert model.lr_schedule(1.0) == config["learning_rate"] > 1e-4

    env = gym.make(found.settings.env_id)
    sb3 = DQN("MlpPolicy", env, policy_kwargs={"net_arch": [256, 256]}, buffer_size=9, device="cpu")
    with zipfile.ZipFile(found.weights) as archive, archive.open("policy.pth") as member:
        sb3.policy.load_state_dict(torch.load(member, weights_only=True))
    obs = np.random.default_rng(0).normal(size=(200, *(env.observation_space.shape or ()))).astype(np.float32)
    actions = sb3.predict(obs, deterministic=True)[0]
    assert np.array_equal(model.predict(obs, deterministic=True)[0], actions)
    assert np.array_equal(agent_of(find_agent(folder, trust=True)).predict(obs, deterministic=True)[0], actions)
    copied = tmp_path / "copied.zip"
    copied.write_bytes(found.weights.read_bytes())
    assert np.array_equal(load_agent(copied, env_id=name)[0].predict(obs, deterministic=True)[0], actions)


def test_real_agents_play_well(data_dir, equirl):
    said = equirl(
        "evaluate", data_dir / "agents" / "dqn" / "CartPole-v1_1", "--methods", "all", "--episodes", "3", "--json"
    )
    rows = {row["method"]: row for row in json.loads(said.out)["methods"]}
    assert rows["identity"]["mean_return"] == rows["equizero"]["mean_return"] == 500
    assert rows["equitune"]["equivariance_error"] <= 1e-5
    said = equirl(
        "evaluate", data_dir / "agents" / "dqn" / "Acrobot-v1_1", "--methods", "all", "--episodes", "6", "--json"
    )
    rows = {row["method"]: row for row in json.loads(said.out)["methods"]}
    assert -90 < rows["identity"]["mean_return"] < -65
    assert rows["equitune"]["mean_return"] > -77


@pytest.mark.parametrize(
    ("wrapper", "fits"),
    [("equirl.envs.atari.PongFrame", True), ("stable_baselines3.common.atari_wrappers.AtariWrapper", False)],
)
def test_a_plain_agent_has_the_catalogues_symmetry_where_its_frames_are_those(wrapper, fits):
    """RL Zoo's agents do not say a symmetry; on SB3's own frames the one of Pong would be false."""
    shipped = settings_of("dqn", "ALE/Pong-v5")
    settings = Settings("dqn", "ALE/Pong-v5", {**shipped.hyperparameters, "env_wrapper": wrapper})
    assert foreign._fits(settings, {}) is fits
