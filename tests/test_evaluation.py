"""Returns of trained agents: under each method on the same episodes, and from files that are not trusted."""

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equirl import evaluation
from equirl.errors import UserError
from equirl.evaluation import Returns, evaluate, finite, methods_for, recommend
from equirl.folders import create_folder, write_settings
from equirl.loading import find_agent, load_agent
from equirl.runs import Settings, build_model, make_vec_env, settings_of

EXTRA = {"n_timesteps": 10, "eval_freq": 10, "eval_episodes": 1, "save_freq": 10}
STARTS: list[float] = []


class Started(gym.Wrapper):
    """Keeps the first number of every episode's first observation, and draws dice in every step."""

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        STARTS.append(float(observation[0]))
        return observation, info

    def step(self, action):
        self.unwrapped.np_random.random()
        return self.env.step(action)


def saved(folder: Path, env_id: str = "CartPole-v1", **chosen: Any) -> Path:
    """Write a run folder as training leaves it, with an agent that differs from a fresh one."""
    chosen = {"policy_kwargs": {"net_arch": [16]}, **chosen} if env_id == "CartPole-v1" else chosen
    made = settings_of("dqn", env_id, {"env_wrapper": f"{__name__}.Started", **chosen})
    settings = Settings(made.algo, made.env_id, made.hyperparameters, extra=EXTRA)
    run = create_folder(folder, settings)
    write_settings(run, settings)
    model: Any = build_model(settings, make_vec_env(settings), learns=False)
    with torch.no_grad():
        for weights in model.q_net.parameters():
            weights += 0.1 * torch.randn_like(weights)
    model.save(run / f"{env_id.replace('/', '-')}.zip")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("logs"))


def load(path: Path) -> Any:
    return load_agent(path, packages=[__name__])


def compare_methods(path: Path, methods: list[str], episodes: int) -> dict[str, Any]:
    return evaluation.compare_methods(find_agent(path, packages=[__name__]), methods, episodes)


# --------------------------------------------------------------------------------------------------------- numbers


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_the_interval_lies_about_the_mean(episodes):
    returns = Returns(episodes)
    low, high = returns.interval or (math.nan, math.nan)
    assert low <= returns.mean <= high
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(episodes, ddof=1) / len(episodes) ** 0.5, abs=1e-6)


def test_one_episode_has_no_interval():
    assert Returns([3.0]).interval is None
    assert (Returns([3.0]).mean, Returns([3.0]).std) == (3.0, 0.0)


def test_finite_is_what_json_can_hold():
    assert [finite(x) for x in (1.5, math.inf, -math.inf, math.nan)] == [1.5, None, None, None]


def row(method: str, mean: float, interval: list[float] | None) -> dict[str, Any]:
    return {"method": method, "mean_return": mean, "interval": interval}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("identity", 5, [4, 6]), row("equitune", 9, [8, 10])], "equitune"),
        ([row("identity", 5, [4, 6]), row("equitune", 9, [5, 13])], "identity"),  # may be chance
        ([row("identity", 5, [4, 6]), row("equitune", 4, [3, 5])], "identity"),
        ([row("equitune", 9, [8, 10]), row("equizero", 9.5, [9, 10])], "equizero"),  # the trained one was not asked for
        ([row("identity", 5, None), row("equitune", 9, None)], "identity"),  # one episode shows nothing
        ([row("identity", 0, [0, 0]), row("equitune", 0, [0, 0])], "identity"),
    ],
)
def test_another_method_is_recommended_only_where_it_is_surely_better(rows, expected):
    assert recommend(rows, "identity") == expected


def test_the_trained_method_is_not_kept_where_it_lies_below_the_plain_network():
    rows = [row("identity", 9, [8, 10]), row("lambda", 5, [4, 6]), row("equizero", 10, [3, 17])]
    assert recommend(rows, "lambda") == "equizero"  # though equizero's interval reaches below lambda's mean


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 5)), min_size=4, max_size=4), st.integers(0, 3))
def test_no_method_below_the_plain_network_is_recommended(measured, place):
    names = ["identity", "equitune", "equizero", "lambda"]
    rows = [row(name, mean, [mean - half, mean + half]) for name, (mean, half) in zip(names, measured, strict=True)]
    chosen = next(each for each in rows if each["method"] == recommend(rows, names[place]))
    assert chosen["interval"][1] >= rows[0]["interval"][0]


# ------------------------------------------------------------------------------------------------------- evaluate


def test_equal_seeds_mean_equal_episodes(run):
    model, settings = load(run)
    one, same, other = (evaluate(model, settings, 13, seed=seed).episodes for seed in (3, 3, 400))
    assert len(one) == 13
    assert one == same != other


def test_progress_is_told_of_every_episode(run):
    model, settings = load(run)
    seen = []
    evaluate(model, settings, 13, progress=lambda what, fraction: seen.append((what, fraction)))
    assert seen == [("13 episodes", 0.0), *((f"{k} of 13 episodes", k / 13) for k in range(1, 14))]


def test_every_episode_has_a_seed_of_its_own_whatever_the_agent_does(run):
    model, settings = load(run)
    STARTS.clear()
    evaluate(model, settings, 12, seed=5)
    starts = [gym.make("CartPole-v1").reset(seed=seed)[0][0] for seed in range(5, 17)]
    assert set(starts) <= set(STARTS)
    assert STARTS[:10] == starts[:10]  # ten at once, then the rest


@pytest.mark.parametrize("env_id", ["CartPole-v1", "equirl/GridWorld-v0"])
def test_episodes_played_together_are_those_played_alone(env_id, tmp_path):
    chosen = {"env_kwargs": {"size": 4, "n_walls": 1}} if env_id != "CartPole-v1" else {}
    model, settings = load(saved(tmp_path, env_id, env_wrapper=None, **chosen))
    together = evaluate(model, settings, 6, seed=5).episodes
    assert sorted(together) == sorted(evaluate(model, settings, 1, seed=seed).episodes[0] for seed in range(5, 11))
    assert len(set(together)) > 1


@pytest.mark.parametrize("episodes", [0, -3])
def test_no_episodes_are_refused(run, episodes):
    model, settings = load(run)
    with pytest.raises(UserError, match=rf"episodes {episodes}: expected a whole number of at least 1"):
        evaluate(model, settings, episodes)
    with pytest.raises(UserError, match=rf"episodes {episodes}: expected"):
        compare_methods(run, ["identity"], episodes)


def test_all_methods_play_the_same_episodes_with_the_same_plain_network(run):
    found = compare_methods(run, methods_for("all", "equitune"), 4)
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == ["identity", "equitune", "equizero"]
    assert json.loads(json.dumps(found, allow_nan=False))["episodes"] == 4
    assert found["recommended"] in rows
    assert [name for name, row in rows.items() if row["trained"]] == ["equitune"]
    assert rows["identity"]["equivariance_error"] > 1e-3
    assert max(rows["equitune"]["equivariance_error"], rows["equizero"]["equivariance_error"]) <= 1e-5
    assert rows["identity"]["greedy_disagreement"] > rows["equitune"]["greedy_disagreement"] == 0.0

    model, settings = load(run)
    assert rows["equitune"]["mean_return"] == evaluate(model, settings, 4).mean
    plain: Any = build_model(
        settings_of("dqn", "CartPole-v1", {**settings.hyperparameters, "method": "identity"}),
        make_vec_env(settings),
        False,
    )
    plain.set_parameters(run / "CartPole-v1.zip")
    assert rows["identity"]["mean_return"] == evaluate(plain, settings, 4).mean


def test_every_method_keeps_what_the_agent_learnt(tmp_path):
    run = saved(tmp_path, policy_kwargs={"net_arch": []})
    model, _ = load(run)
    with torch.no_grad():  # push to where the pole falls
        push = torch.tensor([0.1, 0.5, 1.0, 1.0])
        model.q_net.q_net[0].weight.copy_(torch.stack([-push, push]))
        model.q_net.q_net[0].bias.zero_()
    model.save(run / "CartPole-v1.zip")
    rows = compare_methods(run, methods_for("all", "equitune"), 3)["methods"]
    assert min(row["mean_return"] for row in rows) > 150


def test_the_methods_of_an_agent_with_weights_and_options_of_its_own(tmp_path):
    learnt = saved(tmp_path, method="lambda")
    rows = compare_methods(learnt, methods_for("all", "lambda"), 2)["methods"]
    assert [row["method"] for row in rows] == ["identity", "equitune", "equizero", "lambda"]
    options = {"net_arch": [8], "symmetrizer_kwargs": {"score": "entropy"}, "double_selection": True}
    split = saved(tmp_path, method="equizero", policy_kwargs=options)
    assert len(compare_methods(split, methods_for("all", "equizero"), 2)["methods"]) == 3


def test_pictures_are_compared_too(tmp_path):
    run = saved(tmp_path, "equirl/GridWorld-v0", env_kwargs={"size": 4, "n_walls": 1}, env_wrapper=None)
    rows = compare_methods(run, ["identity", "equitune"], 2)["methods"]
    assert rows[0]["equivariance_error"] > 1e-4 > 1e-5 >= rows[1]["equivariance_error"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("equitun", "did you mean 'equitune'"),
        ("identity,", "unknown method ''"),
        ("all,identity", "methods 'all,identity': expected all alone"),
        ("lambda", "expected an agent trained with it"),
    ],
)
def test_methods_that_cannot_be_compared_are_one_line(names, words):
    with pytest.raises(UserError, match=words):
        methods_for(names, "equitune")


def test_methods_are_listed_once():
    assert methods_for(" equizero,identity, equizero", "identity") == ["equizero", "identity"]
    assert methods_for("lambda", "lambda") == ["lambda"]
