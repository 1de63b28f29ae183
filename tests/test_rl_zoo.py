"""RL Zoo's own tools play and plot our runs. They run in processes of their own: RL Zoo changes Gymnasium for all."""

import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from equirl import training
from equirl.runs import settings_of

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


def run(*command: str, cwd: Path) -> str:
    env = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ENJOY = ("-m", "rl_zoo3.enjoy", "--algo", "dqn", "--no-render", "--env")


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
    out = run("-c", PLOT, "-a", "dqn", "-e", "CartPole", "-w", "3", "-f", str(logs), cwd=tmp_path)
    assert out.split() == [f"[{episodes - 2}]"]
