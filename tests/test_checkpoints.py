"""A checkpoint holds all that a run goes on with, never half of it, and no code."""

import json
import os
import pickle
import tracemalloc
import zipfile
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

from equirl.agents.dqn import MlpPolicy, MultiInputPolicy
from equirl.checkpoints import checkpoint_steps, load_checkpoint, save_checkpoint
from equirl.config import action_noise, algorithm_class, algorithm_kwargs, policy_class, validate
from equirl.errors import UserError
from equirl.symmetry import Symmetry

MIRROR = Symmetry.generated_by(({"keys": {"x": {"signs": [-1, -1]}, "grid": "flip_x"}}, [1, 0]))


class Dictionary(gym.Env):
    """Random observations of a vector and a picture."""

    observation_space = gym.spaces.Dict(
        x=gym.spaces.Box(-1, 1, (2,), np.float32), grid=gym.spaces.Box(0, 255, (1, 4, 4), np.uint8)
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), self.np_random.random(), self.np_random.random() < 0.1, False, {}


def build(env: Any = "CartPole-v1", n_envs: int = 1, seed: int = 0, **kwargs: Any) -> Any:
    policy, symmetry = (MlpPolicy, "CartPole-v1") if env == "CartPole-v1" else (MultiInputPolicy, MIRROR)
    defaults = {"buffer_size": 60, "learning_starts": 10, "batch_size": 8, "train_freq": 4, "exploration_fraction": 0.5}
    return DQN(
        policy,
        make_vec_env(env, n_envs=n_envs, seed=seed),
        seed=seed,
        policy_kwargs={"symmetry": symmetry, "method": "equitune", "net_arch": [8]},
        **{**defaults, **kwargs},
    )


def arrays(buffer: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in vars(buffer).items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}{key}": part for key, part in parts.items() if isinstance(part, np.ndarray)}
    return found


CASES = {
    "half full": ({}, 40),
    "wrapped around": ({}, 130),
    "two environments": ({"n_envs": 2}, 130),
    "dictionaries": ({"env": Dictionary}, 130),
    "two of dictionaries": ({"env": Dictionary, "n_envs": 2}, 50),
    "observations stored once": (
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        40,
    ),
}


@pytest.mark.parametrize(("kwargs", "steps"), CASES.values(), ids=CASES)
def test_everything_is_as_it_was(kwargs, steps, tmp_path):
    model = build(**kwargs).learn(steps)
    save_checkpoint(model, tmp_path)
    fresh = build(**kwargs, seed=1)
    load_checkpoint(fresh, tmp_path)

    assert fresh.num_timesteps == model.num_timesteps == checkpoint_steps(tmp_path) >= steps
    for counter in ("_n_updates", "_n_calls", "_episode_num", "exploration_rate"):
        assert getattr(fresh, counter) == getattr(model, counter) != 0
    assert (fresh.replay_buffer.pos, fresh.replay_buffer.full) == (model.replay_buffer.pos, model.replay_buffer.full)
    before, after = arrays(model.replay_buffer), arrays(fresh.replay_buffer)
    assert before.keys() == after.keys()
    assert len(before) > 3
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
        assert after[name].dtype == value.dtype
    for part in ("q_net", "q_net_target"):
        theirs = getattr(fresh, part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(model, part).state_dict().items())
    mine, theirs = (m.policy.optimizer.state_dict()["state"] for m in (model, fresh))
    assert mine.keys() == theirs.keys()
    assert len(mine) > 0
    assert all(torch.equal(mine[i]["exp_avg_sq"], theirs[i]["exp_avg_sq"]) for i in mine)


def test_exploration_goes_on_where_it_was(tmp_path):
    def rates(model: Any, steps: int, until: int) -> list[float]:
        seen: list[float] = []

        def look(scope: Any, _: Any) -> bool:
            seen.append(scope["self"].exploration_rate)
            return len(seen) < until

        model.learn(steps, reset_num_timesteps=False, callback=look)
        return seen

    whole = rates(build(), 200, until=200)
    interrupted = build()
    first = rates(interrupted, 200, until=70)
    save_checkpoint(interrupted, tmp_path)
    resumed = build(seed=1)
    load_checkpoint(resumed, tmp_path)
    # SB3 looks at the schedule after the callback, so one step's change may be missed on the way
    assert [*first, *rates(resumed, 130, until=130)] == pytest.approx(whole, abs=0.011)


def test_earlier_zips_stay_and_only_the_latest_buffer_does(tmp_path):
    model = build()
    for _ in range(3):
        save_checkpoint(model.learn(20, reset_num_timesteps=False), tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {*(f"rl_model_{n}_steps.zip" for n in (20, 40, 60)), "replay_buffer_60.npz", "state.json"}
    plain = DQN.load(tmp_path / "checkpoints" / "rl_model_40_steps.zip")
    assert plain.num_timesteps == 40


@pytest.mark.parametrize("dies", [0, 1, 2])
@pytest.mark.parametrize("how", ["before the move", "in the middle of writing"])
def test_a_checkpoint_that_dies_while_it_is_written_leaves_the_one_before(dies, how, tmp_path, monkeypatch):
    model = build().learn(20)
    save_checkpoint(model, tmp_path)
    before = {name: value.copy() for name, value in arrays(model.replay_buffer).items()}
    weights = model.q_net.state_dict()["q_net.0.weight"].clone()
    model.learn(20, reset_num_timesteps=False)

    move, moves = os.replace, []

    def dying(source, target):
        moves.append(target)
        if len(moves) > dies:
            if how == "in the middle of writing":
                Path(source).write_bytes(Path(source).read_bytes()[:50])
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, tmp_path)
    monkeypatch.undo()

    fresh = build(seed=1)
    load_checkpoint(fresh, tmp_path)
    assert fresh.num_timesteps == 20
    assert torch.equal(fresh.q_net.state_dict()["q_net.0.weight"], weights)
    for name, value in arrays(fresh.replay_buffer).items():
        np.testing.assert_array_equal(value, before[name])
    save_checkpoint(model, tmp_path)  # what was left lying does not disturb the next
    assert checkpoint_steps(tmp_path) == 40
    assert not list((tmp_path / "checkpoints").glob("partial*"))


def refused(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_checkpoint(build(**kwargs), folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("file", ["rl_model_20_steps.zip", "replay_buffer_20.npz", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "noise"])
def test_a_damaged_file_is_one_line(file, damage, tmp_path):
    save_checkpoint(build().learn(20), tmp_path)
    path = tmp_path / "checkpoints" / file
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "noise": b"\x93NUMPY" + b"\xff" * 99}[damage])
    assert str(tmp_path) in refused(tmp_path)


STATES = {
    "[]": "num_timesteps and model",
    "{}": "num_timesteps and model",
    '{"num_timesteps": 3}': "num_timesteps and model",
    '{"num_timesteps": 3, "model": ["x"]}': "a file's name",
    '{"num_timesteps": 3, "model": "x", "replay_buffer": {}}': "a file's name",
    '{"num_timesteps": "many", "model": "x"}': "num_timesteps 'many': expected a number",
    '{"num_timesteps": true, "model": "x"}': "expected a number",
    '{"num_timesteps": -1, "model": "x"}': "expected a number",
    '{"num_timesteps": 3, "model": "x", "_n_updates": 1.5}': "expected a number",
    '{"num_timesteps": 3, "model": "x", "exploration_rate": Infinity}': "expected a number",
    '{"num_timesteps": 3, "model": "x", "exploration_rate": NaN}': "expected a number",
    "[" * 20_000: "cannot be read",
    " " * 70_000 + '{"num_timesteps": 3, "model": "x"}': "cannot be read",
}


@pytest.mark.parametrize(("state", "expected"), STATES.items(), ids=range(len(STATES)))
def test_a_state_that_is_none_is_one_line(state, expected, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "state.json").write_text(state)
    assert expected in refused(tmp_path)


def test_no_checkpoint_is_one_line(tmp_path):
    assert "state.json" in refused(tmp_path)


OTHERS = [({"n_envs": 2}, "has shape"), ({"buffer_size": 7}, "in a buffer of 7"), ({"env": Dictionary}, "policy.pth")]


@pytest.mark.parametrize(("kwargs", "expected"), OTHERS)
def test_a_checkpoint_of_another_run_is_refused(kwargs, expected, tmp_path):
    save_checkpoint(build().learn(20), tmp_path)
    message = refused(tmp_path, **kwargs)
    assert expected in message
    assert str(tmp_path) in message


def rewritten(folder: Path, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Replace one array of a checkpoint's buffer by these bytes."""
    path = folder / "checkpoints" / "replay_buffer_20.npz"
    with zipfile.ZipFile(path) as stored:
        members = {member: stored.read(member) for member in stored.namelist()}
    with zipfile.ZipFile(path, "w", compression) as stored:
        for member, old in members.items():
            stored.writestr(member, content if member == f"{name}.npy" else old)


def npy(header: str, content: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (21, 1)}\n"
LIES = {
    "a shape that no memory holds": npy(HEADER.replace("21", "1" + "0" * 11), bytes(84)),
    "another type": npy(HEADER.replace("<f4", "<i4"), bytes(84)),
    "another order": npy(HEADER.replace("False", "True"), bytes(84)),
    "too little": npy(HEADER, bytes(80)),
    "too much": npy(HEADER, bytes(88)),
    "a pickle": npy(HEADER.replace("<f4", "|O"), pickle.dumps([1])),
    "an expression": npy("__import__('os').mkdir('owned')", b""),
    "a header without end": npy("{'descr': ", b"")[:-4],
    "no array": b"text",
    "a bomb": npy(HEADER, bytes(2**25)),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_array_that_lies_is_refused_in_little_memory(lie, tmp_path):
    save_checkpoint(build().learn(20), tmp_path)
    rewritten(tmp_path, "rewards", LIES[lie], zipfile.ZIP_DEFLATED)
    fresh = build()
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(fresh, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24
    rewritten(tmp_path, "rewards", npy(HEADER, bytes(84)), zipfile.ZIP_DEFLATED)
    load_checkpoint(fresh, tmp_path)  # the header above is the right one, and compression no reason to refuse
    assert fresh.replay_buffer.rewards.sum() == 0


# ------------------------------------------------------------------------------------------------- every algorithm

OFF_POLICY = {"buffer_size": 200, "learning_starts": 20, "batch_size": 8}
SMALL: dict[str, dict[str, Any]] = {
    "dqn": {**OFF_POLICY, "train_freq": 4, "target_update_interval": 10},
    "qrdqn": {**OFF_POLICY, "train_freq": 4, "target_update_interval": 10},
    "ppo": {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "n_envs": 2, "learning_rate": "lin_1e-3"},
    "a2c": {"n_steps": 8, "n_envs": 2, "learning_rate": "lin_1e-3"},
    "sac": {**OFF_POLICY, "ent_coef": "auto_0.1"},
    "td3": {**OFF_POLICY, "policy_delay": 3, "noise_type": "ornstein-uhlenbeck", "noise_std": 0.1},
}


def built(algo: str, seed: int) -> Any:
    env_id = "Pendulum-v1" if algo in ("sac", "td3") else "CartPole-v1"
    given = {"policy": "MlpPolicy", "n_timesteps": 1, "policy_kwargs": {"net_arch": [8]}, **SMALL[algo]}
    hyperparameters = validate(algo, given)
    env = make_vec_env(env_id, n_envs=hyperparameters.get("n_envs", 1), seed=seed)
    kwargs = algorithm_kwargs(hyperparameters)
    kwargs["policy_kwargs"].update(symmetry=env_id, method="equitune")
    if "noise_type" in hyperparameters:
        kwargs["action_noise"] = action_noise(hyperparameters, env.action_space)
    return algorithm_class(algo)(policy_class(algo, "MlpPolicy"), env, seed=seed, device="cpu", **kwargs)


def half(model: Any) -> Any:
    """Learn half of 192 steps, from new episodes and with equal dice."""
    model.set_env(make_vec_env(model.get_env().envs[0].spec.id, n_envs=model.n_envs, seed=3))
    model.set_random_seed(3)
    left = 192 - model.num_timesteps
    stop = model.num_timesteps + 96
    model.learn(left, reset_num_timesteps=False, callback=lambda scope, _: scope["self"].num_timesteps <= stop)
    return model


def learnt(model: Any) -> dict[str, torch.Tensor]:
    """Return every number that learning has changed."""
    modules, variables = model._get_torch_save_params()
    found: dict[str, torch.Tensor] = {}
    for name in (*modules, *variables):
        part = attrgetter(name)(model)
        state = {"": part} if isinstance(part, torch.Tensor) else part.state_dict()
        leaves = state.get("state", state) if "param_groups" in state else state
        for key, value in leaves.items():
            parts = value if isinstance(value, dict) else {"": value}
            found |= {f"{name}.{key}.{k}": v.detach().clone() for k, v in parts.items() if isinstance(v, torch.Tensor)}
    return found


@pytest.mark.parametrize("algo", SMALL)
def test_a_resumed_run_learns_what_the_whole_one_does(algo, tmp_path):
    model = half(built(algo, seed=0))
    save_checkpoint(model, tmp_path)
    before = learnt(model)
    whole = learnt(half(model))
    assert any(not torch.equal(before[key], whole[key]) for key in before)

    resumed = built(algo, seed=1)
    load_checkpoint(resumed, tmp_path)
    after = learnt(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert resumed.num_timesteps == checkpoint_steps(tmp_path) > 0
    assert resumed._n_updates > 0
    resumed = learnt(half(resumed))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


def test_a_place_outside_the_buffer_is_refused(tmp_path):
    save_checkpoint(build().learn(100), tmp_path)
    path = tmp_path / "checkpoints" / "replay_buffer_100.npz"
    with np.load(path) as stored:
        parts = dict(stored)
    np.savez(path, **{**parts, "place": np.array([60, True])})
    assert "position 60 in a buffer of 60" in refused(tmp_path)


def test_the_state_names_files_of_its_own_folder_only(tmp_path):
    save_checkpoint(build().learn(20), tmp_path)
    path = tmp_path / "checkpoints" / "state.json"
    (tmp_path / "checkpoints" / "rl_model_20_steps.zip").rename(tmp_path / "outside.zip")
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "../outside.zip"}))
    assert "outside.zip" in refused(tmp_path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path):
    save_checkpoint(build().learn(20), tmp_path)
    mark, buffer = tmp_path / "owned", tmp_path / "checkpoints" / "replay_buffer_20.npz"
    with np.load(buffer) as stored:
        parts = dict(stored)
    np.savez(buffer, **{**parts, "rewards": np.array([Payload(mark)], dtype=object)})
    refused(tmp_path)
    np.savez(buffer, **parts)

    path = tmp_path / "checkpoints" / "rl_model_20_steps.zip"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    torch.save({"weight": Payload(mark)}, tmp_path / "policy.pth")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, (tmp_path / "policy.pth").read_bytes() if name == "policy.pth" else content)
    refused(tmp_path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # the payload does work
    assert mark.exists()
