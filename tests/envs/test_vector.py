"""The adapter from Gymnasium's vector environments to SB3's, against SB3's own."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from equirl.envs.gridworld import GridWorldVectorEnv, State, register_envs
from equirl.envs.vector import VectorEnvAdapter
from equirl.errors import UserError


def native(**options: Any) -> Any:
    return VectorEnvAdapter(GridWorldVectorEnv(autoreset_mode="SameStep", **options))


def cartpole():
    return gym.make("CartPole-v1", max_episode_steps=12)


def test_agrees_with_sb3_step_by_step():
    ours: Any = VectorEnvAdapter(SyncVectorEnv([cartpole] * 3, autoreset_mode=AutoresetMode.SAME_STEP))
    theirs: Any = DummyVecEnv([cartpole] * 3)
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(100):
        actions = rng.integers(0, 2, 3)
        got, expected = ours.step(actions), theirs.step(actions)
        for left, right in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        for done, left, right in zip(got[2], got[3], expected[3], strict=True):
            assert set(left) == set(right)
            assert left["TimeLimit.truncated"] is right["TimeLimit.truncated"]
            if done:
                np.testing.assert_array_equal(left["terminal_observation"], right["terminal_observation"])
                ends.add(left["TimeLimit.truncated"])
    assert ends == {False, True}


def test_a_finished_row_carries_its_final_info_and_the_others_theirs():
    env = native(num_envs=2, size=3, n_walls=0, max_episode_steps=3)
    env.reset()
    env.env.state = State(np.zeros((2, 3, 3), bool), np.array([[0, 1], [2, 2]]), np.zeros((2, 2), int))
    _, rewards, dones, infos = env.step(np.array([3, 0]))
    assert dones.tolist() == [True, False]
    np.testing.assert_array_equal(rewards, np.array([1, -0.01], np.float32))
    assert np.argwhere(infos[0].pop("terminal_observation")[1:]).tolist() == [[0, 0, 1], [1, 0, 1]]
    assert infos == [
        {"is_success": True, "TimeLimit.truncated": False},
        {"is_success": False, "TimeLimit.truncated": False},
    ]
    env.env._elapsed[0] = -9  # keep the new episode of row 0 going
    env.step(np.zeros(2, int))
    _, _, dones, infos = env.step(np.zeros(2, int))
    assert dones[1]
    assert infos[1]["TimeLimit.truncated"] is True
    assert infos[1]["is_success"] is False


def test_reaching_the_goal_in_the_last_step_is_not_a_truncation():
    env = native(size=3, n_walls=0, max_episode_steps=1)
    env.reset()
    env.env.state = State(np.zeros((1, 3, 3), bool), np.array([[0, 1]]), np.array([[0, 0]]))
    _, _, dones, infos = env.step(np.array([3]))
    assert dones.all()
    assert infos[0]["TimeLimit.truncated"] is False


def test_reset_infos_are_those_of_the_reset():
    class Greeting(gym.Wrapper):
        def reset(self, **kwargs):
            return self.env.reset(**kwargs)[0], {"hello": 1}

    env = VectorEnvAdapter(
        SyncVectorEnv([lambda: TimeLimit(Greeting(cartpole()), 2)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    env.reset()
    assert env.reset_infos == [{"hello": 1}] * 2
    env.reset_infos = [{}, {}]
    for _ in range(2):
        *_, infos = env.step(np.zeros(2, int))
    assert env.reset_infos == [{"hello": 1}] * 2
    assert set(infos[0]) == {"terminal_observation", "TimeLimit.truncated"}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    with pytest.raises(UserError, match=f"is {mode.name}: expected SAME_STEP"):
        VectorEnvAdapter(SyncVectorEnv([cartpole], autoreset_mode=mode))


def test_seed_and_options_serve_one_reset():
    env = native(num_envs=3)
    env.seed(1)
    first, second = env.reset(), env.reset()
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), first)
    assert not np.array_equal(first, second)
    env.set_options([{"a": 1}, {}, {}])
    with pytest.raises(UserError, match="options differ"):
        env.reset()

    bounded: Any = VectorEnvAdapter(SyncVectorEnv([cartpole] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    bounded.set_options({"low": 0.04, "high": 0.05})
    assert bounded.reset().min() >= 0.04
    assert bounded.reset().min() < 0.04


def test_attributes_of_a_native_environment_are_answered_once_for_all_rows():
    env = native(num_envs=3, render_mode="rgb_array")
    assert env.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    assert env.get_attr("action_space", indices=0) == [env.action_space]
    assert env.env_is_wrapped(Monitor) == [False] * 3
    env.set_attr("colour", "red")
    assert env.get_attr("colour") == ["red"] * 3
    env.env.reset()
    assert [len(frames) for frames in env.env_method("render")] == [3] * 3
    for call in (lambda: env.set_attr("colour", "blue", indices=[1]), lambda: env.env_method("render", indices=1)):
        with pytest.raises(UserError, match=r"for rows \[1\]: expected all 3 rows"):
            call()
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")


def test_attributes_of_sub_environments_are_their_own():
    envs = SyncVectorEnv([cartpole, lambda: Monitor(cartpole())], autoreset_mode=AutoresetMode.SAME_STEP)
    env = VectorEnvAdapter(RecordEpisodeStatistics(envs))
    assert env.env_is_wrapped(Monitor) == [False, True]
    assert env.env_is_wrapped(Monitor, indices=1) == [True]
    envs.set_attr("gravity", [9.8, 1.0])
    assert env.get_attr("gravity") == [9.8, 1.0]
    env.set_attr("gravity", 2.0)
    assert env.get_attr("gravity") == [2.0, 2.0]
    assert env.env_method("has_wrapper_attr", "gravity") == [True, True]


def test_pictures_are_tiled():
    env = native(num_envs=4, size=4, render_mode="rgb_array")
    env.reset()
    assert [image.shape for image in env.get_images()] == [(128, 128, 3)] * 4
    assert env.render().shape == (256, 256, 3)
    assert env.metadata["render_fps"] == 10
    assert native(num_envs=2).get_images() == [None, None]
    env.close()
    assert env.env.closed


def test_dqn_learns_and_is_evaluated_on_it(tmp_path):
    register_envs()
    envs = gym.make_vec("equirl/GridWorld-v0", 4, size=4, n_walls=2, max_episode_steps=10, autoreset_mode="SameStep")
    env = VecMonitor(VectorEnvAdapter(envs), str(tmp_path / "0"), info_keywords=("is_success",))
    model = DQN("MlpPolicy", env, learning_starts=50, seed=0, policy_kwargs={"net_arch": [16]})
    model.learn(200)
    assert model.num_timesteps >= 200
    assert model._n_updates > 0
    assert model.ep_success_buffer
    rows = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert "equirl/GridWorld-v0" in rows[0]
    assert rows[1] == "r,l,t,is_success"
    assert len(rows) > 10
    results: Any = evaluate_policy(model, env, n_eval_episodes=5, return_episode_rewards=True)
    returns, lengths = results
    assert len(returns) == 5
    assert max(lengths) <= 10
    env.close()
