"""What the README shows is what happens: its Python runs as it stands, its files and commands are there."""

import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from torch import nn

import equirl.envs  # noqa: F401
from equirl import Trivial, cli
from tests.benchmarks.learning import stored_in
from tests.benchmarks.speed.arms import PLAIN
from tests.benchmarks.speed.goals import added, find
from tests.benchmarks.speed.measures import LEARN, PREDICT
from tests.benchmarks.speed.ratios import short, spread, times_faster

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 8
    DQN("MlpPolicy", "CartPole-v1").save("plain.zip")
    given: dict[str, Any] = {
        "resnet": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "images": torch.rand(2, 3, 8, 8),
        "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()),
        "env": gym.make("equirl/GridWorld-v0"),
    }
    for block in blocks:
        exec(block.replace("50_000", "200"), given)
    assert (tmp_path / "cartpole.zip").is_file()
    assert DQN.load("cartpole").policy.method == "equitune"
    assert given["agent"].policy.method == "equizero"
    turn, still, images = given["turn"], given["still"], given["images"]
    assert given["equivariance_error"](given["net"], turn, still, images) < 1e-6
    assert given["equivariance_error"](given["posed"].eval(), turn, still, images) < 1e-5
    flips = given["flips"]
    assert given["equivariance_error"](given["both"].eval(), flips, Trivial(flips.group), images) < 1e-5
    assert str(given["parts"].group) == "C2xC2xC1"


def test_the_files_and_commands_exist(capsys):
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    known = {command.callback.__name__ for command in cli.app.registered_commands}
    said = set(re.findall(r"^\$ equirl (\w+)", README, flags=re.MULTILINE))
    assert said
    assert said <= known
    targets = set(re.findall(r"^\$ make (\w+)", README, flags=re.MULTILINE))
    assert targets == {"train", "test"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


ARMS = {
    "a loop over the views, as published": "loop",
    "`equitune`": "equitune",
    "`equitune`, compiled": "compiled",
    "`equitune`, `orbit_samples=1`": "orbit_samples=1",
    "`native`": "native",
    "SBX (JAX), no symmetry": "SBX",
    "escnn, as many weights": "escnn",
    "`canonical`": "canonical",
    "equiadapt's canonicalizer": "equiadapt",
}


def test_the_table_of_speed_is_the_committed_one():
    runs = [ROOT / "tests" / "benchmarks" / part / "benchmarks.json" for part in ("", "canonical")]
    everything, of_poses = (json.loads(path.read_text(encoding="utf-8")) for path in runs)
    section = README.split("\n## Speed\n")[1].split("\n## ")[0]
    where, checked = ("", ""), 0
    for line in section.splitlines():
        if line.startswith("| **"):
            case, *_, group = line.split("**")[1].split(", ")
            where = {"Pong's frames": "Pong-shaped"}.get(case, case), group
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if first not in ARMS:
            continue
        stored = of_poses if ARMS[first] in ("canonical", "equiadapt") else everything
        ours, plain = (find(stored["rows"], "cpu", *where, arm) for arm in (ARMS[first], PLAIN))
        assert ours is not None
        assert plain is not None
        expected = [str(times_faster(*(added(row, [name]) for row in (ours, plain)))) for name in (LEARN, "update 32")]
        expected.append(str(spread(*(added(row, [PREDICT]) for row in (ours, plain)))))
        memory = "-" if ours["peak_bytes"] is None else short(ours["peak_bytes"] / plain["peak_bytes"])
        assert cells == [*(each.split()[0] for each in expected), memory], line
        checked += 1
    assert checked == 16


@pytest.mark.parametrize("agent", ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"])
def test_the_table_of_trained_agents_is_the_committed_one(agent):
    text = (ROOT / "tests" / "benchmarks" / "trained_agents.md").read_text(encoding="utf-8")
    measured = re.findall(rf"^\| {agent}, C2 \| (\w+) \| (\S+) \+- (\S+) \|", text, flags=re.MULTILINE)
    expected = [f"{float(mean):.1f} ± {float(error):.1f}" for _, mean, error in measured]
    [row] = [line for line in README.splitlines() if line.startswith(f"| {agent} |")]
    assert [method for method, *_ in measured] == ["identity", "equitune", "equizero"]
    assert [cell.strip(" *") for cell in row.strip("|").split("|")][1:] == expected


RETURNS = ["", "identity", "equitune", "lambda", "equizero"]


@pytest.mark.parametrize(
    ("start", "column", "arm"),
    [("GridWorld", column, column) for column in RETURNS[1:]] + [("the same under D4", "equitune", "equitune D4")],
)
def test_the_table_of_returns_is_the_committed_one(start, column, arm):
    rows = [line.split(",") for line in (ROOT / "docs" / "learning_curves.csv").read_text().splitlines()[1:]]
    finals = [float(value) for env, name, _, step, value in rows if "Grid" in env and (name, step) == (arm, "final")]
    assert len(finals) == 3
    [row] = [line for line in README.splitlines() if line.startswith(f"| {start}")]
    shown = dict(zip(RETURNS, row.strip("|").split("|"), strict=True))
    assert float(shown[column].strip(" *")) == pytest.approx(sum(finals) / 3, abs=0.0051)


def test_the_table_of_two_mirrors_is_the_committed_one():
    rows = stored_in(ROOT / "tests" / "benchmarks" / "asterix.csv")
    lines = [
        line.strip("|").split("|") for line in README.split("| MinAtar's Asterix")[1].split("\n\n")[0].splitlines()
    ]
    arms, _, returns, seconds = ([cell.strip(" `") for cell in line[1:]] for line in lines)
    assert arms == [row["arm"] for row in rows]
    assert {"identity", "equitune", "product", "canonical"} == set(arms)
    assert returns == [f"{float(row['return']):.2f}" for row in rows]
    assert seconds == [f"{float(row['seconds']):.0f}" for row in rows]


def test_what_is_said_of_turned_pictures_is_what_was_measured():
    found = json.loads((ROOT / "tests" / "benchmarks" / "canonical_cifar.json").read_text(encoding="utf-8"))
    turned = {row["arm"]: f"{row['turned']:.1f}%" for row in found["rows"]}
    [said] = [part for part in README.split("\n\n") if "CIFAR-10" in part]
    arms = (
        "plain",
        "canonical, prior",
        "canonical, prior, tuned",
        "canonical, prior, deep",
        "canonical, contrastive",
        "known angle",
    )
    assert re.findall(r"\d+\.\d%", said) == [turned[arm] for arm in arms]


def mean(returns: list[float]) -> str:
    return f"{np.mean(returns):.2f}"


def test_what_is_said_of_canonical_and_soft_is_what_was_measured():
    text = " ".join(README.split())
    means: dict[tuple[str, str], list[float]] = {}
    for study in ("learning", "windy"):
        for row in stored_in(ROOT / "tests" / "benchmarks" / f"{study}.csv"):
            means.setdefault((study, row["arm"]), []).append(float(row["return"]))
    canonical, equitune = means["learning", "canonical"], means["learning", "equitune"]
    assert len(canonical) == len(equitune) == 10
    assert (
        f"`canonical` reaches {mean(canonical)} over 10 seeds (the first five {mean(canonical[:5])}), on average"
        in text
    )
    assert f"where equitune reaches {mean(equitune)} ({mean(equitune[:5])})" in text
    soft, averaged, plain = (mean(means["windy", arm]) for arm in ("soft", "equitune", "identity"))
    assert f"`soft` reaches {soft}, `equitune` {averaged} and the plain network {plain}" in text
