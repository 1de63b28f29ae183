"""The command line: results on standard output, all else on standard error, and mistakes in one line."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import pytest
import torch
import yaml

from equirl import cli, evaluation, training
from equirl.callbacks import ProgressCallback
from equirl.console import command_line
from equirl.envs import ENTRIES
from equirl.envs.catalogue import VERDICTS
from equirl.errors import UserError
from equirl.symmetry import Symmetry

QUICK = ["-n", "60", "-P", "learning_starts:30", "-P", "buffer_size:500", "-P", "policy_kwargs:dict(net_arch=[16])"]
QUICK += ["-P", "train_freq:4", "-P", "gradient_steps:1"]


NEGATE = "dict(generators=[[dict(signs=[-1, -1, -1, -1])"


@pytest.fixture(scope="module", autouse=True)
def _few_closing_episodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "FINAL_EPISODES", 2)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return the folder of a short run."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["equirl", "train", *QUICK, "-f", str(logs), "--json"])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0
    return logs / "dqn" / "CartPole-v1_1"


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def mistake(said: Any, *words: str) -> None:
    """Check that a command ended with one line about a mistake, and nothing else."""
    assert said.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert all(word in said.err for word in words), said.err


def test_commands_to_paste_name_scripts_that_the_shell_finds(monkeypatch, tmp_path):
    script = tmp_path / "env" / "bin" / "tensorboard"
    script.parent.mkdir(parents=True)
    script.touch()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert command_line("tensorboard", "--logdir", "a b") == "env/bin/tensorboard --logdir 'a b'"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line("tensorboard") == str(script)
    assert command_line("equirl") == "equirl"  # there is none beside this Python
    monkeypatch.chdir(script.parent)
    assert command_line("tensorboard") == str(script)  # by its name alone the shell would not find it
    with monkeypatch.context() as embedded:
        embedded.setattr(sys, "executable", "")
        assert command_line("tensorboard") == "tensorboard"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert command_line("tensorboard") == "tensorboard"


# ---------------------------------------------------------------------------------------------------------- train


def test_train_ends_with_a_table_and_tells_of_its_progress_beside_it(equirl, tmp_path):
    said = equirl("train", "--env", "CartPole-v1", "--method", "equizero", *QUICK, "-f", tmp_path, "--seed", 3)
    folder = tmp_path / "dqn" / "CartPole-v1_1"
    assert said.code == 0
    curves = command_line("tensorboard", "--logdir", folder)
    assert f"dqn on CartPole-v1: equizero, C2, 60 steps, seed 3; curves: {curves}" in said.err
    assert len(re.findall(r"^\d+/60 steps .* s left$", said.err, re.M)) == 10
    title, *lines = said.out.splitlines()
    assert title == "dqn on CartPole-v1"
    table = dict(line.strip().split("  ", 1) for line in lines)
    assert re.fullmatch(r" *\d+\.\d\d \+- \d+\.\d\d \(2 episodes\)", table["mean return"])
    assert re.fullmatch(r" *\d\.\de[-+]\d\d", table["equivariance error"])
    assert table["folder"].strip() == str(folder)  # in one piece, however narrow the terminal
    assert table["TensorBoard"].strip() == curves
    assert yaml.safe_load((folder / "CartPole-v1" / "args.yml").read_text())["seed"] == 3


def test_train_prints_one_json_document_and_nothing_else(equirl, tmp_path, monkeypatch):
    reset = gym.envs.classic_control.CartPoleEnv.reset

    def chatty(self, **kwargs):
        print("welcome")
        return reset(self, **kwargs)

    monkeypatch.setattr(gym.envs.classic_control.CartPoleEnv, "reset", chatty)
    said = equirl("train", *QUICK, "-f", tmp_path, "--json")
    result = json.loads(said.out)
    assert result["folder"] == str(tmp_path / "dqn" / "CartPole-v1_1")
    assert result["steps"] == 60
    assert result["equivariance_error"] <= 1e-5
    assert "welcome" in said.err


def test_options_reach_the_run(equirl, tmp_path):
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {policy: MlpPolicy, n_timesteps: 999, gamma: 0.5, method: equitune, learning_starts: 10}")
    options = ("--n-envs", 2, "--eval-freq", 20, "--eval-episodes", 1, "--save-freq", 30, "--device", "cpu")
    said = equirl("train", "-n", 40, "--conf-file", conf, "-P", "tau:0.5", *options, "-f", tmp_path, "--json")
    assert said.code == 0, said.err
    folder = Path(json.loads(said.out)["folder"])
    args, config = (yaml.safe_load((folder / "CartPole-v1" / f"{name}.yml").read_text()) for name in ("args", "config"))
    assert {"eval_freq": 20, "eval_episodes": 1, "save_freq": 30, "device": "cpu"}.items() <= args.items()
    assert {"gamma": 0.5, "tau": 0.5, "n_envs": 2, "n_timesteps": 40}.items() <= config.items()
    assert (folder / "checkpoints" / "rl_model_30_steps.zip").exists()


def test_runs_never_share_a_folder(equirl, tmp_path):
    folders = [json.loads(equirl("train", *QUICK, "-f", tmp_path, "--json").out)["folder"] for _ in range(2)]
    assert [Path(folder).name for folder in folders] == ["CartPole-v1_1", "CartPole-v1_2"]


def test_resume_goes_on_and_keeps_its_settings(equirl, tmp_path):
    first = json.loads(equirl("train", *QUICK, "-f", tmp_path, "--json").out)
    same = ("--algo", "dqn", "--env", "CartPole-v1", "--method", "equitune", "--seed", 0)  # as `make train` gives them
    again = json.loads(equirl("train", "--resume", first["folder"], "-n", 100, *same, "--json").out)
    assert (again["folder"], again["steps"]) == (first["folder"], 100)
    for option, own in (
        (("--method", "equizero"), "keeps its equitune"),
        (("--seed", "5"), "keeps its 0"),
        (("--env", "Acrobot-v1"), "keeps its CartPole-v1"),
        (("-P", "gamma:0.5"), "--hyperparams"),
        (("-f", str(tmp_path)), "--log-folder"),
    ):
        mistake(equirl("train", "--resume", first["folder"], "-n", "120", *option), "with --resume", own)


def test_a_resumed_run_may_compile_its_steps_and_be_told_what_it_has(equirl, run, monkeypatch):
    asked: dict[str, Any] = {}

    def goes_on(folder, n_timesteps, **given):
        asked.update(given, folder=folder, n_timesteps=n_timesteps)
        raise UserError("seen")

    monkeypatch.setattr(training, "resume", goes_on)
    mistake(equirl("train", "--resume", run, "-n", "90", "--compile", "--n-envs", "1"), "seen")
    assert (asked["folder"], asked["n_timesteps"], asked["compiled"]) == (run, 90, True)
    mistake(equirl("train", "--resume", run, "--n-envs", "2"), "--n-envs 2 with --resume", "keeps its 1")


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_ctrl_c_and_kill_leave_a_run_that_goes_on(how, equirl, tmp_path, monkeypatch):
    step = ProgressCallback._on_step

    def interrupted(self):
        if self.num_timesteps == 25:
            if how == "ctrl-c":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(ProgressCallback, "_on_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    said = equirl("train", *QUICK, "-f", tmp_path, "--json")
    assert signal.getsignal(signal.SIGTERM) is before
    assert (said.code, said.out) == (130, "")
    onwards = command_line("equirl", "train", "--resume", tmp_path / "dqn" / "CartPole-v1_1")
    assert said.err.splitlines()[-1].endswith(f"`{onwards}`")
    assert "Traceback" not in said.err
    monkeypatch.undo()
    said = equirl("train", "--resume", tmp_path / "dqn" / "CartPole-v1_1", "--json")
    assert json.loads(said.out)["steps"] >= 60


def test_generators_on_the_command_line_make_a_symmetry(equirl, tmp_path):
    said = equirl("train", *QUICK, "-P", f"symmetry:{NEGATE}, [1, 0]]])", "-f", tmp_path, "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert (result["symmetry"], result["group"]) == ("given", "C2")
    assert result["equivariance_error"] < 1e-5
    assert equirl("evaluate", result["folder"], "--episodes", "1").code == 0


MINE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
from equirl import Symmetry

class Mine(CartPoleEnv):
    symmetry = Symmetry.generated_by(({"signs": [-1, -1, -1, -1]}, [1, 0]), name="mine")

gym.register("Mine-v0", entry_point=Mine, max_episode_steps=20)
"""


def test_an_environment_of_the_users_own_brings_its_symmetry(equirl, tmp_path, monkeypatch):
    (tmp_path / "my_environments.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    package = ["--gym-packages", "my_environments"]
    said = equirl("train", "--env", "Mine-v0", *QUICK, "--seed", "1", "-f", tmp_path, *package, "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert (result["symmetry"], result["group"]) == ("mine", "C2")
    assert result["equivariance_error"] < 1e-5
    said = equirl("evaluate", result["folder"], "--methods", "all", "--episodes", "2", *package, "--json")
    errors = {row["method"]: row["equivariance_error"] for row in json.loads(said.out)["methods"]}
    assert errors["equitune"] < 1e-5 < errors["identity"]
    gym.registry.pop("Mine-v0")
    monkeypatch.delitem(sys.modules, "my_environments")


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def _files(tmp_path):
    (tmp_path / "broken.yml").write_text("CartPole-v1:\n  gamma: [1\n")
    (tmp_path / "wrong.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 10, symmetry: {group: C2}}")
    (tmp_path / "a file").write_text("")
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--env", "CartPole-v9"], ["'CartPole-v9'", "did you mean 'CartPole-v1'"]),
        (["train", "--env", ""], ["environment ''"]),
        (["train", "--algo", "dqnn"], ["'dqnn'", "did you mean 'dqn'"]),
        (["train", "--method", "equitun"], ["'equitun'", "did you mean 'equitune'"]),
        (["train", "--symmetry", "cartpole-v1"], ["'cartpole-v1'", "did you mean 'CartPole-v1'"]),
        (["train", "--symmetry", "Acrobot-v1"], ["observation", "(4,)", "6"]),
        (["train", "-P", "symmetry:dict(generators=[['rot90', [1, 0]]])"], ["observation", "(4,)"]),
        (["train", "-P", "symmetry:dict(generators=[[dict(signs=[-1]*4), [1, 0]]])"], ["[-1] * 4"]),
        (["train", "-P", f"symmetry:{NEGATE}, [1, 2, 0]]])"], ["order 2 on observations and 3 on actions"]),
        (["train", "-P", f"symmetry:{NEGATE}, [1, 0, 2]]])"], ["action", "Discrete(2)", "3"]),
        (["train", "--env", "ALE/Breakout-v5", "--symmetry", "equirl/GridWorld-v0:C4"], ["rot90", "80 x 72"]),
        (["train", "-P", "gama:0.9"], ["'gama'", "did you mean 'gamma'"]),
        (["train", "-P", "gamma"], ["'gamma'", "key:value"]),
        (["train", "-P", "gamma:2"], ["gamma 2", "from 0 to 1"]),
        (["train", "-P", "policy_kwargs:dict(net_arc=[3])"], ["'net_arc'", "did you mean 'net_arch'"]),
        (["train", "-n", "0"], ["-n 0", "at least 1"]),
        (["train", "-n", "-5"], ["-n -5", "at least 1"]),
        (["train", "--n-envs", "0"], ["n_envs 0", "at least 1"]),
        (["train", "--compile", "--method", "lambda"], ["--compile with dqn and lambda", "expected dqn and equitune"]),
        (["train", "--compile", "--algo", "qrdqn"], ["--compile with qrdqn and equitune"]),
        (["train", "--seed", "-1"], ["seed -1"]),
        (["train", "--num-threads", "0"], ["--num-threads 0"]),
        (["train", "--num-threads", "100000"], ["--num-threads 100000", "or -1 for all"]),
        (["train", "--algo", "ppo", "-P", "batch_size:1"], ["ppo on CartPole-v1", "batch_size"]),
        (["train", "--algo", "ppo", "-P", "n_steps:1", "-P", "n_envs:1"], ["ppo on CartPole-v1", "n_steps"]),
        (["train", "-P", "buffer_size:100000000000000"], ["dqn on CartPole-v1", "allocate"]),
        (["train", "-P", "callback:stable_baselines3.common.callbacks.EvalCallback"], ["dqn on CartPole", "eval_env"]),
        (["train", "--eval-freq", "0"], ["eval_freq 0"]),
        (["train", "--device", "tpu"], ["'tpu'", "auto, cpu"]),
        (["train", "--env", "Pendulum-v1"], ["Pendulum-v1", "Discrete"]),
        (["train", "--env", "Taxi-v4"], ["'Taxi-v4'", "--symmetry none"]),
        (["train", "--conf-file", "broken.yml"], ["broken.yml, line 3"]),
        (["train", "--conf-file", "wrong.yml"], ["symmetry", "action"]),
        (["train", "--conf-file", "none.yml"], ["none.yml", "No such file"]),
        (["train", "-f", "a file"], ["'a file'", "can be written"]),
        (["train", "--gym-packages", "no_such_module"], ["no_such_module", "imported"]),
        (["train", "--resume", "nowhere"], ["'nowhere'", "no run folder"]),
        (["train", "--resume", "empty"], ["'empty'", "no run folder"]),
        (["train", "--evn", "CartPole-v1"], ["--evn", "--env"]),
        (["train", "-n", "many"], ["--n-timesteps", "integer"]),
        (["trian"], ["'trian'", "train"]),
        (["evaluate"], ["model"]),
        (["evaluate", "nowhere"], ["'nowhere'", "logs/dqn/CartPole-v1_1"]),
        (["enjoy", "nowhere"], ["'nowhere'"]),
        (["symmetries", "CartPole"], ["'CartPole'", "did you mean 'CartPole-v1'"]),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.usefixtures("_files")
def test_a_mistake_is_one_line_and_writes_nothing(args, words, equirl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    mistake(equirl(*args), *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evaluate", "--methods", "identity,equitun"], ["'equitun'", "did you mean 'equitune'"]),
        (["evaluate", "--methods", "lambda"], ["'lambda'", "trained with it"]),
        (["evaluate", "--episodes", "0"], ["episodes 0"]),
        (["enjoy", "--video", "film.mov"], ["film.mov", ".gif or .mp4"]),
        (["enjoy", "--video", "none/film.gif"], ["folder that exists"]),
        (["enjoy", "--episodes", "0"], ["episodes 0"]),
        (["enjoy", "-n", "0"], ["steps 0"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_about_an_agent_is_one_line(args, words, equirl, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistake(equirl(args[0], run, *args[1:]), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_line(equirl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    mistake(equirl("train", "--env", "LunarLander-v3", "-f", tmp_path), "pip install 'equirl[box2d]'")


def test_no_command_shows_the_help(equirl):
    said = equirl()
    assert said.code == 0
    assert all(command in said.out for command in ("train", "evaluate", "enjoy", "symmetries"))


# ---------------------------------------------------------------------------------------------- evaluate and enjoy


def test_evaluate_prints_a_table_that_fits(equirl, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    wide = {"mean_return": 370.8, "std_return": 103.82, "interval": [324.12, 417.48]}
    compare = evaluation.compare_methods

    def compared(*args):
        found = compare(*args)
        return {**found, "methods": [{**row, **wide} for row in found["methods"]]}

    monkeypatch.setattr(evaluation, "compare_methods", compared)
    said = equirl("evaluate", run, "--methods", "all", "--episodes", 3)
    lines = plain(said.out).splitlines()
    assert (said.code, said.err) == (0, "")
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"│ (identity|equitune|equizero) ", line)]
    assert len(rows) == 3
    assert all("│ 370.80 +- 103.82 │ 324.12 .. 417.48 │" in row for row in rows)  # whole numbers, in one line each
    assert all(re.search(r"\d\.\de[-+]\d\d │ +\d+\.\d% │", row) for row in rows)
    assert lines[-1].startswith("trained: equitune; recommended: ")


def test_evaluate_takes_the_trained_method_where_none_is_named(equirl, run):
    said = equirl("evaluate", run / "CartPole-v1.zip", "--episodes", 2, "--json")
    result = json.loads(said.out)
    assert [row["method"] for row in result["methods"]] == ["equitune"]
    assert result["recommended"] == "equitune"
    assert equirl("evaluate", run, "--episodes", 1).code == 0  # which has no interval


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_enjoy_films(name, equirl, run, tmp_path):
    said = equirl("enjoy", run, "--video", tmp_path / name, "--episodes", 2)
    assert said.code == 0
    assert re.search(r"episode 2 +\d+\.00", said.out)
    assert str(tmp_path / name) in said.out
    assert (tmp_path / name).stat().st_size > 1000


def test_enjoy_says_where_no_episode_ended(equirl, run, tmp_path):
    said = equirl("enjoy", run, "--video", tmp_path / "film.gif", "-n", 3)
    assert "none ended within 3 steps" in said.out


def test_a_process_of_its_own_prints_json_alone(run, tmp_path):
    # here pygame, the Arcade Learning Environment and TensorFlow's absence have nobody else to greet
    command = [sys.executable, "-m", "equirl", "enjoy", str(run), "--video", "film.gif", "-n", "5", "--json"]
    env = {name: value for name, value in os.environ.items() if name != "PYGAME_HIDE_SUPPORT_PROMPT"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"] == "film.gif"
    assert not [line for line in done.stderr.splitlines() if "XDG_RUNTIME_DIR" not in line]  # SDL's, from C
    assert imageio.imread(tmp_path / "film.gif", index=None).shape[1:] == (400, 600, 3)


def test_atari_does_not_greet(tmp_path):
    command = [sys.executable, "-m", "equirl", "train", "--env", "ALE/Pong-v5", "-n", "9", "--device", "cpu"]
    command += ["-f", "/dev/null"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("width", [80, 120])
def test_symmetries_are_listed_in_a_table_that_fits(width, equirl, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    said = equirl("symmetries")
    lines = plain(said.out).splitlines()
    assert (said.code, said.err) == (0, "")
    assert max(map(len, lines)) <= width
    first = {line.split()[0] for line in lines if line.strip()}
    assert first >= {"none", *(entry.name for entry in ENTRIES)}  # names are not broken over lines
    text = re.sub(r"\s+", " ", plain(said.out))
    assert all(entry.note in text for entry in ENTRIES)
    assert "(pip install 'equirl[box2d]')" in text


def test_symmetries_as_json(equirl):
    listed = {row["name"]: row for row in json.loads(equirl("symmetries", "--json").out)}
    assert listed["ALE/Pong-v5"]["wrapper"] == "equirl.envs.atari.PongFrame"
    assert listed["LunarLander-v3"]["extra"] == "box2d"
    assert {listed[entry.name]["verdict"] for entry in ENTRIES} == set(VERDICTS)
    assert all(listed[entry.name]["error"] is not None for entry in ENTRIES)
    assert (listed["equirl/GridWorld-v0"]["group"], listed["equirl/GridWorld-v0"]["order"]) == ("D4", 8)


def test_one_environments_symmetry_says_what_each_element_does(equirl):
    said = equirl("symmetries", "equirl/GridWorld-v0")
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in plain(said.out).splitlines() if line[:1] == "│"]
    assert rows[0] == ["e", "identity", "identity"]
    assert rows[1] == ["r", "rot90", "(0 1 2 3)"]
    assert len(rows) == 8
    given: dict[str, Any] = json.loads(equirl("symmetries", "equirl/GridWorld-v0", "--json").out)
    assert [row["element"] for row in given["elements"]] == [row[0] for row in rows]
    assert len(Symmetry.from_data(given["data"]).group) == 8


def test_training_takes_denormal_numbers_for_zero_and_leaves_them_afterwards(monkeypatch, tmp_path, equirl):
    tiny, seen = torch.tensor(1e-39), []

    def train(*args, **kwargs):
        seen.append(float(tiny * 1.0))
        raise UserError("enough")

    monkeypatch.setattr("equirl.training.train", train)
    assert equirl("train", "--env", "CartPole-v1", "-f", tmp_path).code == 2
    assert float(tiny * 1.0) > 0
    if torch.set_flush_denormal(False):  # where the CPU can
        assert seen == [0.0]
