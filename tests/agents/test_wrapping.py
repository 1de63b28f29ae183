"""Trained SB3 agents made equivariant: the same weights, nothing lost, and the old agent stays as it was."""

import math
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy

from equirl import Matrix, Permutation, Symmetry, cyclic, resolve_symmetry, symmetrize
from equirl.agents import dqn
from equirl.errors import UserError

ARCH: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
OFF: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "buffer_size": 300, "train_freq": 4, **ARCH}
ON: dict[str, Any] = {"n_steps": 16, **ARCH}
NOISE = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
ALGOS: dict[Any, dict[str, Any]] = {
    DQN: {**OFF, "learning_rate": LinearSchedule(3e-3, 1e-3, 0.5), "target_update_interval": 20},
    QRDQN: OFF,
    PPO: {**ON, "batch_size": 8, "n_epochs": 2, "clip_range": LinearSchedule(0.3, 0.1, 1.0)},
    A2C: {**ON, "learning_rate": 2e-3},
    SAC: {**OFF, "ent_coef": "auto_0.5"},
    TD3: {**OFF, "action_noise": NOISE},
    DDPG: OFF,
}
METHODS = ("identity", "equitune", "equizero", "lambda")  # test_designs.py has the others
EQUIVARIANT = METHODS[1:]


def env_of(algo: Any) -> str:
    return "Pendulum-v1" if algo in (SAC, TD3, DDPG) else "CartPole-v1"


def trained(algo: Any) -> Any:
    """Return an agent that has learnt a little, the same one each time."""
    own = deepcopy(ALGOS[algo])  # SB3 adds to policy_kwargs
    return algo("MlpPolicy", env_of(algo), seed=0, device="cpu", **own).learn(48)


def wrapped(algo: Any, method: str, **options: Any) -> tuple[Any, Any]:
    """Return an old agent and the new one."""
    old = trained(algo)
    return old, symmetrize(old, env_of(algo), method, **options)


def batch(model: Any, count: int = 32) -> Any:
    space = model.observation_space
    space.seed(0)
    seen = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        stacked: Any = {key: np.stack([each[key] for each in seen]) for key in space}
    else:
        stacked = np.clip(np.stack(seen), -9, 9) if space.dtype != np.uint8 else np.stack(seen)
    return model.policy.obs_to_tensor(stacked)[0]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by their path."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in pairs for path, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value.clone() if isinstance(value, torch.Tensor) else value}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def learnt(model: Any) -> dict[str, Any]:
    """Return everything that a model has learnt: weights, optimizers' states, loose tensors."""
    loose = {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]}
    found = flat({**model.get_parameters(), "loose": loose})
    return {key: value for key, value in found.items() if not key.endswith("/fused")}  # how Adam steps is no lesson


def without_symmetrizers(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if "symmetrizer" not in key}


# ----------------------------------------------------------------------------------------- every algorithm and method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algo", ALGOS)
def test_the_new_agent_has_the_old_weights_and_is_equivariant(algo, method):
    old, new = wrapped(algo, method)
    assert type(new) is algo
    weights = {name: old.get_parameters()[name] for name in old.get_parameters() if "optimizer" not in name}
    kept = without_symmetrizers(flat({name: new.get_parameters()[name] for name in weights}))
    assert same(flat(weights), kept)
    error = new.policy.equivariance_error(batch(new))
    assert error <= 1e-5 if method != "identity" else error > 1e-4
    assert new.policy.symmetry == resolve_symmetry(env_of(algo))
    assert new.policy.method == method
    new.learn(24, reset_num_timesteps=False)
    assert not same(kept, without_symmetrizers(flat({name: new.get_parameters()[name] for name in weights})))
    error = new.policy.equivariance_error(batch(new))
    assert error <= 1e-5 if method != "identity" else error > 1e-4


@pytest.mark.parametrize("algo", ALGOS)
def test_states_of_optimizers_and_counters_are_carried_over(algo):
    old, new = wrapped(algo, "equitune")
    assert same(learnt(old), learnt(new))  # log_ent_coef included
    counters = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate", "_total_timesteps")
    for name in counters:
        assert getattr(old, name, None) == getattr(new, name, None)
    assert new.num_timesteps >= 48
    assert new._n_updates > 0
    parts = new._get_torch_save_params()[0]
    states = [value for name, value in new.get_parameters().items() if "optimizer" in name]
    assert len(states) == sum("optimizer" in name for name in parts)
    assert all(state["state"] for state in states)


@pytest.mark.parametrize("method", ["equitune", "lambda"])
@pytest.mark.parametrize("algo", ALGOS)
def test_the_old_agent_stays_as_it_was(algo, method):
    old = trained(algo)
    obs = batch(old).numpy()

    def state() -> dict[str, Any]:
        buffers = {"episodes": list(old.ep_info_buffer), "noise": str(old.action_noise) if algo is TD3 else ""}
        plain = {name: value for name, value in vars(old).items() if isinstance(value, int | float | str | bool)}
        return (
            learnt(old) | flat({**buffers, **plain}) | {"actions": torch.tensor(old.predict(obs, None, None, True)[0])}
        )

    before = state()
    new = symmetrize(old, env_of(algo), method)
    assert same(before, state())
    assert old.policy.__class__.__module__.startswith(("stable_baselines3", "sb3_contrib"))
    new.learn(40, reset_num_timesteps=False)
    assert new.num_timesteps > old.num_timesteps
    assert same(before, state())


class Rates(BaseCallback):
    """Keeps what the schedules said while learning."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        self.seen.append([getattr(self.model, "exploration_rate", 0), self.model._current_progress_remaining])
        return True

    def _on_training_end(self) -> None:
        logged = self.model.logger.name_to_value
        self.seen.append({key: logged[key] for key in ("train/learning_rate", "train/clip_range") if key in logged})


@pytest.mark.parametrize("algo", ALGOS)
def test_an_identity_agent_predicts_and_learns_exactly_as_the_plain_one(algo, tmp_path):
    trained(algo).save(tmp_path / "old")
    ends, rates = [], []
    for change in (lambda model: model, lambda model: symmetrize(model, env_of(algo), "identity")):
        model = change(algo.load(tmp_path / "old", env=make_vec_env(env_of(algo), seed=3), device="cpu"))
        model.set_random_seed(5)
        obs = batch(model).numpy()
        predicted = torch.as_tensor(model.predict(obs, deterministic=True)[0])
        callback = Rates()
        model.learn(48, reset_num_timesteps=False, callback=callback)
        rates.append(callback.seen)
        ends.append(learnt(model) | {"first": predicted, "last": torch.as_tensor(model.predict(obs)[0])})
    assert same(*ends)
    assert rates[0] == rates[1]
    assert not same(without_symmetrizers(learnt(trained(algo))), {k: v for k, v in ends[0].items() if k in ends[0]})


@pytest.mark.parametrize("algo", ALGOS)
def test_what_learning_needs_is_carried_over(algo):
    old, new = wrapped(algo, "equizero")
    assert new.get_env() is old.get_env()
    for progress in (1.0, 0.7, 0.2):
        assert new.lr_schedule(progress) == old.lr_schedule(progress)
        if algo is PPO:
            assert new.clip_range(progress) == old.clip_range(progress) != old.clip_range(progress / 2)
        if algo in (DQN, QRDQN):
            assert new.exploration_schedule(progress) == old.exploration_schedule(progress)
    if "buffer_size" in ALGOS[algo]:
        assert new.replay_buffer is old.replay_buffer
        assert new.replay_buffer.pos >= 48
        assert (new.train_freq, new.gradient_steps, new.learning_starts) == (old.train_freq, old.gradient_steps, 10)
    if algo is TD3:
        assert new.action_noise is not old.action_noise
        assert str(new.action_noise) == str(old.action_noise)
    assert new.seed == old.seed == 0


@pytest.mark.parametrize("algo", ALGOS)
def test_lambda_starts_as_equitune(algo):
    _, one = wrapped(algo, "equitune")
    _, other = wrapped(algo, "lambda")
    obs = batch(one)
    for name, (f, _, _, x) in one.policy.measured(obs).items():
        g = other.policy.measured(obs)[name].f
        with torch.no_grad():
            first, second = f(x), g(x)
        pairs = zip(flat([first]).values(), flat([second]).values(), strict=True)
        assert all(torch.allclose(value, other, rtol=0, atol=1e-5) for value, other in pairs), name


@pytest.mark.parametrize("algo", ALGOS)
def test_sb3_loads_what_was_wrapped(algo, tmp_path):
    _, new = wrapped(algo, "lambda")
    new.save(tmp_path / "new")
    loaded = algo.load(tmp_path / "new", env=make_vec_env(env_of(algo), seed=0), device="cpu")
    obs = batch(new).numpy()
    assert same(learnt(new), learnt(loaded))
    assert np.array_equal(new.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.policy.method == "lambda"
    evaluate_policy(loaded, make_vec_env(env_of(algo), seed=0), n_eval_episodes=1, warn=False)
    loaded.learn(16)


# ------------------------------------------------------------------------------------------------------------ options


def test_options_of_a_method_are_taken():
    _, new = wrapped(DQN, "equizero", score="entropy")
    assert new.policy_kwargs["symmetrizer_kwargs"] == {"score": "entropy"}
    assert new.policy.symmetrizer_kwargs == {"score": "entropy"}
    with pytest.raises(UserError, match="score 'entropi'"):
        wrapped(DQN, "equizero", score="entropi")


def test_a_symmetric_agent_is_wrapped_again():
    plain = trained(DQN)
    learner = symmetrize(plain, "CartPole-v1", "lambda", hidden=8).learn(40, reset_num_timesteps=False)
    again = symmetrize(learner, "CartPole-v1", "lambda", hidden=8)
    assert same(learnt(learner), learnt(again))
    zero = symmetrize(learner, "CartPole-v1", "equizero")
    weights = without_symmetrizers(flat(learner.get_parameters()["policy"]))
    assert same(weights, flat(zero.get_parameters()["policy"]))
    assert "symmetrizer_kwargs" not in zero.policy_kwargs
    back = symmetrize(zero, "CartPole-v1", "identity")
    assert same(weights, flat(back.get_parameters()["policy"]))
    assert back.policy.equivariance_error(batch(back)) > 1e-4


def test_names_stay_names_and_data_is_taken():
    old = trained(DQN)
    assert symmetrize(old, "CartPole-v1", "equitune").policy_kwargs["symmetry"] == "CartPole-v1"
    for given in (resolve_symmetry("CartPole-v1"), dict(resolve_symmetry("CartPole-v1"))):
        assert symmetrize(old, given, "equitune").policy.symmetry == resolve_symmetry("CartPole-v1")


def test_replay_of_several_steps_is_carried_over_without_a_warning(recwarn):
    old = DQN("MlpPolicy", "CartPole-v1", n_steps=3, device="cpu", **deepcopy(OFF)).learn(20)
    new = symmetrize(old, "CartPole-v1", "equitune").learn(20)
    assert (new.n_steps, new.replay_buffer, new.replay_buffer_class) == (3, old.replay_buffer, old.replay_buffer_class)
    assert len(recwarn) == 0


def test_an_agent_without_environment_is_wrapped(tmp_path):
    trained(PPO).save(tmp_path / "old")
    new = symmetrize(PPO.load(tmp_path / "old", device="cpu"), "CartPole-v1", "equitune")
    assert new.get_env() is None
    new.set_env(make_vec_env("CartPole-v1"))
    new.learn(16)


# ------------------------------------------------------------------------------------------------- other observations


class Corner(gym.Env):
    """A dictionary or a picture, in which a quarter turn sends action a to a + 1."""

    def __init__(self, kind: str) -> None:
        parts: dict[str, spaces.Space[Any]] = {
            "place": spaces.Box(-1, 1, (2,)),
            "small": spaces.Box(0, 255, (1, 5, 5), np.uint8),
            "large": spaces.Box(0, 255, (1, 36, 36), np.uint8),
        }
        both = spaces.Dict({key: parts[key] for key in ("place", kind.split()[0])})
        self.observation_space = parts.get(kind, both)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(0)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action), self.np_random.random() < 0.2, False, {}


TURNS: dict[str, Any] = {"place": {"permutation": [1, 0], "signs": [1, -1]}, "small": "rot90", "large": "rot90"}
TURNS |= {f"{size} both": {"keys": {"place": TURNS["place"], size: "rot90"}} for size in ("small", "large")}


@pytest.mark.parametrize(
    ("algo", "policy", "kind", "kwargs"),
    [
        (DQN, "MultiInputPolicy", "small both", {}),
        (DQN, "MultiInputPolicy", "large both", {}),
        (PPO, "MultiInputPolicy", "small both", {}),
        (PPO, "MultiInputPolicy", "large both", {}),
        (DQN, "CnnPolicy", "large", {"features_extractor_kwargs": {"features_dim": 8}}),
        (A2C, "CnnPolicy", "large", {"features_extractor_kwargs": {"features_dim": 8}}),
    ],
)
def test_dictionaries_and_pictures(algo, policy, kind, kwargs):
    from equirl.agents.extractors import SizedCombinedExtractor

    if kind == "small both":  # SB3's own extractor reads no picture this small
        kwargs = {"features_extractor_class": SizedCombinedExtractor}
    own = {"buffer_size": 50, "learning_starts": 8, "batch_size": 4} if algo is DQN else {"n_steps": 8}
    own |= {"batch_size": 4, "n_epochs": 1} if algo is PPO else {}
    old = algo(policy, Corner(kind), policy_kwargs={"net_arch": [8], **kwargs}, device="cpu", **own).learn(12)
    symmetry = Symmetry.generated_by((TURNS[kind], [1, 2, 3, 0]))
    new = symmetrize(old, symmetry, "equitune")
    assert same(learnt(old), learnt(new))
    assert new.policy.equivariance_error(batch(new, 4)) <= 1e-5
    assert symmetrize(old, symmetry, "identity").policy.equivariance_error(batch(new, 4)) > 1e-6
    new.learn(12)


def test_the_symmetry_is_fitted_to_stacked_frames():
    env = VecFrameStack(make_vec_env("CartPole-v1", n_envs=2, seed=0), 3)
    old: Any = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", **deepcopy(ARCH)).learn(16)
    new = symmetrize(old, "CartPole-v1", "equitune")
    assert new.policy.symmetry == resolve_symmetry("CartPole-v1").stacked(3)
    assert new.policy.equivariance_error(batch(new)) <= 1e-5
    evaluate_policy(new, env, n_eval_episodes=2, warn=False)
    new.learn(16)


# --------------------------------------------------------------------------------------------------- what is refused


class Own(DQNPolicy):
    """A policy that nobody knows."""


def untouched(old: Any, match: str, symmetry: Any = "CartPole-v1", method: str = "equitune") -> None:
    before = learnt(old)
    with pytest.raises(UserError, match=match) as raised:
        symmetrize(old, symmetry, method)
    assert "\n" not in str(raised.value)
    assert same(before, learnt(old))


def test_a_policy_of_ones_own_is_refused():
    untouched(DQN(Own, "CartPole-v1", buffer_size=9, **deepcopy(ARCH)), "DQN agent with .*Own: expected DQN, QRDQN")
    untouched(
        TQC("MlpPolicy", "Pendulum-v1", buffer_size=9, **deepcopy(ARCH)), "TQC agent with sb3_contrib", "Pendulum-v1"
    )


def test_a_policy_under_the_name_of_sb3s_own_is_refused():
    fake: Any = type("DQNPolicy", (DQNPolicy,), {"__module__": DQNPolicy.__module__})
    untouched(DQN(fake, "CartPole-v1", buffer_size=9, **deepcopy(ARCH)), "expected DQN, QRDQN")


class Mine(dqn.MlpPolicy):
    """A symmetric policy of a user's own."""


def test_a_symmetric_policy_of_ones_own_stays():
    kwargs = {"net_arch": [8], "symmetry": "CartPole-v1", "method": "identity"}
    old = DQN(Mine, "CartPole-v1", buffer_size=9, policy_kwargs=kwargs)
    assert type(symmetrize(old, "CartPole-v1", "equitune").policy) is Mine


@pytest.mark.parametrize(
    ("symmetry", "method", "match"),
    [
        ("Acrobot-v1", "equitune", "acts on 6 entries"),
        ("Pendulum-v1", "equitune", "expected|acts on"),
        ("CartPole", "equitune", "did you mean 'CartPole-v1'"),
        ("CartPole-v1", "equitun", "did you mean 'equitune'"),
        ({"kind": "x"}, "equitune", "expected"),
    ],
)
def test_a_wrong_symmetry_or_method_is_refused(symmetry, method, match):
    untouched(trained(DQN), match, symmetry, method)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((trained, "CartPole-v1", "equitune"), "expected a torch module or an SB3 agent"),
        ((None, None, None), "without method"),
    ],
)
def test_what_is_no_agent_is_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        symmetrize(*arguments)


def test_an_agent_without_symmetry_is_refused():
    with pytest.raises(UserError, match="without symmetry"):
        symmetrize(trained(DQN), method="equitune")  # type: ignore[call-overload]


def test_gsde_is_refused():
    old = PPO("MlpPolicy", "Pendulum-v1", use_sde=True, n_steps=8, batch_size=8, device="cpu", **deepcopy(ARCH))
    untouched(old, "use_sde", "Pendulum-v1")


# ---------------------------------------------------------------------------------------------- normalised observations


def normalized(mean: Any, var: Any, frames: int = 1) -> Any:
    env = VecNormalize(make_vec_env("CartPole-v1"), training=False)
    env.obs_rms.mean, env.obs_rms.var = np.asarray(mean, float), np.asarray(var, float)
    seen: Any = VecFrameStack(env, frames) if frames > 1 else env
    return PPO("MlpPolicy", seen, n_steps=8, batch_size=8, device="cpu", **deepcopy(ARCH))


@pytest.mark.parametrize("frames", [1, 3])
def test_statistics_that_the_group_keeps_are_taken(frames):
    new = symmetrize(normalized([0] * 4, [1, 2, 3, 4], frames), "CartPole-v1", "equitune")
    assert new.policy.equivariance_error(batch(new)) <= 1e-5


@pytest.mark.parametrize("frames", [1, 3])
def test_statistics_that_the_group_does_not_keep_are_refused(frames):
    old = normalized([0, 0.01, 0, 0], [1, 2, 3, 4], frames)
    untouched(old, "VecNormalize statistics that C2 does not keep")
    assert symmetrize(old, "CartPole-v1", "identity").predict(np.zeros((1, 4 * frames)))[0] in (0, 1)


def test_statistics_of_entries_that_are_swapped_or_mixed():
    mirror: Any = [[0.6, 0.8, 0, 0], [0.8, -0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    swap = Symmetry.generated_by(({"permutation": [1, 0, 2, 3]}, [1, 0]))
    mix = Symmetry(Matrix(cyclic(2), np.array([np.eye(4), mirror])), Permutation.regular(cyclic(2)))
    for symmetry in (swap, mix):
        symmetrize(normalized([2, 2, 5, 5] if symmetry is swap else [2, 1, 5, 5], [4, 4, 1, 2]), symmetry, "equitune")
    untouched(normalized([2, 2, 5, 5], [4, 5, 1, 2]), "does not keep", swap)
    # Kept as a vector by the reflection, and yet no deviations that commute with it.
    untouched(normalized([2, 1, 5, 5], [4, 1, 1, 2]), "does not keep", mix)
    untouched(normalized([math.nan] * 4, [1] * 4), "does not keep", swap)


def test_statistics_that_observations_do_not_pass_do_not_matter():
    old = normalized([3, 0, 0, 0], [1, 2, 3, 4])
    old.get_vec_normalize_env().norm_obs = False
    symmetrize(old, "CartPole-v1", "equitune")
