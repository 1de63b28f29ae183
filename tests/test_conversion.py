"""Agents written anew and trained further: nothing of what learning needs is lost, and nothing half is left behind."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import A2C, DQN, PPO, SAC

from equirl.conversion import start_from, with_overrides, wrap
from equirl.errors import UserError
from equirl.loading import agent_of, find_agent
from equirl.runs import build_model, make_vec_env

CONFIG: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 64.0, "learning_rate": "lin_0.002", "gamma": 0.9}
CONFIG |= {"buffer_size": 100, "learning_starts": 7, "train_freq": 16, "policy_kwargs": "dict(net_arch=[8])"}
CONFIG |= {"target_update_interval": 9, "gradient_steps": -1, "exploration_final_eps": 0.2, "n_steps": 3}


def run_of_zoo(folder: Path, model: Any, algo: str, env_id: str, config: dict[str, Any]) -> Path:
    """Write a run folder as RL Zoo leaves it."""
    run = folder / algo / f"{env_id}_1"
    (run / env_id).mkdir(parents=True)
    args = {"algo": algo, "env": env_id, "env_kwargs": None, "seed": 3}
    (run / env_id / "args.yml").write_text(yaml.safe_dump(args))
    (run / env_id / "config.yml").write_text(yaml.safe_dump(config))
    model.save(run / f"{env_id}.zip")
    return run


@pytest.fixture(scope="module")
def plain() -> DQN:
    """Return an agent that has learnt by settings other than its files tell, as SB3's defaults stand in old zips."""
    own: dict[str, Any] = {"learning_starts": 5, "buffer_size": 50, "train_freq": 4, "batch_size": 4}
    return DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **own).learn(40)


@pytest.fixture(scope="module")
def zoo(plain, tmp_path_factory) -> Path:
    return run_of_zoo(tmp_path_factory.mktemp("zoo"), plain, "dqn", "CartPole-v1", CONFIG)


def same(one: Any, other: Any) -> bool:
    """Whether nested mappings, lists and tensors are equal, bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def moments(model: Any) -> dict[str, Any]:
    """Return the states of a model's optimizers, their settings left out."""
    return {name: state["state"] for name, state in model.get_parameters().items() if "optimizer" in name}


def weights(model: Any) -> dict[str, Any]:
    return {name: state for name, state in model.get_parameters().items() if "optimizer" not in name}


# ---------------------------------------------------------------------------------------------------------------- wrap


@pytest.mark.parametrize("name", ["new.zip", "deep/er/new.zip", "folder"])
def test_what_is_written_is_the_old_agent_made_equivariant(name, zoo, plain, tmp_path):
    output = tmp_path / name
    result = wrap(find_agent(zoo), None, "equitune", output)
    assert json.loads(json.dumps(result, allow_nan=False))["model"] == str(output)
    assert result["equivariance_error"] <= 1e-5
    assert 0 < result["plain_greedy_disagreement"] <= 1
    assert (result["steps"], result["symmetry"], result["group"]) == (40, "CartPole-v1", "C2")
    zipped = output if output.suffix == ".zip" else output / "CartPole-v1.zip"
    for model in (DQN.load(zipped, device="cpu"), agent_of(find_agent(output), optimizers=True)):
        assert same(weights(model), weights(plain))
        assert same(moments(model), moments(plain))
        assert (model.lr_schedule(1.0), model.lr_schedule(0.5)) == (0.002, 0.001)
        replay = (model.buffer_size, model.learning_starts, model.train_freq.frequency, model.target_update_interval)
        assert replay == (100, 7, 16, 9)
        assert (model.gamma, model.gradient_steps, model.exploration_final_eps, model.n_steps) == (0.9, -1, 0.2, 3)
        assert model.policy.method == "equitune"
        x = torch.ones(1, 4)
        assert torch.allclose(model.q_net(-x), model.q_net(x).flip(-1), rtol=0, atol=1e-5)
    loaded = DQN.load(zipped, device="cpu")
    assert loaded.num_timesteps == plain.num_timesteps == 40
    assert (loaded._n_updates, loaded._episode_num) == (plain._n_updates, plain._episode_num)
    loaded.set_env(make_vec_env(find_agent(output).settings))
    loaded.learn(20, reset_num_timesteps=False)
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", [".zip", ""])
def test_a_wrapped_agent_is_trained_further_from_the_command_line(suffix, zoo, tmp_path, equirl):
    new = tmp_path / f"new{suffix}"
    args = ["wrap", zoo, "--method", "equizero", "-o", new]
    said = equirl(*args, "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["method"] == "equizero"
    said = equirl("train", "--trained-agent", new, "-n", "24", "-f", tmp_path / "logs", "--json")
    assert said.code == 0
    assert "note:" not in said.err
    result = json.loads(said.out)
    assert (result["method"], result["steps"] >= 24) == ("equizero", True)
    assert result["equivariance_error"] <= 1e-5
    config = yaml.safe_load((Path(result["folder"]) / "CartPole-v1" / "config.yml").read_text())
    wanted = {"learning_rate": "lin_0.002", "train_freq": 16, "buffer_size": 100, "gamma": 0.9, "n_timesteps": 24}
    assert {key: config[key] for key in wanted} == wanted
    model: Any = DQN.load(result["model"], device="cpu")
    assert model.lr_schedule(1.0) == 0.002
    assert not same(weights(model), weights(agent_of(find_agent(new))))


def test_the_commands_that_wrap_names_can_be_pasted(zoo, tmp_path, equirl):
    new = tmp_path / "a new.zip"
    told = equirl("wrap", zoo, "--method", "equizero", "-o", new).out.splitlines()
    for name in ("measure it", "train it further"):
        (line,) = [line for line in told if line.strip().startswith(name)]
        command = shlex.split(line.partition(name)[2])
        assert Path(command[0]).name == "equirl"
        assert str(new) in command


ACTORS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ppo": (PPO, "CartPole-v1", {"n_steps": 16, "batch_size": 8, "clip_range": "lin_0.3", "learning_rate": 0.001}),
    "a2c": (A2C, "CartPole-v1", {"learning_rate": "lin_0.01", "gae_lambda": 0.8}),
    "sac": (SAC, "Pendulum-v1", {"ent_coef": "auto_0.3", "learning_starts": 5, "buffer_size": 60, "train_freq": 8}),
}
FORMS = {
    "today's": "dict(net_arch=dict(pi=[8], vf=[6]), activation_fn=nn.ELU, ortho_init=False)",
    "SB3 1's": "dict(net_arch=[dict(pi=[8], vf=[6])], activation_fn=nn.ELU, ortho_init=False)",
}


@pytest.mark.parametrize("algo", ACTORS)
@pytest.mark.parametrize("form", FORMS)
def test_actors_critics_and_their_keywords(algo, form, tmp_path, equirl):
    if algo == "sac" and form != "today's":
        pytest.skip("SAC's layers never had that form")
    kind, env_id, own = ACTORS[algo]
    layers: Any = {"pi": [8], "qf": [6]} if algo == "sac" else {"pi": [8], "vf": [6]}
    kwargs = {"net_arch": layers, "activation_fn": torch.nn.ELU}
    short = {"n_steps": 16, "batch_size": 8} if algo == "ppo" else {"learning_starts": 4} if algo == "sac" else {}
    old = kind("MlpPolicy", env_id, policy_kwargs=kwargs, seed=0, device="cpu", **short).learn(32)
    text = FORMS[form] if algo != "sac" else "dict(net_arch=dict(pi=[8], qf=[6]), activation_fn=nn.ELU)"
    config = {"policy": "MlpPolicy", "n_timesteps": 64.0, **own, "policy_kwargs": text}
    run = run_of_zoo(tmp_path, old, algo, env_id, config)
    wrap(find_agent(run), None, "equitune", tmp_path / "new.zip")
    new = kind.load(tmp_path / "new.zip", device="cpu")
    assert same(weights(new), weights(old))
    assert same(moments(new), moments(old))
    assert new.policy.activation_fn is torch.nn.ELU
    assert new.lr_schedule(0.5) == {"ppo": 0.001, "a2c": 0.005, "sac": 3e-4}[algo]
    if algo == "ppo":
        assert new.clip_range(0.5) == 0.15
    if algo == "sac":
        assert torch.equal(new.log_ent_coef, old.log_ent_coef)
    found = find_agent(tmp_path / "new.zip")
    assert found.notes == []
    keep = {key: value for key, value in own.items() if key != "policy_kwargs"}
    assert {key: found.settings.hyperparameters[key] for key in keep} == keep
    obs = np.random.default_rng(0).normal(size=(20, *old.observation_space.shape)).astype(np.float32)
    one, other = (model.predict(obs, deterministic=True)[0] for model in (new, agent_of(found, optimizers=True)))
    assert np.array_equal(one, other)


def test_a_wrapped_agent_is_wrapped_again(zoo, plain, tmp_path):
    wrap(find_agent(zoo), None, "lambda", tmp_path / "one")
    wrap(find_agent(tmp_path / "one"), None, "equizero", tmp_path / "two.zip")
    wrap(find_agent(tmp_path / "two.zip"), None, "identity", tmp_path / "three.zip")
    for name, method in {"two.zip": "equizero", "three.zip": "identity"}.items():
        model = agent_of(find_agent(tmp_path / name))
        assert same(weights(model), weights(plain))
        assert model.policy.method == method


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "equitune", "--symmetry", "none"], "symmetry 'none' with method 'equitune'"),
        (["--method", "equitun"], "did you mean 'equitune'"),
        (["--method", "equitune", "--symmetry", "CartPole"], "did you mean 'CartPole-v1'"),
        (["--method", "equitune", "--symmetry", "Acrobot-v1"], "acts on 6 entries"),
        (["--method", "equitune", "--env", "Acrobot-v1"], "policy.pth"),
        (["--method", "equitune", "--env", "CartPole-v7"], "unknown environment 'CartPole-v7'"),
        (["--method", "equitune", "--env", "MountainCar-v0"], "no known symmetry of 'MountainCar-v0'"),
        (["--method", "equitune", "--algo", "ppo"], "expected dqn"),
        (["--method", "equitune", "--gym-packages", "no_such_module"], "--gym-packages no_such_module"),
        (["--method", "equitune", "--gym-packages", ""], "--gym-packages"),
        ([], "--method"),
    ],
)
def test_what_cannot_be_wrapped_is_one_line_and_writes_nothing(args, words, zoo, tmp_path, equirl):
    said = equirl("wrap", zoo, *args, "-o", tmp_path / "deep" / "new.zip", "--json")
    assert (said.code, said.out) == (2, "")
    assert words in said.err.splitlines()[-1]
    assert [line[:7] for line in said.err.splitlines()] == ["error: "]
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken_or_cannot_be_written_is_refused(zoo, tmp_path, equirl):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name, words in {
        "file": "expected a path that is free",
        "folder": "expected a path that is free",
        "link": "expected a path that is free",
        "file/new.zip": "expected a path that can be written",
        "x" * 300: "expected a path that can be written",
        "x" * 300 + "/new.zip": "expected a path that can be written",
    }.items():
        said = equirl("wrap", zoo, "--method", "equitune", "-o", tmp_path / name)
        assert said.code == 2
        assert [line[:7] for line in said.err.splitlines()] == ["error: "]
        assert words in said.err
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------- training further


def test_training_starts_from_weights_and_optimizers(zoo, plain):
    found = find_agent(zoo)
    settings = with_overrides(found, {"method": "equitune", "n_timesteps": 10})
    model = build_model(settings, make_vec_env(settings))
    start_from(found, settings)(model)
    assert same(weights(model), weights(plain))
    assert same(moments(model), moments(plain))
    assert settings.symmetry.name == "CartPole-v1"
    other = build_model(settings, make_vec_env(settings))
    assert not same(weights(other), weights(plain))


def test_overrides_change_what_they_name_alone(zoo):
    found = find_agent(zoo)
    own = found.settings.hyperparameters
    changed = with_overrides(found, {"gamma": 0.5}, seed=9)
    assert changed.hyperparameters == {**own, "gamma": 0.5}
    assert (changed.seed, with_overrides(found, {}).seed) == (9, 3)
    with pytest.raises(UserError, match="did you mean 'gamma'"):
        with_overrides(found, {"gama": 0.5})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-P", "policy_kwargs:dict(net_arch=[9])"], "policy.pth"),
        (["-P", "policy_kwargs:dict(net_arch=[8, 8])"], "policy.pth"),
        (["-P", "policy_kwargs:dict(net_arch=[8], optimizer_class='optim.SGD')"], "policy.optimizer.pth"),
        (["--env", "Acrobot-v1"], "policy.pth"),
        (["--algo", "a2c"], "expected dqn"),
        (["--method", "equitune", "--symmetry", "none"], "symmetry 'none'"),
        (["--conf-file", "x.yml"], "--conf-file x.yml with --trained-agent"),
        (["-n", "0"], "-n 0"),
    ],
)
def test_what_cannot_be_trained_further_leaves_no_folder(args, words, zoo, tmp_path, equirl):
    said = equirl("train", "-i", zoo, "-n", "8", "-f", tmp_path / "logs", *args)
    assert said.code == 2
    assert [line[:7] for line in said.err.splitlines()] == ["error: "]
    assert words in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_trusted_replay_buffer_is_learnt_from(zoo, plain, tmp_path):
    plain.save_replay_buffer(zoo / "replay_buffer.pkl")
    try:
        assert "replay_buffer.pkl is pickled Python and was not read" in " ".join(find_agent(zoo).notes)
        found = find_agent(zoo, trust=True)
        settings = with_overrides(found, {"n_timesteps": 10})
        model: Any = build_model(settings, make_vec_env(settings))
        start_from(found, settings)(model)
        assert model.replay_buffer.pos == plain.replay_buffer.pos > 0
        two = with_overrides(found, {"n_envs": 2, "train_freq": 4})
        with pytest.raises(UserError, match="expected experience of CartPole-v1, 2 at once"):
            start_from(found, two)
    finally:
        (zoo / "replay_buffer.pkl").unlink()
