"""`equirl check` and `equirl discover`: what they print, how they leave, and one line for every mistake."""

import json
import re
import sys

import gymnasium as gym
import numpy as np
import pytest

from equirl import Symmetry, console
from equirl.envs import entry_named
from equirl.verification import Transitions

ENVIRONMENTS = '''
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Line(gym.Env):
    """A point on a line that is pushed left or right; observations may be NaN, steps may raise."""

    def __init__(self, fault="", words=False):
        self.fault, self.state = fault, np.zeros(2)
        self.observation_space = spaces.Text(5) if words else spaces.Box(-9, 9, (2,), np.float64)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.copy(), {}

    def step(self, action):
        if self.fault == "raises" and self.state[0] > 0.5:
            raise ZeroDivisionError("division\\\\nby zero")
        push = 0.1 if action else -0.1
        self.state = np.array([self.state[0] + 0.1 * self.state[1], 0.9 * self.state[1] + push])
        if self.fault == "nan" and self.state[0] > 0.5:
            return np.array([np.nan, 0.0]), 0.0, False, False, {}
        return self.state.copy(), -abs(self.state[0]), bool(abs(self.state[0]) > 2), False, {}


kwargs = {"Line": {}, "Raises": {"fault": "raises"}, "Nan": {"fault": "nan"}, "Words": {"words": True}}
for name in kwargs:
    gym.register(f"{name}-v0", Line, max_episode_steps=40, kwargs=kwargs[name])
'''
MIRROR = "dict(generators=[[dict(signs=[-1, -1]), [1, 0]]])"


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "lines.py").write_text(ENVIRONMENTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield ["--gym-packages", "lines"]
    for name in ("Line", "Raises", "Nan", "Words"):
        gym.registry.pop(f"{name}-v0", None)
    sys.modules.pop("lines", None)


def test_check_says_what_it_found_and_leaves_with_0(equirl):
    said = equirl("check", "CartPole-v1", "--states", "100")
    assert (said.code, said.err) == (0, "")
    assert "verdict               exact" in said.out
    assert "6 of 6 refuted" in said.out
    assert "tier 1, states" in said.out


def test_check_and_symmetries_say_how_the_environment_is_made(equirl):
    name = "FrozenLake-v1:symmetric"
    made = f"as equirl.envs.make('{name}') makes it: desc="
    assert made in " ".join(equirl("check", name).out.split())
    assert made in " ".join(equirl("symmetries", name).out.split())
    for command in ("check", "symmetries"):
        assert "equirl.envs.make" not in equirl(command, "CartPole-v1").out


def test_check_leaves_with_1_and_shows_the_worst_states(equirl):
    said = equirl("check", "MountainCar-v0", "--states", "200")
    assert said.code == 1
    assert "rejected" in said.out
    assert "[-1.2, 0.6] to [-1.647, 0.1528]" in said.out
    assert said.out.count("broad, element r") == 3


def test_without_a_terminal_progress_is_told_in_lines(equirl, monkeypatch):
    said = equirl("check", "CartPole-v1")
    assert said.err == ""  # of what takes no ten seconds
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    lines = equirl("check", "CartPole-v1", "--json").err.splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r"\S.*  \d+%  \d+ s left", line) for line in lines), lines


def test_check_draws_small_pictures(equirl):
    said = equirl("check", "MinAtar/SpaceInvaders-v1", "--states", "300")
    assert said.code == 1
    assert "locally broken" in said.out
    rows = [
        line.strip()
        for line in said.out.splitlines()
        if len(line.strip()) == 10 and set(line.strip()) <= set(".+012345")
    ]
    assert len(rows) == 30


def test_check_as_json_is_one_document(equirl):
    said = equirl("check", "FrozenLake-v1:symmetric", "--json")
    report = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert (report["verdict"], report["numbers"]) == ("exact", {"pairs": 64, "broken": 0})
    assert Symmetry.from_data(report["symmetry"]) == entry_named("FrozenLake-v1:symmetric").symmetry


def test_check_takes_generators_and_environments_of_the_users_own(equirl, package):
    said = equirl("check", "Line-v0", "--symmetry", MIRROR, "--states", "100", *package, "--json")
    assert json.loads(said.out)["verdict"] == "exact"
    wrong = MIRROR.replace("[1, 0]", "[0, 1]")
    assert equirl("check", "Line-v0", "--symmetry", wrong, "--states", "100", *package).code == 1


def test_logged_transitions_are_judged_alone(equirl, package, tmp_path):
    Transitions.record(gym.make("CartPole-v1"), 3000, seed=0).save(tmp_path / "log.npz")
    said = equirl("check", "CartPole-v1", "--transitions", tmp_path / "log.npz", "--json")
    report = json.loads(said.out)
    assert (said.code, report["verdict"], report["tier"], report["interactions"]) == (0, "approximate", 3, 0)
    said = equirl("discover", "CartPole-v1", "--transitions", tmp_path / "log.npz", "--json")
    assert json.loads(said.out)["generators"] == [[{"signs": [-1] * 4}, [1, 0]]]


def test_states_of_play_may_be_those_of_an_agent(equirl, tmp_path):
    quick = ["-n", "60", "-P", "learning_starts:30", "-P", "buffer_size:500", "-P", "policy_kwargs:dict(net_arch=[16])"]
    quick += ["--eval-episodes", "1", "-P", "train_freq:4", "-P", "gradient_steps:1", "-f", tmp_path]
    run = json.loads(equirl("train", "--env", "CartPole-v1", *quick, "--json").out)["folder"]
    said = equirl("check", "CartPole-v1", "--agent", run, "--states", "100", "--json")
    assert json.loads(said.out)["verdict"] == "exact"
    said = equirl("check", "Acrobot-v1", "--agent", run)
    assert (said.code, said.out) == (2, "")
    assert "expected one of Box" in said.err


def test_discover_prints_a_symmetry_ready_to_paste(equirl, package):
    said = equirl("discover", "Line-v0", "-n", "3000", *package)
    assert said.code == 0, said
    names: dict[str, Symmetry] = {}
    exec(said.out[said.out.index("from equirl") :], {}, names)
    assert names["symmetry"] == Symmetry.generated_by(({"signs": [-1, -1]}, [1, 0]), name="Line-v0")
    assert "environment steps" in said.out


def test_discover_leaves_with_1_where_nothing_is(equirl):
    said = equirl("discover", "MountainCar-v0", "-n", "4000", "--json")
    assert said.code == 1
    assert json.loads(said.out)["symmetry"] is None


def test_symmetries_tells_the_variants_of_an_environment(equirl):
    said = equirl("symmetries", "FrozenLake-v1")
    assert said.code == 2
    assert "expected one of FrozenLake-v1:symmetric, FrozenLake-v1:transpose" in said.err
    assert "rejected" in equirl("symmetries", "FrozenLake-v1:transpose").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["check", "CartPol-v1"], ["CartPol-v1", "did you mean 'CartPole-v1'"]),
        (["check", "Taxi-v4"], ["no known symmetry of 'Taxi-v4'", "equirl discover Taxi-v4"]),
        (["check", "CartPole-v1", "--symmetry", "Acrobt-v1"], ["Acrobt-v1", "did you mean 'Acrobot-v1'"]),
        (["check", "CartPole-v1", "--symmetry", "Acrobot-v1"], ["6 entries", "(4,)"]),
        (["check", "CartPole-v1", "--states", "0"], ["0 states", "at least 1"]),
        (["check", "CartPole-v1", "--seed", "-1"], ["seed -1", "from 0"]),
        (["discover", "CartPole-v1", "--seed", "-1"], ["seed -1", "from 0"]),
        (["check", "CartPole-v1", "--transitions", "none.npz"], ["none.npz", "no such file"]),
        (["check", "CartPole-v1", "--transitions", "few.npz"], ["50 transitions", "at least 200"]),
        (["check", "CartPole-v1", "--transitions", "nan.npz"], ["NaN", "1 of 300 rows"]),
        (["check", "CartPole-v1", "--transitions", "pickled.npz"], ["pickled.npz"]),
        (["check", "Nan-v0", "--symmetry", MIRROR], ["Nan-v0", "nan at index [0]", "finite numbers"]),
        (["check", "Raises-v0", "--symmetry", MIRROR], ["Raises-v0", "step raised ZeroDivisionError: division"]),
        (["check", "Words-v0", "--symmetry", MIRROR], ["Words-v0", "Text", "expected Box, Discrete"]),
        (["discover", "Nan-v0"], ["Nan-v0", "nan at index [0]"]),
        (["discover", "Raises-v0"], ["Raises-v0", "step raised ZeroDivisionError", "with action"]),
        (["discover", "Words-v0"], ["Text", "expected a Box"]),
        (["discover", "CartPole-v1", "-n", "0"], ["0", "positive"]),
        (["discover", "CartPole-v1", "-n", "50"], ["50 transitions", "at least"]),
    ],
)
def test_a_mistake_is_one_line(args, words, equirl, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Transitions.record(gym.make("CartPole-v1"), 300)
    log.rows(np.arange(50)).save("few.npz")
    log.observations[7, 2] = np.nan
    log.save("nan.npz")
    objects = np.array([None, {}], dtype=object)
    np.savez("pickled.npz", observations=objects, actions=objects, rewards=objects)
    before = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    said = equirl(*args, *package)
    assert (said.code, said.out) == (2, ""), said
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert all(word in said.err for word in words), said.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == before
