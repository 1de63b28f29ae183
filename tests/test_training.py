"""A run from its first step to its last, through interruptions, into a folder that says all about it."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from equirl import training
from equirl.callbacks import CheckpointCallback, ProgressCallback
from equirl.console import command_line
from equirl.errors import UserError
from equirl.evaluation import Returns
from equirl.folders import locked, read_settings
from equirl.runs import settings_of
from equirl.symmetry import Symmetry
from equirl.training import resume, train
from tests._elsewhere import run_code

SMALL: dict[str, Any] = {"learning_starts": 50, "buffer_size": 500, "train_freq": 4, "gradient_steps": 1}
SMALL |= {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}}
GRID = {**SMALL, "env_kwargs": {"size": 5, "n_walls": 3}}
SILENT = Console(file=io.StringIO())


def pole(**changes: Any) -> Any:
    return settings_of("dqn", "CartPole-v1", {**SMALL, "n_timesteps": 400, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def episodes(folder: Path) -> Any:
    return load_results(str(folder))


def evaluations(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "evaluations.npz") as stored:
        return dict(stored)


def scalars(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


@pytest.fixture(scope="module", autouse=True)
def _few_closing_episodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "FINAL_EPISODES", 3)
        yield


# ---------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    result = train(pole(), tmp_path_factory.mktemp("logs"), eval_freq=100, save_freq=150, console=SILENT)
    return result, Path(result["folder"])


def test_a_run_folder_is_laid_out_as_rl_zoo_has_it(run):
    _, folder = run
    assert folder.parts[-2:] == ("dqn", "CartPole-v1_1")
    names = {name.split(".tfevents")[0] for name in tree(folder)}
    assert names == {
        "CartPole-v1.zip",
        "best_model.zip",
        "evaluations.npz",
        "0.monitor.csv",
        "CartPole-v1/config.yml",
        "CartPole-v1/args.yml",
        "events.out",
        "checkpoints/rl_model_150_steps.zip",
        "checkpoints/rl_model_300_steps.zip",
        "checkpoints/rl_model_400_steps.zip",
        "checkpoints/replay_buffer_400.npz",
        "checkpoints/state.json",
    }
    config = yaml.safe_load((folder / "CartPole-v1" / "config.yml").read_text())
    assert (config["method"], config["symmetry"], config["n_timesteps"]) == ("equitune", "CartPole-v1", 400)
    assert evaluations(folder)["timesteps"].tolist() == [100, 200, 300, 400]
    assert evaluations(folder)["results"].shape == (4, 5)
    assert 400 - 30 < episodes(folder)["l"].sum() <= 400


def test_the_result_says_what_came_of_it(run):
    result, folder = run
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["steps"] == 400
    assert result["equivariance_error"] <= 1e-5
    assert result["best_mean_return"] == pytest.approx(evaluations(folder)["results"].mean(1).max())
    assert 8 <= result["mean_return"] <= 500
    assert Path(result["model"]) == folder / "CartPole-v1.zip"


def test_equal_seeds_give_equal_agents(run, tmp_path):
    again = train(pole(), tmp_path, eval_freq=100, save_freq=150, console=SILENT)
    one, other = (DQN.load(result["model"]).q_net.state_dict() for result in (run[0], again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert again["mean_return"] == run[0]["mean_return"]


PLAIN = """
import json, sys
from stable_baselines3 import DQN
import torch
model = DQN.load(sys.argv[1])
observations = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    values = model.q_net(observations)
print(json.dumps([values.tolist(), model.predict(observations.numpy(), deterministic=True)[0].tolist()]))
"""


def test_plain_sb3_loads_the_agent_bit_for_bit_in_a_fresh_process(run):
    _, folder = run
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    done = run_code(PLAIN, folder / "CartPole-v1.zip", json.dumps(observations.tolist()), cwd=folder, strict=False)
    assert done.returncode == 0, done.stderr
    values, actions = json.loads(done.stdout)
    model: Any = DQN.load(folder / "CartPole-v1.zip")
    model.policy.set_training_mode(False)
    with torch.no_grad():
        here = model.q_net(torch.as_tensor(observations))
        mirrored = model.q_net(-torch.as_tensor(observations))
    assert values == here.tolist()
    assert actions == here.argmax(1).tolist()
    torch.testing.assert_close(mirrored, here.flip(1))


def test_policy_kwargs_in_the_zip_are_readable(run):
    with zipfile.ZipFile(run[1] / "CartPole-v1.zip") as archive:
        kwargs = json.loads(archive.read("data"))["policy_kwargs"]
    assert ":serialized:" not in kwargs
    assert kwargs == {"net_arch": [16], "symmetry": "CartPole-v1", "method": "equitune"}


@pytest.mark.parametrize(("steps", "expected"), [(30, 30), (5000, 1000), (100_000, 5000)])
def test_a_run_is_evaluated_at_least_once_and_not_all_the_time(steps, expected, tmp_path, monkeypatch):
    def closed(settings, folder, model, *_):
        model.get_env().close()
        return settings.extra

    monkeypatch.setattr(training, "_run", closed)
    assert train(pole(n_timesteps=steps), tmp_path)["eval_freq"] == expected


@pytest.mark.parametrize("often", [{}, {"eval_freq": 1000, "save_freq": 7}])
def test_a_longer_run_is_looked_at_less_often_unless_that_was_asked_for(often, tmp_path, monkeypatch):
    folder = Path(train(pole(n_timesteps=60), tmp_path, **often, console=SILENT)["folder"])

    def closed(settings, folder, model, *_):
        model.get_env().close()
        return settings.extra

    monkeypatch.setattr(training, "_run", closed)
    extra = resume(folder, 100_000)
    assert extra["n_timesteps"] == 100_000
    assert (extra["eval_freq"], extra["save_freq"]) == ((1000, 7) if often else (5000, 20_000))


def test_what_trains_can_be_read_again(tmp_path):
    folder = train(pole(n_timesteps=30), tmp_path, save_freq=9_999_999_999, console=SILENT)["folder"]
    assert read_settings(folder).extra["save_freq"] == 9_999_999_999


def test_one_process_trains_in_a_folder(run):
    folder = run[1]
    before = tree(folder)
    with locked(folder), pytest.raises(UserError, match="in which no other process trains"):
        resume(folder, 900)
    assert tree(folder) == before
    with locked(folder):
        pass  # free again


def test_an_agent_that_cannot_be_built_leaves_nothing(tmp_path):
    kept = tmp_path / "logs"
    kept.mkdir()
    for logs in (kept, tmp_path / "new" / "logs"):
        with pytest.raises(UserError, match=r"dqn on CartPole-v1: .*allocate"):
            train(pole(buffer_size=10**14), logs)
    assert list(kept.iterdir()) == []
    assert not (tmp_path / "new" / "logs").exists()


@pytest.mark.parametrize("wrong", [{"eval_freq": 0}, {"eval_episodes": 0}, {"save_freq": -1}])
def test_a_number_below_one_is_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(UserError, match=r"_(freq|episodes) (0|-1): expected a whole number of at least 1"):
        train(pole(), tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


class Mixed(gym.Env):
    """A vector to carry to zero, beside a picture that does not matter."""

    observation_space = gym.spaces.Dict(
        x=gym.spaces.Box(-9, 9, (1,), np.float32), grid=gym.spaces.Box(0, 255, (1, 4, 4), np.uint8)
    )
    action_space = gym.spaces.Discrete(2)
    symmetry = Symmetry.generated_by(({"keys": {"x": {"signs": [-1]}, "grid": "flip_x"}}, [1, 0]))

    def _look(self):
        return {
            "x": np.array([self.x], np.float32),
            "grid": self.np_random.integers(0, 256, (1, 4, 4)).astype(np.uint8),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-4, 4)
        return self._look(), {}

    def step(self, action):
        self.x += 2 * int(action) - 1
        return self._look(), -abs(self.x), abs(self.x) < 0.5 or abs(self.x) > 6, False, {}


@pytest.fixture
def _mixed():
    gym.register("test/Mixed-v0", entry_point=lambda **kwargs: Mixed(), max_episode_steps=20)
    yield
    gym.registry.pop("test/Mixed-v0")


CASES = {
    "native environments, one episode": ("equirl/GridWorld-v0", {**GRID, "n_envs": 3}),
    "two environments": ("CartPole-v1", {**SMALL, "n_envs": 2}),
    "frames": ("CartPole-v1", {**SMALL, "frame_stack": 2}),
    "plain": ("CartPole-v1", {**SMALL, "method": "identity", "symmetry": "none"}),
    "dictionaries": ("test/Mixed-v0", {**SMALL, "policy": "MultiInputPolicy"}),
    "discrete observations": (
        "FrozenLake-v1",
        {**SMALL, "symmetry": dict(Symmetry.generated_by(([4 * (i % 4) + i // 4 for i in range(16)], [3, 2, 1, 0])))},
    ),
}


@pytest.mark.parametrize(("env_id", "chosen"), CASES.values(), ids=CASES)
@pytest.mark.usefixtures("_mixed")
def test_every_kind_of_environment_trains_resumes_and_stays_equivariant(env_id, chosen, tmp_path):
    settings = settings_of("dqn", env_id, {**chosen, "n_timesteps": 120})
    result = train(settings, tmp_path, eval_episodes=1, eval_freq=60, save_freq=60, console=SILENT)
    assert result["equivariance_error"] <= 1e-5
    again = resume(Path(result["folder"]), 200, SILENT)
    assert again["equivariance_error"] <= 1e-5
    assert again["steps"] >= 200


def test_pong_trains_with_its_own_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: Returns([0.0]))  # a game takes seconds
    result = train(settings_of("dqn", "ALE/Pong-v5", {"n_timesteps": 40}), tmp_path, eval_freq=100, console=SILENT)
    assert result["equivariance_error"] <= 1e-5
    assert result["group"] == "C2"


# --------------------------------------------------------------------------------------------------------- resume


def test_a_resumed_run_goes_on_in_its_own_folder(run, tmp_path):
    _, folder = run
    own = tmp_path / "CartPole-v1_1"
    for name, content in tree(folder).items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(content)
    before, first = evaluations(own), (own / "0.monitor.csv").read_bytes()
    result = resume(own, 800, SILENT)

    assert (result["steps"], result["folder"]) == (800, str(own))
    after = evaluations(own)
    assert after["timesteps"].tolist() == list(range(100, 801, 100))
    np.testing.assert_array_equal(after["results"][:4], before["results"])
    assert (own / "0.monitor.csv").read_bytes() == first
    assert {path.name for path in own.glob("*.monitor.csv")} == {"0.monitor.csv", "1.monitor.csv"}
    assert 800 - 60 < episodes(own)["l"].sum() <= 800
    openings = [episode.split(",")[0] for episode in (own / "1.monitor.csv").read_text().splitlines()[2:]]
    assert openings != [episode.split(",")[0] for episode in first.decode().splitlines()[2:]][: len(openings)]
    for tag in ("rollout/ep_rew_mean", "eval/mean_reward", "symmetry/equivariance_error", "train/loss"):
        steps = scalars(own, tag)
        assert steps == sorted(steps), tag
        assert steps[0] < 400 < steps[-1], tag
    model = DQN.load(result["model"])
    assert model.num_timesteps == 800
    assert model._n_updates > DQN.load(run[0]["model"])._n_updates
    assert yaml.safe_load((own / "CartPole-v1" / "config.yml").read_text())["n_timesteps"] == 800
    with pytest.raises(UserError, match="has done 800 of 800 steps: expected more, with -n above 800"):
        resume(own, console=SILENT)


def test_a_resumed_run_throws_new_dice(tmp_path, monkeypatch):
    settings = pole(n_timesteps=40, n_envs=2)
    folder = Path(train(settings, tmp_path, console=SILENT)["folder"])

    def closed(settings, folder, model, *_):
        first = model.get_env().reset()
        model.get_env().close()
        return {"first": first}

    monkeypatch.setattr(training, "_run", closed)
    first: Any = resume(folder, 80, SILENT)["first"]
    same, other = (np.asarray(training.make_vec_env(settings, seed=seed).reset()) for seed in (40, 0))
    np.testing.assert_array_equal(first, same)
    assert not np.isin(first, other).any()


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
    step = ProgressCallback._on_step

    def interrupted(self: ProgressCallback) -> bool:
        if self.num_timesteps == at:
            raise error("stop")
        return step(self)

    monkeypatch.setattr(ProgressCallback, "_on_step", interrupted)


def test_an_interrupted_run_loses_nothing(tmp_path, monkeypatch):
    out = io.StringIO()
    interrupt(monkeypatch, 170, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(pole(), tmp_path, eval_freq=100, save_freq=150, console=Console(file=out))
    folder = tmp_path / "dqn" / "CartPole-v1_1"
    assert f"go on with `{command_line('equirl', 'train', '--resume', folder)}`" in out.getvalue()
    assert DQN.load(folder / "CartPole-v1.zip").num_timesteps == 170
    assert json.loads((folder / "checkpoints" / "state.json").read_text())["num_timesteps"] == 170

    monkeypatch.undo()
    assert resume(folder, console=SILENT)["steps"] >= 400
    steps = scalars(folder, "eval/mean_reward")
    assert steps == evaluations(folder)["timesteps"].tolist() == [100, 270, 370]


def test_a_crashed_run_goes_back_to_its_last_checkpoint(tmp_path, monkeypatch):
    interrupt(monkeypatch, 290, RuntimeError)
    with pytest.raises(RuntimeError, match="stop"):
        train(pole(), tmp_path, eval_freq=40, save_freq=150, console=SILENT)
    monkeypatch.undo()
    folder = tmp_path / "dqn" / "CartPole-v1_1"
    crashed = evaluations(folder)
    assert crashed["timesteps"].tolist() == [40, 80, 120, 160, 200, 240, 280]

    # a best model found after the checkpoint stays the best until a better one comes
    crashed["results"][-1] = 1e6
    np.savez(folder / "evaluations.npz", **crashed)  # type: ignore[arg-type]
    best = (folder / "best_model.zip").read_bytes()
    result = resume(folder, console=SILENT)
    assert evaluations(folder)["timesteps"].tolist() == [40, 80, 120, 190, 230, 270, 310, 350, 390]
    assert scalars(folder, "eval/mean_reward") == evaluations(folder)["timesteps"].tolist()
    assert (folder / "best_model.zip").read_bytes() == best
    assert result["best_mean_return"] == 1e6


def test_a_better_model_replaces_the_best(tmp_path):
    folder = Path(train(pole(n_timesteps=200), tmp_path, eval_freq=100, console=SILENT)["folder"])
    found = evaluations(folder)
    np.savez(folder / "evaluations.npz", **{**found, "results": found["results"] - 1000})  # type: ignore[arg-type]
    best = (folder / "best_model.zip").read_bytes()
    assert resume(folder, 300, SILENT)["best_mean_return"] > 0
    assert (folder / "best_model.zip").read_bytes() != best


@pytest.mark.parametrize("file", ["evaluations.npz", "checkpoints/state.json", "checkpoints/replay_buffer_60.npz"])
def test_a_damaged_file_is_one_line_and_leaves_the_folder_as_it_is(file, tmp_path):
    folder = Path(train(pole(n_timesteps=60), tmp_path, console=SILENT)["folder"])
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    before = tree(folder)
    with pytest.raises(UserError) as raised:
        resume(folder, 90, SILENT)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
    assert tree(folder) == before


def test_nothing_to_resume_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        resume(tmp_path / "nowhere", console=SILENT)
    folder = Path(train(pole(n_timesteps=30), tmp_path, console=SILENT)["folder"])
    (folder / "checkpoints" / "state.json").unlink()
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        resume(folder, 60, SILENT)


# ------------------------------------------------------------------------------------------------------- progress


def progress(console: Console, steps: int = 100) -> ProgressCallback:
    callback = ProgressCallback(steps, console)
    settings = pole(n_timesteps=steps)
    model = training.build_model(settings, training.make_vec_env(settings))
    model.learn(steps, callback=callback)
    return callback


def test_progress_is_a_line_every_tenth_where_no_terminal_listens():
    out = io.StringIO()
    progress(Console(file=out), 95)
    lines = out.getvalue().splitlines()
    assert [int(line.split("/")[0]) for line in lines] == list(range(10, 91, 10))
    assert all(line.split("/")[1].startswith("95 steps  ") for line in lines)
    assert all("steps/s  return " in line and line.endswith(" s left") for line in lines)
    assert not any("-" in line.split("return")[1] for line in lines[5:])


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_one_line_on_a_terminal(width):
    out = io.StringIO()
    progress(Console(file=out, force_terminal=True, width=width, color_system=None))
    text = out.getvalue()
    last = text.replace("\x1b[2K", "\r").split("\r")[-1]
    assert "100/100" in last
    assert "steps/s return" in last
    assert last.splitlines()[0].rstrip().endswith("left")
    assert len(last.splitlines()[0]) <= width
    assert text.endswith("\n\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_progress_leaves_the_terminal_when_the_run_ends_early(error, tmp_path, monkeypatch):
    out = io.StringIO()
    interrupt(monkeypatch, 20, error)
    with pytest.raises(error):
        train(pole(), tmp_path, console=Console(file=out, force_terminal=True, color_system=None))
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
    assert ("interrupted" in out.getvalue().split("\x1b[?25h")[1]) == (error is KeyboardInterrupt)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_never_passes_its_end(terminal):
    out = io.StringIO()
    settings = pole(n_timesteps=30, train_freq=64)  # SB3 ends with a whole rollout
    model = training.build_model(settings, training.make_vec_env(settings))
    model.learn(30, callback=ProgressCallback(30, Console(file=out, force_terminal=terminal, color_system=None)))
    assert model.num_timesteps == 64
    shown = [int(steps) for steps in re.findall(r"(\d+)/30 ", out.getvalue())]
    assert max(shown) == shown[-1] == 30
    assert not re.search(r"-\d+ s left", out.getvalue())


def test_checkpoints_come_every_so_many_steps_however_many_environments():
    seen = []

    class Seen(CheckpointCallback):
        def act(self) -> None:
            seen.append(self.num_timesteps)

    settings = pole(n_envs=3)
    model = training.build_model(settings, training.make_vec_env(settings))
    model.learn(40, callback=Seen(10, Path()))
    assert seen == [12, 21, 30, 42, 48]


def test_evaluation_environments_are_of_the_training_kind(tmp_path):
    settings = settings_of("dqn", "equirl/GridWorld-v0", {**GRID, "n_envs": 3, "n_timesteps": 9})
    settings = training.replace(settings, extra={"eval_freq": 9, "eval_episodes": 1, "save_freq": 9})
    model = training.build_model(settings, training.make_vec_env(settings))
    evaluation = training._evaluations(settings, model, tmp_path)
    assert isinstance(evaluation, EvalCallback)
    assert type(evaluation.eval_env) is type(model.get_env())
    assert evaluation.eval_freq == 3
