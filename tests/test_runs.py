"""Settings, environments and folders of a run: what is refused before it starts, and what lies on disk after."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor

from equirl.errors import UserError
from equirl.folders import create_folder, read_settings, write_settings, zoo_name
from equirl.runs import Settings, action_names, build_model, make_vec_env, settings_of
from equirl.symmetry import Symmetry

TURN = Symmetry.generated_by(("rot90", [1, 2, 3, 0]), name="turn")
EXTRA = {"n_timesteps": 10, "eval_freq": 10, "eval_episodes": 1, "save_freq": 10}


class Still(gym.Env):
    """Nothing ever happens, in whatever spaces are asked for."""

    def __init__(self, shape=(3, 4, 6), symmetry=None, render_mode=None):
        self.observation_space = gym.spaces.Box(0, 255, tuple(shape), np.uint8)
        self.action_space = gym.spaces.Discrete(4)
        if symmetry is not None:
            self.symmetry = symmetry

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.observation_space.sample() * 0, 0.0, True, False, {}


class Failing(gym.Wrapper):
    def __init__(self, env):
        raise AssertionError("no\nsuch thing")


@pytest.fixture(autouse=True)
def _environments():
    gym.register("test/Still-v0", entry_point=lambda **kwargs: Still(**kwargs))
    gym.register("test/Symmetric-v0", entry_point=lambda **kwargs: Still((3, 6, 6), TURN, **kwargs))
    yield
    for env_id in ("test/Still-v0", "test/Symmetric-v0"):
        gym.registry.pop(env_id)


def message(*args, **kwargs) -> str:
    """Return the one line with which `settings_of` refuses."""
    with pytest.raises(UserError) as raised:
        settings_of(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ------------------------------------------------------------------------------------------------------- settings


def test_what_the_check_cannot_decide_is_used_by_name_alone():
    with pytest.raises(UserError, match="not chosen by itself: ALE/SpaceInvaders-v5"):
        settings_of("dqn", "ALE/SpaceInvaders-v5")
    settings = settings_of("dqn", "ALE/SpaceInvaders-v5", {"symmetry": "ALE/SpaceInvaders-v5"})
    assert settings.hyperparameters["env_wrapper"] == "equirl.envs.atari_games.GameFrame"
    with pytest.raises(UserError, match=r"no known symmetry of 'FrozenLake-v1'.*FrozenLake-v1:symmetric"):
        settings_of("dqn", "FrozenLake-v1")
    settings = settings_of("dqn", "FrozenLake-v1", {"symmetry": "FrozenLake-v1:symmetric"})
    assert settings.hyperparameters["env_kwargs"]["desc"][1] == "FHFH"


def test_settings_of_takes_symmetry_and_wrapper_from_the_catalogue():
    settings = settings_of("dqn", "ALE/Pong-v5", {"buffer_size": 100})
    assert settings.hyperparameters["symmetry"] == "ALE/Pong-v5"
    assert settings.hyperparameters["env_wrapper"] == "equirl.envs.atari.PongFrame"
    assert settings.method == "equitune"
    env = make_vec_env(settings, n_envs=1)
    assert isinstance(env, VecFrameStack)
    assert env.observation_space.shape == (80, 80, 4)
    settings.symmetry.check_spaces(gym.spaces.Box(0, 255, (4, 80, 80), np.uint8), env.action_space)


def test_auto_takes_the_symmetry_that_an_environment_carries():
    settings = settings_of("dqn", "test/Symmetric-v0", {"policy": "CnnPolicy"})
    assert settings.symmetry == TURN
    assert yaml.safe_load(yaml.safe_dump(settings.hyperparameters)) == settings.hyperparameters  # plain data


def test_auto_without_a_known_symmetry_is_none_for_a_plain_agent_and_refused_for_others():
    settings = settings_of("dqn", "test/Still-v0", {"policy": "CnnPolicy", "method": "identity"})
    assert settings.hyperparameters["symmetry"] == "none"
    assert "--symmetry none" in message("dqn", "test/Still-v0", {"policy": "CnnPolicy"})


def test_frames_stack_in_the_symmetry_as_in_the_observations():
    settings = settings_of("dqn", "CartPole-v1", {"frame_stack": 3})
    assert make_vec_env(settings).observation_space.shape == (12,)
    assert settings.symmetry.observation.indices.shape == (2, 12)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("dqn", "CartPol-v1"), ("'CartPol-v1'", "did you mean 'CartPole-v1'")),
        (("dqm", "CartPole-v1"), ("'dqm'", "did you mean 'dqn'")),
        (("dqn", "CartPole-v1", {"method": "equituned"}), ("'equituned'", "did you mean 'equitune'")),
        (("dqn", "CartPole-v1", {"symmetry": "CartPole"}), ("'CartPole'", "did you mean 'CartPole-v1'")),
        (("dqn", "CartPole-v1", {"gama": 0.9}), ("'gama'", "did you mean 'gamma'")),
        (("dqn", "CartPole-v1", {"n_timesteps": 0}), ("n_timesteps 0", "at least 1")),
        (("dqn", "CartPole-v1", {}, None, -1), ("seed -1", "from 0")),
        (("dqn", "CartPole-v1", {}, None, 2**32), ("seed 4294967296", "to 4294967295")),
        (("dqn", "CartPole-v1", {}, None, 0, "cpuu"), ("'cpuu'", "did you mean 'cpu'")),
        (("dqn", "CartPole-v1", {"symmetry": "Acrobot-v1"}), ("observation", "(4,)", "6")),
        (("dqn", "CartPole-v1", {"symmetry": "equirl/GridWorld-v0"}), ("observation", "(4,)")),
        (("dqn", "Acrobot-v1", {"symmetry": "LunarLander-v3"}), ("observation", "(6,)", "8")),
        (("dqn", "test/Still-v0", {"policy": "CnnPolicy", "symmetry": dict(TURN)}), ("rot90", "4", "6")),
        (("dqn", "Pendulum-v1"), ("dqn on Pendulum-v1", "Discrete")),
        (("dqn", "Blackjack-v1", {"symmetry": "none"}), ("dqn on Blackjack-v1", "Tuple")),
        (("dqn", "CartPole-v1", {"normalize": True}), ("normalize", "break the symmetry")),
        (
            ("dqn", "CartPole-v1", {"vec_env_wrapper": "stable_baselines3.common.vec_env.VecNormalize"}),
            ("VecNormalize", "break the symmetry"),
        ),
        (("dqn", "CartPole-v1", {"env_wrapper": f"{__name__}.Failing"}), ("CartPole-v1", "no such thing")),
        (("dqn", "CartPole-v1", {"env_kwargs": {"gravity": 3}}), ("CartPole-v1", "'gravity'")),
        (("dqn", "equirl/GridWorld-v0", {"env_kwargs": {"size": 2}}), ("size", "2", "at least 3")),
        (("dqn", "CartPole-v1", {"policy": "CnnPolicy"}), ("pictures", "MlpPolicy")),
    ],
)
def test_a_mistake_is_one_line_with_the_value_and_what_was_expected(args, words):
    said = message(*args)
    assert all(word in said for word in words), said


def test_a_permutation_of_the_wrong_number_of_actions_is_refused():
    three = Symmetry.generated_by(({"signs": [-1, -1, -1, -1]}, [2, 1, 0]))
    said = message("dqn", "CartPole-v1", {"symmetry": dict(three)})
    assert "action" in said
    assert "Discrete(2)" in said
    assert "3" in said


@pytest.mark.parametrize(
    ("symmetry", "words"),
    [
        # the turn repeats after four on pictures, and the permutation of actions after three: no group acts like that
        ("{group: C3, observation: {kind: permutation, indices: [[0, 1], [1, 0], [0, 1]]}, action: {}}", ("C3",)),
        ("{group: Q8, observation: {}, action: {}}", ("'Q8'",)),
        ("{observation: {}, action: {}}", ("group",)),
        ("[rot90]", ("rot90",)),
        ("CartPole-v2", ("CartPole-v2", "did you mean 'CartPole-v1'")),
    ],
)
def test_symmetry_data_that_contradict_themselves_are_refused(symmetry, words, tmp_path):
    path = tmp_path / "conf.yml"
    path.write_text(
        f"CartPole-v1:\n  policy: MlpPolicy\n  n_timesteps: 10\n  symmetry: {symmetry}\n  method: equitune\n"
    )
    said = message("dqn", "CartPole-v1", config_file=path)
    assert all(word in said for word in words), said


def test_broken_yaml_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "conf.yml"
    path.write_text("CartPole-v1:\n  policy: MlpPolicy\n  gamma: [0.9\n")
    assert "conf.yml, line 4" in message("dqn", "CartPole-v1", config_file=path)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    said = message("dqn", "LunarLander-v3")
    assert "pip install 'equirl[box2d]'" in said


def test_probing_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings_of("dqn", "CartPole-v1")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- environments


def test_more_than_one_environment_is_native_where_that_resets_as_sb3_does(tmp_path):
    grid = settings_of("dqn", "equirl/GridWorld-v0", {"n_envs": 3})
    assert isinstance(make_vec_env(grid), VecMonitor)
    assert isinstance(make_vec_env(grid, native=False), DummyVecEnv)
    assert isinstance(make_vec_env(grid, n_envs=1), DummyVecEnv)
    # Gymnasium registers a vectorised CartPole too, but it resets one step later
    pole = make_vec_env(settings_of("dqn", "CartPole-v1", {"n_envs": 2}))
    assert isinstance(pole, DummyVecEnv)
    assert pole.num_envs == 2


@pytest.mark.parametrize(("env_id", "files"), [("CartPole-v1", 2), ("equirl/GridWorld-v0", 1)])
def test_monitor_files_are_written_beside_earlier_ones(env_id, files, tmp_path):
    settings = settings_of("dqn", env_id, {"n_envs": 2})
    for _ in range(2):
        make_vec_env(settings, folder=tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k}.monitor.csv" for k in range(2 * files)]


@pytest.mark.parametrize(
    ("env_id", "n_envs"), [("CartPole-v1", 2), ("equirl/GridWorld-v0", 1), ("equirl/GridWorld-v0", 3)]
)
def test_a_seed_decides_every_episode(env_id, n_envs):
    settings = settings_of("dqn", env_id)
    one, same, other = (np.asarray(make_vec_env(settings, n_envs=n_envs, seed=seed).reset()) for seed in (1, 1, 9))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_action_names_come_from_the_environment():
    names = {env_id: action_names(make_vec_env(settings_of("dqn", env_id))) for env_id in ("equirl/GridWorld-v0",)}
    assert names == {"equirl/GridWorld-v0": ["up", "left", "down", "right"]}
    assert action_names(make_vec_env(settings_of("dqn", "ALE/Pong-v5"), n_envs=1))[:3] == ["NOOP", "FIRE", "RIGHT"]
    assert action_names(make_vec_env(settings_of("dqn", "Acrobot-v1"))) == ["0", "1", "2"]


def test_a_model_that_does_not_learn_has_no_buffer_to_speak_of():
    settings = settings_of("dqn", "Acrobot-v1")
    env = make_vec_env(settings)
    acts, learns = (build_model(settings, env, learns=learns) for learns in (False, True))
    size = settings.hyperparameters["buffer_size"]
    assert (acts.replay_buffer.buffer_size, learns.replay_buffer.buffer_size) == (1, size)
    assert acts.buffer_size == learns.buffer_size == size  # what a zip of it says


def test_an_actor_critic_that_does_not_learn_has_no_buffer_to_speak_of():
    settings = settings_of("ppo", "CartPole-v1", {"n_envs": 8, "n_steps": 32, "batch_size": 256})
    acts = build_model(settings, make_vec_env(settings, n_envs=1), learns=False)
    assert (acts.rollout_buffer.buffer_size, acts.n_steps, acts.batch_size) == (2, 32, 256)


@pytest.mark.parametrize("env_id", ["GymV21Environment-v0", "GymV26Environment-v0"])
def test_environments_of_old_gym_are_refused_since_their_ids_import_modules(env_id):
    with pytest.raises(UserError, match="old gym imports what an id names"):
        settings_of("dqn", env_id)


# --------------------------------------------------------------------------------------------------------- folder


def test_folders_count_up_and_are_never_taken_twice(tmp_path):
    settings = Settings("dqn", "ALE/Pong-v5", {})
    (tmp_path / "dqn" / "ALE-Pong-v5_7").mkdir(parents=True)
    (tmp_path / "dqn" / "ALE-Pong-v5_x").mkdir()
    (tmp_path / "dqn" / "ALE-Pong-v5_9").write_text("a file counts too")
    assert create_folder(tmp_path, settings) == tmp_path / "dqn" / "ALE-Pong-v5_10"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_folder(tmp_path, settings), range(24)))
    assert sorted(int(path.name.split("_")[1]) for path in made) == list(range(11, 35))


def test_a_folder_that_another_run_takes_in_between_is_left_alone(tmp_path, monkeypatch):
    settings = Settings("dqn", "CartPole-v1", {})
    create_folder(tmp_path, settings)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))  # as if it had come right after the look
    assert create_folder(tmp_path, settings).name == "CartPole-v1_2"


def test_a_file_in_the_way_of_the_log_folder_is_refused(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(UserError, match=r"log folder .*logs.*can be written"):
        create_folder(tmp_path / "logs", Settings("dqn", "CartPole-v1", {}))


def test_a_read_only_log_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(UserError, match="Permission denied"):
            create_folder(tmp_path / "logs", Settings("dqn", "CartPole-v1", {}))
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


def test_settings_survive_the_folder(tmp_path):
    chosen = {"policy": "CnnPolicy", "symmetry": dict(TURN), "env_kwargs": {"shape": [3, 6, 6]}, "n_timesteps": 10}
    made = settings_of("dqn", "test/Still-v0", chosen, seed=7, device="cpu")
    settings = Settings("dqn", "test/Still-v0", made.hyperparameters, 7, "cpu", EXTRA)
    folder = create_folder(tmp_path, settings)
    write_settings(folder, settings)
    assert read_settings(folder) == settings
    assert read_settings(folder).symmetry == TURN
    args = yaml.safe_load((folder / zoo_name("test/Still-v0") / "args.yml").read_text())
    assert args["env_kwargs"] == {"shape": [3, 6, 6]}  # RL Zoo reads them here


def written(folder: Path, config: str, args: str) -> Path:
    inner = folder / "CartPole-v1"
    inner.mkdir()
    (inner / "config.yml").write_text(config)
    (inner / "args.yml").write_text(args)
    return folder


CONFIG = "{policy: MlpPolicy, n_timesteps: 10, symmetry: CartPole-v1, method: equitune}"
ARGS = "{algo: dqn, env: CartPole-v1, seed: 0, n_timesteps: 10, eval_freq: 1, eval_episodes: 1, save_freq: 1}"


@pytest.mark.parametrize(
    ("config", "args", "words"),
    [
        ("[]", ARGS, ("config.yml", "mapping")),
        (CONFIG, "3", ("args.yml", "mapping")),
        ("{policy: MlpPolicy, n_timesteps: 10}", ARGS, ("config.yml", "symmetry and method")),
        (CONFIG.replace("MlpPolicy", "MlpPolicx"), ARGS, ("MlpPolicx", "did you mean 'MlpPolicy'")),
        (CONFIG, ARGS.replace("CartPole-v1", "CartPole-v7"), ("CartPole-v7", "did you mean")),
        (CONFIG, ARGS.replace("seed: 0", "seed: x"), ("args.yml", "seed 'x'")),
        (CONFIG, ARGS.replace("eval_freq: 1", "eval_freq: 0"), ("args.yml", "eval_freq 0")),
        (CONFIG, ARGS.replace(", save_freq: 1", ""), ("args.yml", "save_freq None")),
        ("a: [1", ARGS, ("config.yml, line 1",)),
        ("!!python/object/apply:os.mkdir [owned]", ARGS, ("config.yml, line 1",)),
    ],
)
def test_a_damaged_run_folder_is_refused_in_one_line(config, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings(written(tmp_path, CONFIG, ARGS)).seed == 0
    written(tmp_path / "CartPole-v1", config, args)
    with pytest.raises(UserError) as raised:
        read_settings(tmp_path / "CartPole-v1")
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in words), raised.value
    assert not (tmp_path / "owned").exists()


def test_no_run_folder_or_two_in_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        read_settings(tmp_path / "missing")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.yml").write_text("{}")
    with pytest.raises(UserError, match="no run folder"):
        read_settings(tmp_path)
