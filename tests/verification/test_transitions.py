"""Logs are recorded and loaded with one-line refusals, and say whether a claim fits them."""

import zipfile
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from equirl import Symmetry, UserError
from equirl.symmetry import resolve_symmetry
from equirl.verification import transitions as module
from equirl.verification.logs import blocks_of, check_transitions
from equirl.verification.models import Features, Relations
from equirl.verification.transitions import Transitions


class Counter(gym.Env[Any, Any]):
    """Counts its steps up to 7, and goes wrong at a step in the way that `fault` says."""

    def __init__(self, fault: str = "", at: int = 10) -> None:
        self.observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: Any = spaces.Discrete(3)
        self.fault, self.at, self.steps, self.total = fault, at, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps, self.total = self.steps + 1, self.total + 1
        seen, reward = np.array([float(self.steps), float(action)]), 1.0
        if self.total == self.at:
            if self.fault == "raises":
                raise ZeroDivisionError("no\nfloor")
            seen = {"nan": np.array([0.0, np.nan]), "shape": np.zeros(3)}.get(self.fault, seen)
            reward = np.inf if self.fault == "reward" else reward
        return seen, reward, self.steps == 7, False, {}


def log(n: int = 300, **changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "observations": np.arange(2.0 * n).reshape(n, 2),
        "actions": np.arange(n) % 3,
        "rewards": np.ones(n),
        "next_observations": np.arange(2.0 * n).reshape(n, 2) + 2,
        "terminated": np.arange(n) % 100 == 99,
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def test_a_log_holds_what_was_seen_done_and_seen_next():
    logged = Transitions.record(Counter(), 20, seed=3)
    assert logged.observations[:8, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert logged.next_observations[:8, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 1]
    assert (logged.next_observations[:, 1] == logged.actions).all()
    assert logged.terminated.nonzero()[0].tolist() == [6, 13]
    assert logged.episodes.tolist() == [0] * 7 + [1] * 7 + [2] * 6


def test_the_same_seed_gives_the_same_log():
    logs = [Transitions.record(gym.make("CartPole-v1"), 100, seed) for seed in (1, 1, 2)]
    assert (logs[0].observations == logs[1].observations).all()
    assert (logs[0].observations != logs[2].observations).any()


def test_a_policy_may_act_instead_of_chance():
    assert set(Transitions.record(Counter(), 30, policy=lambda seen: int(seen[0]) % 2).actions) == {0, 1}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("raises", "Counter: the environment's step raised ZeroDivisionError: no floor after 9 steps with action"),
        ("nan", "Counter: the observation after 10 steps holds nan at index [1] (1 of 2 entries"),
        ("shape", "Counter: the observation after 10 steps has shape (3,)"),
        ("reward", "Counter: the reward of step 10 is inf"),
    ],
)
def test_an_environment_that_fails_is_named_with_the_step(fault, sentence):
    with pytest.raises(UserError) as caught:
        Transitions.record(Counter(fault), 50)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Tuple([spaces.Discrete(2)]), spaces.Dict(a=spaces.Discrete(2))]
)
def test_a_space_without_arrays_is_refused(space):
    env = Counter()
    env.observation_space = space
    with pytest.raises(UserError, match=f"observation space is {type(space).__name__}: expected Box"):
        Transitions.record(env, 10)


def test_more_than_fits_in_memory_is_refused_before_playing():
    env = Counter("raises", at=1)
    with pytest.raises(UserError, match="would take"):
        Transitions.record(env, 10**9)


def test_a_saved_log_loads_as_it_was(tmp_path):
    logged = Transitions.record(gym.make("Pendulum-v1"), 250)
    logged.save(tmp_path / "log.npz")
    again = Transitions.load(tmp_path / "log.npz", logged.observation_space, logged.action_space)
    for name in ("observations", "actions", "rewards", "next_observations", "terminated", "episodes"):
        assert np.array_equal(getattr(again, name), getattr(logged, name)), name


def test_spaces_and_episodes_are_inferred(tmp_path):
    np.savez(tmp_path / "log.npz", **log())
    logged = Transitions.load(tmp_path / "log.npz")
    assert logged.action_space == spaces.Discrete(3)
    assert logged.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert np.bincount(logged.episodes).tolist() == [100, 100, 100]
    np.savez(
        tmp_path / "pictures.npz",
        **log(observations=np.zeros((300, 2, 5, 5), np.uint8), next_observations=np.zeros((300, 2, 5, 5), np.uint8)),
    )
    assert Transitions.load(tmp_path / "pictures.npz").observation_space == spaces.Box(0, 255, (2, 5, 5), np.uint8)


NAN = np.ones((300, 2))
NAN[[4, 7], 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (log(terminated=None, dones=np.zeros(300, bool)), "no array 'terminated' among .*did you mean 'dones'"),
        (log(observations=None, obs=np.zeros((300, 2))), "did you mean 'obs'"),
        (log(observations=NAN), r"observations hold NaN or infinity in 2 of 300 rows, first at index \[4, 1\]"),
        (log(actions=np.zeros(299, int)), r"actions of shape \(299,\): expected 300 rows"),
        (log(next_observations=np.zeros((300, 3))), "next_observations of shape"),
        (log(actions=np.array(["left"] * 300)), "actions hold <U4: expected numbers"),
        (log(actions=np.array([None] * 300)), "no .npz file of plain arrays"),
        (log(n=150), "150 transitions, expected at least 200"),
        (log(rewards=np.ones((300, 1))), "rewards of shape"),
    ],
)
def test_an_unfit_file_is_refused_in_one_line(arrays, sentence, tmp_path):
    np.savez(tmp_path / "log.npz", **arrays)
    with pytest.raises(UserError, match=sentence) as caught:
        Transitions.load(tmp_path / "log.npz")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Transitions.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("observations")
    with pytest.raises(UserError, match=r"no \.npz file"):
        Transitions.load(tmp_path / "text.npz")
    np.savez_compressed(tmp_path / "cut.npz", **log())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no \.npz file"):
        Transitions.load(tmp_path / "cut.npz")


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "log.npz", **log(n=3000))
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="unpacks to"):
        Transitions.load(tmp_path / "log.npz")


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    np.savez(tmp_path / "log.npz", **log())
    with zipfile.ZipFile(tmp_path / "log.npz") as whole, zipfile.ZipFile(tmp_path / "false.npz", "w") as false:
        for name in whole.namelist():
            false.writestr(
                name, whole.read(name).replace(b"(300, 2)", b"(9**9,) "[:8]).replace(b"(300,)", b"(99999999999,)")
            )
    with pytest.raises(UserError, match=r"no \.npz file"):
        Transitions.load(tmp_path / "false.npz")


def test_actions_outside_the_given_space_are_refused(tmp_path):
    np.savez(tmp_path / "log.npz", **log())
    with pytest.raises(UserError, match="action 2"):
        Transitions.load(tmp_path / "log.npz", action_space=spaces.Discrete(2))


@pytest.fixture(scope="module")
def cartpole() -> Transitions:
    return Transitions.record(gym.make("CartPole-v1"), 5000, seed=1)


def test_a_log_agrees_with_the_symmetry_of_its_environment(cartpole):
    found = check_transitions(cartpole, resolve_symmetry("CartPole-v1"))
    assert found.agrees
    assert not found.refuted
    assert found.ratio < 1.15
    assert found.coverage > 0.8
    assert found.worst.interval[0] <= found.ratio <= found.worst.interval[1]


@pytest.mark.parametrize(
    ("signs", "actions"),
    [([1, -1, -1, -1], [1, 0]), ([-1, -1, -1, 1], [1, 0]), ([-1] * 4, [0, 1]), ([-1, -1, 1, 1], [1, 0])],
)
def test_a_log_refutes_a_wrong_sign_or_action(cartpole, signs, actions):
    found = check_transitions(cartpole, Symmetry.generated_by(({"signs": signs}, actions)))
    assert found.refuted
    assert found.ratio > 10


def test_an_asymmetric_reward_is_seen_where_dynamics_are_symmetric(cartpole):
    uneven = replace(cartpole, rewards=cartpole.rewards + 0.3 * (cartpole.observations[:, 2] > 0))
    found = check_transitions(uneven, resolve_symmetry("CartPole-v1"))
    assert found.refuted
    assert found.worst.worst == "reward"


def test_an_asymmetric_end_is_seen(cartpole):
    uneven = replace(cartpole, terminated=cartpole.next_observations[:, 2] > 0.05)
    found = check_transitions(uneven, resolve_symmetry("CartPole-v1"))
    assert found.refuted
    assert found.worst.worst == "termination"


def test_a_log_that_never_shows_images_covers_none(cartpole):
    right = cartpole.rows(cartpole.observations[:, 0] > 0.02)
    found = check_transitions(right, Symmetry.generated_by(({"signs": [-1] * 4}, [1, 0])))
    assert found.coverage < 0.5 < check_transitions(cartpole, resolve_symmetry("CartPole-v1")).coverage


def test_too_few_transitions_and_a_symmetry_that_does_not_fit_are_refused(cartpole):
    with pytest.raises(UserError, match="999 transitions: expected at least 1000"):
        check_transitions(cartpole.rows(np.arange(999)), resolve_symmetry("CartPole-v1"))
    with pytest.raises(UserError, match="acts on 3 entries"):
        check_transitions(cartpole, Symmetry.generated_by(({"signs": [-1] * 3}, [1, 0])))


def test_blocks_follow_episodes_and_cut_long_ones(cartpole):
    blocks = blocks_of(cartpole)
    assert (np.bincount(blocks) <= 125).all()
    assert all(len(set(cartpole.episodes[blocks == b])) == 1 for b in np.unique(blocks))


def test_a_relation_among_entries_is_found_and_its_breaking_noticed():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 1000))
    relations = Relations(np.column_stack([a, b, a * b, c]))
    assert relations.entries.tolist() == [2]
    assert np.abs(relations.errors(np.array([[2.0, 1.5, 3.0, 0.0]]))).max() < 1e-3
    assert np.abs(relations.errors(np.array([[2.0, 1.5, -3.0, 0.0]]))).max() > 5


def test_features_hold_every_product_once():
    features = Features(np.random.default_rng(0).normal(size=(100, 3)))
    values = features(np.array([[1.0, 2.0, 3.0]]))
    assert features.ends[:2] == (4, 10)
    z = values[0, 1:4]
    assert np.allclose(np.sort(values[0, 4:10]), np.sort([z[i] * z[j] for i in range(3) for j in range(i, 3)]))
