"""RL Zoo's own tools play and plot our runs, and train our policies.

They run in processes of their own: RL Zoo changes Gymnasium for all.
"""

import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from stable_baselines3 import DQN, PPO

from equirl import training
from equirl.agents import actor_critic, dqn
from equirl.runs import settings_of
from tests._elsewhere import run_code, run_module

pytestmark = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")

SMALL: dict[str, Any] = {"learning_starts": 50, "buffer_size": 500, "train_freq": 4, "gradient_steps": 1}
SMALL |= {"n_timesteps": 200, "batch_size": 16}
GRID = {"env_kwargs": {"size": 4, "n_walls": 1}, "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}}


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "FINAL_EPISODES", 1)
        for env_id, chosen in (("CartPole-v1", {"frame_stack": 2}), ("equirl/GridWorld-v0", GRID)):
            settings = settings_of("dqn", env_id, {**SMALL, **chosen})
            training.train(settings, folder, eval_freq=100, console=Console(file=io.StringIO()))
    return folder


def run(module: str, *arguments: str | Path, cwd: Path) -> str:
    done = run_module(module, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ENJOY = ("rl_zoo3.enjoy", "--algo", "dqn", "--no-render", "--env")


def test_enjoy_plays_an_agent_with_stacked_frames(logs, tmp_path):
    out = run(*ENJOY, "CartPole-v1", "-n", "500", "-f", str(logs), cwd=tmp_path)
    assert f"Loading {logs}/dqn/CartPole-v1_1/CartPole-v1.zip" in out
    lengths = [int(number) for number in re.findall(r"Episode Length (\d+)", out)]
    assert 8 <= sum(lengths) <= 500
    assert f"{len(lengths)} Episodes" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [["--load-best"], []])
def test_enjoy_plays_an_environment_of_ours(which, logs, tmp_path):
    place = ["-f", str(logs), "--gym-packages", "equirl.envs"]
    out = run(*ENJOY, "equirl/GridWorld-v0", "-n", "200", *place, *which, cwd=tmp_path)
    assert ("best_model.zip" if which else "equirl-GridWorld-v0.zip") in out
    assert "Success rate" in out
    assert float(re.findall(r"Episode Length (\d+)", out)[0]) <= 50


# What plot_train draws goes to a window; this counts the points of its curves instead.
PLOT = """
import runpy, sys
import matplotlib.pyplot as plt
plt.show = lambda: print([len(line.get_xdata()) for line in plt.gca().lines])
sys.argv = ["plot_train", *sys.argv[1:]]
runpy.run_module("rl_zoo3.plots.plot_train", run_name="__main__")
"""


def test_plot_train_draws_the_returns(logs, tmp_path):
    episodes = len((logs / "dqn" / "CartPole-v1_1" / "0.monitor.csv").read_text().splitlines()) - 2
    done = run_code(PLOT, "-a", "dqn", "-e", "CartPole", "-w", "3", "-f", logs, cwd=tmp_path, strict=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"[{episodes - 2}]"]


# RL Zoo trains our policies

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
(SHOWN,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
SHORT = {"n_timesteps": 200, "learning_starts": 50, "train_freq": 4, "gradient_steps": 1, "buffer_size": 500}
HYPERPARAMS: dict[str, dict[str, Any]] = {
    "dqn": {**yaml.safe_load(SHOWN)["CartPole-v1"], **SHORT},
    "ppo": {
        "policy": "equirl.agents.actor_critic.MlpPolicy",
        "policy_kwargs": "dict(symmetry='CartPole-v1', method='equizero', net_arch=[8])",
        "n_timesteps": 128,
        "n_envs": 2,
        "n_steps": 32,
        "batch_size": 32,
        "n_epochs": 2,
    },
}


def zoo(algo: str, folder: Path) -> tuple[str, ...]:
    """Return RL Zoo's command that trains an algorithm on CartPole with HYPERPARAMS: for DQN the README's, cut."""
    conf = folder / f"{algo}.yml"
    conf.write_text(yaml.safe_dump({"CartPole-v1": HYPERPARAMS[algo]}))
    more = ("--seed", "1", "--device", "cpu", "--verbose", "0")
    return ("rl_zoo3.train", "--algo", algo, "--env", "CartPole-v1", "--conf-file", str(conf), *more)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """Train our policy with RL Zoo, go on where that stopped, and return the folder of the logs."""
    folder: Path = tmp_path_factory.mktemp("zoo")
    run(*zoo("dqn", folder), "--eval-freq", "100", "--eval-episodes", "1", cwd=folder)
    onwards = ("--eval-freq", "-1", "-n", "100", "-i", "logs/dqn/CartPole-v1_1/CartPole-v1.zip")
    ignored = ("--hyperparams", "policy_kwargs:dict(symmetry='none', method='identity')")
    run(*zoo("dqn", folder), *onwards, *ignored, cwd=folder)
    return folder / "logs"


def updates_of(model: DQN) -> int:
    """Return how many steps the optimizer itself has counted."""
    (count,) = {int(state["step"]) for state in model.policy.optimizer.state_dict()["state"].values()}
    return count


def test_rl_zoo_trains_our_policy(theirs):
    run_folder = theirs / "dqn" / "CartPole-v1_1"
    model = DQN.load(run_folder / "CartPole-v1.zip")
    policy: Any = model.policy
    assert type(policy) is dqn.MlpPolicy
    assert (policy.method, policy.symmetry.name, policy.net_arch) == ("equitune", "CartPole-v1", [256, 256])
    assert model.num_timesteps == 200
    assert model._n_updates == updates_of(model) == len(range(52, 201, 4))
    assert policy.equivariance_error(torch.randn(50, 4)) <= 1e-5
    best: Any = DQN.load(run_folder / "best_model.zip").policy
    assert best.equivariance_error(torch.randn(50, 4)) <= 1e-5


def test_rl_zoo_goes_on_with_our_policy(theirs):
    """It counts steps from zero again; the optimizer's own count shows that learning went on. The zip says the rest."""
    first, second = (DQN.load(theirs / "dqn" / f"CartPole-v1_{k}" / "CartPole-v1.zip") for k in (1, 2))
    policy: Any = second.policy
    assert type(policy) is dqn.MlpPolicy
    assert (policy.method, policy.symmetry.name) == ("equitune", "CartPole-v1")
    assert second.num_timesteps == 100
    assert second._n_updates == updates_of(second) == updates_of(first) + len(range(52, 101, 4))
    seen = torch.randn(50, 4)
    assert not torch.equal(policy.q_net(seen), first.policy.q_net(seen))
    assert policy.equivariance_error(seen) <= 1e-5


@pytest.mark.slow
def test_rl_zoo_plays_what_it_trained(theirs, tmp_path):
    out = run(*ENJOY, "CartPole-v1", "-n", "600", "-f", str(theirs), cwd=tmp_path)
    assert f"Loading {theirs}/dqn/CartPole-v1_2/CartPole-v1.zip" in out
    lengths = [int(number) for number in re.findall(r"Episode Length (\d+)", out)]
    assert 8 <= sum(lengths) <= 600


def test_evaluate_reads_what_rl_zoo_trained(theirs, equirl):
    said = equirl("evaluate", theirs / "dqn" / "CartPole-v1_1", "--episodes", "2", "--json")
    assert said.code == 0, said.err
    assert '"equitune"' in said.out


def test_rl_zoo_trains_our_actor_critic(tmp_path):
    run(*zoo("ppo", tmp_path), "--eval-freq", "-1", cwd=tmp_path)
    model = PPO.load(tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip")
    policy: Any = model.policy
    assert type(policy) is actor_critic.MlpPolicy
    assert (policy.method, model.num_timesteps) == ("equizero", 128)
    assert policy.equivariance_error(torch.randn(50, 4)) <= 1e-5


def test_a_search_that_replaces_our_keywords_fails_instead_of_training_a_plain_agent(tmp_path):
    done = run_module(*zoo("dqn", tmp_path), "-optimize", "--n-trials", "1", "--no-optim-plots", cwd=tmp_path)
    assert done.returncode != 0
    assert re.search(r"TypeError: .*missing .*required keyword-only argument.*'(symmetry|method)'", done.stderr)
