"""What TensorBoard finds in a run, and that a person sees it on the page."""

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from equirl import training
from equirl.callbacks import SymmetryCallback
from equirl.runs import build_model, make_vec_env, settings_of

SMALL: dict[str, Any] = {"learning_starts": 50, "buffer_size": 500, "train_freq": 4, "gradient_steps": 1}
SMALL |= {"n_timesteps": 200, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}}


def run(folder: Path, env_id: str, **chosen: Any) -> tuple[Path, Any]:
    """Train, and return the run's folder with all that TensorBoard reads in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "FINAL_EPISODES", 1)
        settings = settings_of("dqn", env_id, {**SMALL, **chosen})
        result = training.train(settings, folder, eval_freq=50, eval_episodes=1, console=Console(file=io.StringIO()))
    events = EventAccumulator(result["folder"], size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    return Path(result["folder"]), events


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, Any]:
    chosen = {"env_kwargs": {"size": 4, "n_walls": 1}, "symmetry": "equirl/GridWorld-v0:C4", "method": "lambda"}
    return run(tmp_path_factory.mktemp("logs"), "equirl/GridWorld-v0", **chosen)


@pytest.fixture(scope="module")
def pole(tmp_path_factory) -> tuple[Path, Any]:
    return run(tmp_path_factory.mktemp("logs"), "CartPole-v1", method="equizero")


def values(events: Any, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


@pytest.mark.parametrize("which", ["grid", "pole"])
def test_the_usual_curves_are_there(which, request):
    _, events = request.getfixturevalue(which)
    tags = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "rollout/exploration_rate", "train/loss", "eval/mean_reward", "time/fps"} <= tags
    for tag in ("symmetry/equivariance_error", "symmetry/greedy_disagreement"):
        assert [event.step for event in events.Scalars(tag)] == [50, 100, 150, 200, 200]
    assert max(values(events, "symmetry/equivariance_error")) <= 1e-5
    assert all(0 <= value <= 1 for value in values(events, "symmetry/greedy_disagreement"))
    assert max(values(events, "symmetry/greedy_disagreement")) > 0  # the plain network inside knows no symmetry


def test_a_run_of_few_episodes_has_its_curves_too(tmp_path):
    _, events = run(tmp_path, "CartPole-v1", n_timesteps=30)  # SB3 itself writes after every fourth
    assert {"rollout/ep_rew_mean", "time/fps"} <= set(events.Tags()["scalars"])


def test_lambda_shows_the_weight_of_each_element(grid):
    _, events = grid
    names = ["e", "r", "r2", "r3"]
    weights = np.array([values(events, f"symmetry/lambda_{name}") for name in names])
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(weights[:, 0], 0.25, atol=0.02)  # training starts from the mean
    assert weights.std() > 0
    assert len(events.Histograms("symmetry/lambda")) == weights.shape[1]
    assert not [tag for tag in events.Tags()["scalars"] if "chosen_" in tag]


def test_equizero_shows_how_often_each_element_is_chosen(pole):
    _, events = pole
    chosen = np.array([values(events, f"symmetry/chosen_{name}") for name in ("e", "r")])
    np.testing.assert_allclose(chosen.sum(0), 1, atol=1e-5)
    assert not [tag for tag in events.Tags()["scalars"] if "lambda" in tag]


@pytest.mark.parametrize("method", ["canonical", "product"])
def test_poses_show_how_often_each_element_is_chosen(method, tmp_path):
    chosen = {"env_kwargs": {"size": 4, "n_walls": 1}, "symmetry": "equirl/GridWorld-v0:C4", "method": method}
    _, events = run(tmp_path, "equirl/GridWorld-v0", **chosen)
    shares = np.array([values(events, f"symmetry/chosen_{name}") for name in ("e", "r", "r2", "r3")])
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    assert max(values(events, "symmetry/equivariance_error")) <= 1e-5


def test_soft_symmetry_shows_its_gate(tmp_path):
    _, events = run(tmp_path, "CartPole-v1", method="soft")
    gates = values(events, "symmetry/gate")
    assert gates[0] == pytest.approx(0, abs=0.05)  # it starts shut
    assert all(-1e-6 <= gate <= 1 + 1e-6 for gate in gates)
    assert len(events.Histograms("symmetry/gates")) == len(gates)
    assert not [tag for tag in events.Tags()["scalars"] if "chosen_" in tag or "lambda" in tag]


@pytest.mark.parametrize("which", ["grid", "pole"])
def test_an_orbit_is_pictured(which, request):
    _, events = request.getfixturevalue(which)
    images = events.Images("symmetry/orbit")
    assert len(images) == 5
    picture = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
    assert picture.shape == (378, max(198 * (4 if which == "grid" else 2), 396), 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


def test_hyperparameters_can_be_compared(pole):
    _, events = pole
    contents = events.PluginTagToContent("hparams")
    parse = plugin_data_pb2.HParamsPluginData.FromString
    experiment = parse(contents["_hparams_/experiment"]).experiment
    start = parse(contents["_hparams_/session_start_info"]).session_start_info
    hyperparameters = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    assert hyperparameters["method"] == "equizero"
    assert hyperparameters["env"] == "CartPole-v1"
    assert hyperparameters["n_timesteps"] == 200
    assert hyperparameters["policy_kwargs"] == "{'net_arch': [16]}"
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"rollout/ep_rew_mean", "eval/mean_reward", "symmetry/equivariance_error"}
    assert metrics <= set(events.Tags()["scalars"])  # a column without numbers says nothing


class Two(gym.Env):
    observation_space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,), np.float32), b=gym.spaces.Discrete(3))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"a": np.zeros(2, np.float32), "b": 1}, {}

    def step(self, action):
        return self.reset()[0], 0.0, True, False, {}


def look(settings: Any, folder: Path, steps: int, spoil: bool = False) -> tuple[SymmetryCallback, Any]:
    model: Any = build_model(settings, make_vec_env(settings))
    model.set_logger(configure(str(folder), ["tensorboard"]))
    callback = SymmetryCallback(10, ["l", "r"])
    if spoil:
        torch.nn.init.constant_(model.q_net.q_net[0].weight, float("nan"))
    model.learn(steps, callback=callback)
    model.logger.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    return callback, events


def test_dictionaries_have_numbers_and_no_picture(tmp_path):
    gym.register("test/Two-v0", entry_point=lambda **kwargs: Two())
    try:
        chosen = {**SMALL, "policy": "MultiInputPolicy", "symmetry": "none"}
        callback, events = look(settings_of("dqn", "test/Two-v0", chosen), tmp_path, 20)
    finally:
        gym.registry.pop("test/Two-v0")
    assert callback.last_error == 0.0
    assert "symmetry/equivariance_error" in events.Tags()["scalars"]
    assert events.Tags()["images"] == []


def test_learning_that_diverged_is_shown_and_stops_nothing(tmp_path):
    callback, events = look(settings_of("dqn", "CartPole-v1", SMALL), tmp_path, 20, spoil=True)
    assert np.isnan(callback.last_error)
    assert np.isnan(values(events, "symmetry/equivariance_error")).all()
    assert events.Tags()["images"] == []


def test_looking_changes_nothing_that_is_learnt():
    settings = settings_of("dqn", "CartPole-v1", SMALL)
    learnt = []
    for callback in (None, SymmetryCallback(7, ["l", "r"])):
        model: Any = build_model(settings, make_vec_env(settings))
        learnt.append(model.learn(120, callback=callback).q_net.state_dict())
    assert all(torch.equal(learnt[0][key], learnt[1][key]) for key in learnt[0])


def test_looking_leaves_the_network_in_its_mode():
    settings = settings_of("dqn", "CartPole-v1", SMALL)
    model: Any = build_model(settings, make_vec_env(settings)).learn(60)
    callback = SymmetryCallback(1, ["l", "r"])
    callback.init_callback(model)
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        callback.act()
        assert model.q_net.training is mode


# -------------------------------------------------------------------------------------------------------- browser

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1280,700"
# Without WebGL TensorBoard draws its curves as SVG, which can be read; the clock runs as fast as the page allows.
FLAGS += " --disable-3d-apis --run-all-compositor-stages-before-draw --virtual-time-budget=200000"


@pytest.fixture
def board(pole):
    """Serve the run's folder on this machine alone, and return the address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(pole[0]), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = ""
            while not (found := re.search(r"http://\S+", said)):
                line = server.stderr.readline()
                assert line, f"TensorBoard ended: {said}"
                said += line
            yield found[0]
        finally:
            server.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_sees_the_curves_in_a_browser(board, tmp_path):
    tags = ["rollout/ep_rew_mean", "symmetry/equivariance_error"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until it has read the files
        with urllib.request.urlopen(f"{board}data/plugin/scalars/tags") as answer:
            if set(tags) <= {tag for run in json.load(answer).values() for tag in run}:
                break
        time.sleep(0.2)
    page = f"{board}?tagFilter=^({'|'.join(tags)})$#timeseries"

    def browse(wish: str) -> str:
        with tempfile.TemporaryDirectory(dir=tmp_path) as profile:
            command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", wish, page]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    titles, points, lines = [], [], 0
    for _ in range(5):  # on a busy machine the page may be read before it has drawn everything
        cards = browse("--dump-dom").split("<scalar-card ")[1:]
        titles = re.findall(r'<tb-truncated-path[^>]* title="([^"]*)"', "".join(cards))
        curves = [re.findall(r'<path d="M([^"]*)" style="fill: none; stroke: rgb', card) for card in cards]
        points = [max((len(curve.split("L")) for curve in each), default=0) for each in curves]
        browse(f"--screenshot={tmp_path / 'page.png'}")
        with Image.open(tmp_path / "page.png") as picture:
            lines = int((np.asarray(picture.convert("RGB")) == (66, 80, 102)).all(-1).sum())
        if len(points) == 2 and min(points) > 3 and lines > 500:
            break
    assert sorted(titles) == tags
    assert min(points) > 3, "a curve without points"
    assert lines > 500, f"no curves in {tmp_path / 'page.png'}"
