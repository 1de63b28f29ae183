"""Zips of SB3 are read without running what they hold: honest ones bit for bit, all others refused in one line."""

import base64
import json
import re
import resource
import sys
import time
from copy import deepcopy
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from torch import nn

import equirl.agents.dqn
from equirl.archives import load_parameters, read_archive
from equirl.errors import UserError

OFF_POLICY: dict[str, Any] = {"learning_starts": 8, "batch_size": 4, "buffer_size": 50, "gradient_steps": 1}
ON_POLICY: dict[str, Any] = {"n_steps": 8}
NETS: dict[str, Any] = {"net_arch": [4], "activation_fn": nn.Tanh}


_falling = lambda left: 1e-3 * np.cos(1 - left)  # noqa: E731, pickled by value, as rl_zoo3 does


class Pairs(gym.Env):
    """Observations of every kind that has a space of its own."""

    observation_space = spaces.Dict(
        {
            "a": spaces.Box(-1, 1, (2,)),
            "b": spaces.Discrete(3),
            "c": spaces.MultiDiscrete([2, 2]),
            "d": spaces.MultiBinary(2),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


MODELS = {
    "dqn": lambda: DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(NETS), learning_rate=_falling, **OFF_POLICY),
    "qrdqn": lambda: QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=NETS | {"n_quantiles": 3}, **OFF_POLICY),
    "ppo": lambda: PPO("MlpPolicy", "CartPole-v1", clip_range=_falling, batch_size=4, **ON_POLICY),
    "ppo_sde": lambda: PPO("MlpPolicy", "Pendulum-v1", use_sde=True, clip_range_vf=0.1, batch_size=4, **ON_POLICY),
    "ppo_dict": lambda: PPO("MultiInputPolicy", Pairs(), policy_kwargs=dict(NETS), batch_size=4, **ON_POLICY),
    "a2c": lambda: A2C("MlpPolicy", "CartPole-v1", policy_kwargs=dict(NETS), **ON_POLICY),
    "sac": lambda: SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(NETS), **OFF_POLICY),
    "sac_fixed": lambda: SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.2, policy_kwargs=dict(NETS), **OFF_POLICY),
    "td3": lambda: TD3(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=dict(NETS),
        action_noise=NormalActionNoise(np.zeros(1), np.ones(1)),
        **OFF_POLICY,
    ),
    "ddpg": lambda: DDPG(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=dict(NETS),
        action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)),
        **OFF_POLICY,
    ),
    "equirl": lambda: DQN(
        equirl.agents.dqn.MlpPolicy,
        "CartPole-v1",
        policy_kwargs=NETS | {"symmetry": "CartPole-v1", "method": "lambda"},
        **OFF_POLICY,
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function that trains a small agent once, and gives its zip and its parameters."""
    folder, kept = tmp_path_factory.mktemp("zips"), {}

    def _trained(name):
        if name not in kept:
            model = MODELS[name]()
            model.learn(16)
            model.save(folder / f"{name}.zip")
            kept[name] = folder / f"{name}.zip", deepcopy(model.get_parameters())
        return kept[name]

    return _trained


@pytest.fixture(scope="module")
def zip_bytes(trained):
    return trained("dqn")[0].read_bytes()


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_real_zip_gives_all_that_sb3_reads(name, trained):
    path, parameters = trained(name)
    archive = read_archive(path)
    fresh, reference = MODELS[name](), MODELS[name]()
    reference.set_parameters(str(path))
    load_parameters(fresh, archive)
    assert same(fresh.get_parameters(), parameters)
    assert same(fresh.get_parameters(), reference.get_parameters())
    assert archive.unread == []
    assert archive.version == stable_baselines3.__version__
    assert archive.data["num_timesteps"] == 16
    assert archive.twins["policy_class"]["__module__"] == type(fresh.policy).__module__
    assert ":serialized:" not in json.dumps([archive.data, dict(archive.twins)])
    fresh.learn(16)  # an optimizer whose state has holes would stumble here
    assert same(archive.parameters, read_archive(path).parameters), "training changed the archive"


@pytest.mark.parametrize("name", ["sac", "sac_fixed"])
def test_the_entropy_coefficient_comes_along(name, trained):
    archive, model = read_archive(trained(name)[0]), MODELS[name]()
    (attribute,) = archive.variables
    archive.variables[attribute].fill_(-1.5)
    load_parameters(model, archive, optimizers=False)
    assert getattr(model, attribute).item() != -1.5
    load_parameters(model, archive)
    assert getattr(model, attribute).item() == -1.5
    assert getattr(model, attribute).requires_grad == (name == "sac")


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v2"])
def test_real_zips_of_rl_zoo_load(env, data_dir):
    archive = read_archive(data_dir / "agents" / "dqn" / f"{env}_1" / f"{env}.zip")
    model = DQN("MlpPolicy", env.replace("r-v2", "r-v3"), policy_kwargs={"net_arch": [256, 256]}, buffer_size=1)
    load_parameters(model, archive)
    assert archive.unread == []
    assert same(dict(model.policy.state_dict()), archive.parameters["policy"])
    states = model.policy.optimizer.state_dict()["state"]
    assert len(states) == 6
    assert all(
        torch.equal(states[place]["exp_avg"], archive.parameters["policy.optimizer"]["state"][place]["exp_avg"])
        for place in states
    )


def most_memory():
    """Return the most bytes that this process has held, torch's among them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_every_malformed_zip_is_refused_in_one_line(malformed, zip_bytes, tmp_path):
    table = malformed.malformed(zip_bytes)
    paths = malformed.corpus(tmp_path, zip_bytes)
    assert len(paths) >= 45
    wrong: dict[str, str] = {}
    before = most_memory()
    for name, path in paths.items():
        start = time.perf_counter()
        try:
            read_archive(path)
            wrong[name] = "was read"
        except UserError as error:
            message = str(error)
            mentions = str(path) in message and table[name][0] in message.replace(str(path), "")
            if not mentions or not message.isascii() or not message.isprintable() or len(message) > 700:
                wrong[name] = message
        if (seconds := time.perf_counter() - start) > 10:
            wrong[name] = f"took {seconds:.1f} s"
        if (more := most_memory() - before) > 400 * 2**20:
            wrong[name] = f"took {more / 2**20:.0f} MiB"
        if list(path.parent.iterdir()) != [path]:
            wrong[name] = "left something behind"
    assert wrong == {}


@pytest.mark.parametrize("path", ["", ".", "nothing", "/dev/null", "no\0thing", "x" * 5000])
def test_a_path_that_is_no_file_is_refused(path):
    with pytest.raises(UserError):
        read_archive(path)


def test_the_missing_suffix_is_named(trained):
    with pytest.raises(UserError, match=r"did you mean .*dqn\.zip"):
        read_archive(trained("dqn")[0].with_suffix(""))


def planted(malformed, content, canary):
    """Yield every place of a zip where a pickle may be, with the zip that has the payload there."""
    parts, evil = malformed.members(content), malformed.payload(canary)
    pickled = cloudpickle.dumps(evil)
    entry = {":type:": "<class 'function'>", ":serialized:": base64.b64encode(pickled).decode()}
    data = json.loads(parts["data"])
    for key in [*data, "an unknown key"]:
        yield f"data: {key}", malformed.zipped({**parts, "data": json.dumps({**data, key: entry}).encode()})
    for name in [*parts, "replay_buffer.pkl", "vecnormalize.pkl", "replay_buffer.pth", "tensors.pth"]:
        if name != "data":
            for kind, value in {"pickle": pickled, "torch": malformed.inner({"a": evil})}.items():
                yield f"{name}: {kind}", malformed.zipped({**parts, name: value})


def test_nothing_planted_is_run_and_everything_is_named(malformed, zip_bytes, tmp_path):
    canary = tmp_path / "canary"
    cloudpickle.loads(cloudpickle.dumps(malformed.payload(canary))).close()
    assert canary.exists(), "the payload does nothing"
    canary.unlink()
    ways = dict(planted(malformed, zip_bytes, canary))
    assert len(ways) > 60
    model = MODELS["dqn"]()
    for way, content in ways.items():
        path, member = written(tmp_path / "model.zip", content), way.split(": ")[0]
        try:
            archive = read_archive(path)
            load_parameters(model, archive)
            said = " ".join(archive.unread)
        except UserError as error:
            said = str(error)
        assert not canary.exists(), way
        harmless = member in {"_stable_baselines3_version", "system_info.txt"}  # texts, to all who read them
        assert harmless or member in said, way
        if member == "data":
            assert way.split(": ")[1] in said, way
            assert "io.open" in said or "builtins.open" in said, way


def test_a_zip_cut_off_anywhere_is_refused(malformed, tmp_path):
    small = malformed.zipped({"data": b'{"gamma": 1.0}', "policy.pth": malformed.inner({"a": malformed.tensor()})})
    assert read_archive(written(tmp_path / "x.zip", small)).parameters["policy"]["a"].tolist() == [0.0] * 4
    for length in range(len(small)):
        with pytest.raises(UserError):
            read_archive(written(tmp_path / "x.zip", small[:length]))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "model.zip"


def read_or_refuse(path):
    try:
        return read_archive(path)
    except UserError:
        return None


@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes_are_refused_or_harmless(zip_bytes, scratch, flips):
    content = bytearray(zip_bytes)
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    archive = read_or_refuse(written(scratch, bytes(content)))
    if archive is not None:  # the flips hit what is not read
        assert same(archive.parameters, read_archive(written(scratch, zip_bytes)).parameters)


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), noise=st.binary(max_size=30))
def test_flips_that_the_check_sums_agree_with_are_refused_or_read(malformed, zip_bytes, scratch, place, mask, noise):
    parts = malformed.members(zip_bytes)
    pth = malformed.members(parts["policy.pth"])
    name = next(name for name in pth if name.endswith("data.pkl"))
    pickled = bytearray(pth[name])
    start = int(place * len(pickled))
    pickled[start] ^= mask
    pickled[start + 1 : start + 1 + len(noise) // 2] = noise
    data = bytearray(parts["data"])
    data[int(place * len(data))] ^= mask
    changed = malformed.zipped({**pth, name: bytes(pickled)})
    for parts_now in ({**parts, "policy.pth": changed}, {**parts, "data": bytes(data)}):
        read_or_refuse(written(scratch, malformed.zipped(parts_now)))


@given(
    content=st.binary(max_size=400), member=st.sampled_from(["", "data", "policy.pth", "pytorch_variables.pth", "pkl"])
)
def test_random_bytes_are_refused_or_read(malformed, zip_bytes, scratch, content, member):
    if member == "pkl":
        member, content = "policy.pth", malformed.raw_inner(content)
    whole = malformed.zipped({**malformed.members(zip_bytes), member: content}) if member else content
    archive = read_or_refuse(written(scratch, whole))
    assert archive is None or (member == "pytorch_variables.pth" and not content) or member == "data"


def test_what_is_strange_about_pickles_is_noted(malformed, zip_bytes, tmp_path):
    parts = malformed.members(zip_bytes)
    data = json.loads(parts["data"])
    harmless = base64.b64encode(cloudpickle.dumps([1])).decode()
    disguised = base64.b64encode(b"\x80\x04\x8c\x1estable_baselines3.common.utils\x8c\tos.system\x93.").decode()
    notes = {
        "an unknown key": (harmless, "where SB3 writes none"),
        "seed": (disguised, "stable_baselines3.common.utils:os.system"),
        "gamma": (harmless[:-4], "where SB3 writes none|no readable pickle"),
        "tau": ("no base64!", "no base64 text"),
    }
    data |= {key: {":type:": "x", ":serialized:": text} for key, (text, _) in notes.items()}
    content = malformed.zipped({**parts, "data": json.dumps(data).encode(), "evil.pkl": b""})
    unread = read_archive(written(tmp_path / "x.zip", content)).unread
    assert len(unread) == 5
    assert "evil.pkl" in unread[0]
    for key, (_, said) in notes.items():
        (note,) = (note for note in unread if repr(key) in note)
        assert re.search(said, note), note
