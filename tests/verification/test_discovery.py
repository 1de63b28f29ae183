"""Search finds exactly the symmetries that are there, and says what it took."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from equirl import Symmetry, UserError
from equirl.verification import discovery as module
from equirl.verification.candidates import Candidate, Shortlist, closed, generating
from equirl.verification.discovery import Discovery, confirmed, discover_symmetries
from equirl.verification.logs import Evidence
from equirl.verification.report import Report
from equirl.verification.structure import EntryMap, Slopes, Structure
from equirl.verification.transitions import Transitions
from equirl.verification.vectors import classes_of, discover_vectors


class Push(gym.Env[Any, Any]):
    """A ball on a table, pushed in four directions or not at all; `fault` breaks some of its eight symmetries.

    Observation: place and speed (x, y, u, v), shifted by `centre`; the table is `wide` to each side.
    """

    PUSHES = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0], [0, 0]])

    def __init__(self, fault: str = "", centre: float = 0.0, wide: float = np.inf) -> None:
        self.fault, self.centre = fault, centre
        low = np.array([centre - wide, centre - wide, -np.inf, -np.inf])
        self.observation_space = spaces.Box(
            low, np.array([centre + wide, centre + wide, np.inf, np.inf]), (4,), np.float64
        )
        self.action_space = spaces.Discrete(6, start=1 if fault == "start" else 0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = self.np_random.uniform(-1, 1, 4)
        self.steps = 0
        return self._seen(), {}

    def _seen(self):
        return self.now + np.array([self.centre, self.centre, 0, 0])

    def step(self, action):
        place, speed = self.now[:2], self.now[2:]
        force = 0.3 * self.PUSHES[action - self.action_space.start] - 0.2 * place - 0.1 * place**3
        if self.fault == "wind":
            force = force + np.array([0.15, 0])
        if self.fault == "oval":
            force = force * [1.0, 0.6]
        speed = 0.9 * speed + 0.3 * force
        self.now = np.concatenate([place + 0.3 * speed, speed])
        self.steps += 1
        reward = -float((place**2).sum()) + (0.5 * place[0] if self.fault == "reward" else 0)
        return self._seen(), reward, False, self.steps == 20, {}


def found_in(env: gym.Env[Any, Any], n: int = 4000) -> Shortlist:
    return discover_vectors(Transitions.record(env, n))


@pytest.mark.parametrize("fault", ["", "start"])
def test_all_eight_symmetries_of_a_square_are_found_with_the_right_actions(fault):
    found = found_in(Push(fault))
    group = found.symmetry()
    assert group is not None
    assert len(group.group) == 8
    quarter = {"signs": [1, -1, 1, -1], "permutation": [1, 0, 3, 2]}
    turn = next(c for c in found.accepted if c.observation_map == quarter)
    assert turn.action_map == [1, 2, 3, 0, 4, 5]  # the two idle actions stay, and multiply nothing
    assert max(c.score for c in found.accepted) < 1.2 < 5 < (found.next_best or np.inf)


@pytest.mark.parametrize(
    ("fault", "maps"),
    [
        ("wind", [[1, -1, 1, -1]]),
        ("reward", [[1, -1, 1, -1]]),
        ("oval", [[-1, -1, -1, -1], [-1, 1, -1, 1], [1, -1, 1, -1]]),
    ],
)
def test_what_breaks_some_symmetries_leaves_exactly_the_others(fault, maps):
    found = found_in(Push(fault))
    assert sorted(c.observation_map["signs"] for c in found.accepted) == maps
    assert all("permutation" not in c.observation_map for c in found.accepted)


@pytest.mark.parametrize("wide", [5.0, np.inf])
def test_the_centre_is_found_from_bounds_or_from_the_log(wide):
    found = found_in(Push(centre=3.0, wide=wide))
    assert found.symmetry().group.names
    assert len(found.accepted) == 7
    assert all(c.observation_map.get("centre", [3.0, 3.0, 0.0, 0.0]) == [3.0, 3.0, 0.0, 0.0] for c in found.accepted)
    assert any("centre" in c.observation_map for c in found.accepted)


def test_bounds_that_a_map_leads_out_of_refute_it():
    env = Push()
    env.observation_space = spaces.Box(np.array([-9, -9, -9, -9.0]), np.array([9, 8, 9, 9.0]), (4,), np.float64)
    assert [c.observation_map["signs"] for c in found_in(env).accepted] == [[-1, 1, -1, 1]]


def test_pendulum_and_its_torque_are_mirrored_and_mountain_car_is_not():
    pendulum = discover_symmetries(gym.make("Pendulum-v1"), interactions=4000, confirm=False)
    assert [(c.observation_map, c.action_map) for c in pendulum.elements] == [
        ({"signs": [1, -1, -1]}, {"permutation": [0], "signs": [-1]})
    ]
    car = discover_symmetries(gym.make("MountainCar-v0"), interactions=4000, confirm=False)
    assert car.symmetry is None
    assert car.code() == "# no symmetry of MountainCar-v0 was found"


def test_acrobot_is_found_and_confirmed_within_its_budget():
    found = discover_symmetries(gym.make("Acrobot-v1"), interactions=6000)
    assert [(c.observation_map, c.action_map) for c in found.elements] == [
        ({"signs": [1, -1, 1, -1, -1, -1]}, [2, 1, 0])
    ]
    assert found.report.verdict == "exact"
    assert found.interactions == 6000 + found.report.interactions < 50_000
    assert found.score is not None
    assert found.next_best is not None
    assert found.score < 1.2 < 5 < found.next_best


def test_lunar_lander_swaps_its_legs():
    pytest.importorskip("Box2D")
    found = discover_symmetries(gym.make("LunarLander-v3"), interactions=12_000, confirm=False)
    mirror = {"signs": [-1, 1, -1, 1, -1, -1, 1, 1], "permutation": [0, 1, 2, 3, 4, 5, 7, 6]}
    assert [(c.observation_map, c.action_map) for c in found.elements] == [(mirror, [0, 3, 2, 1])]


def test_the_code_rebuilds_the_symmetry():
    found = discover_symmetries(Transitions.record(Push(), 6000))
    scope: dict[str, Any] = {}
    exec(found.code(), scope)
    assert scope["symmetry"] == found.symmetry
    assert len(found.generators) == 2
    assert found.to_data()["group"] == "D4"


def test_an_entry_that_never_changes_is_left_alone():
    class Still(Push):
        def _seen(self):
            return np.array([*self.now[:2], 0.0, *self.now[2:]])

    env = Still("oval")
    env.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
    assert sorted(c.observation_map["signs"] for c in found_in(env).accepted) == [
        [-1, -1, 1, -1, -1],
        [-1, 1, 1, -1, 1],
        [1, -1, 1, 1, -1],
    ]


def test_actions_of_like_effect_are_one_class():
    evidence = Evidence(Transitions.record(Push(), 3000))
    assert classes_of(evidence) == [[0], [1], [2], [3], [4, 5]]


def test_no_true_map_is_pruned_and_most_wrong_ones_are():
    evidence = Evidence(Transitions.record(Push(), 4000))
    maps = list(Structure(Slopes(evidence), np.zeros(4)).maps(1000))
    shown = {(tuple(m.permutation.tolist()), tuple(m.signs.tolist())) for m in maps}
    for swapped in ((0, 1, 2, 3), (1, 0, 3, 2)):
        for a in (1, -1):
            for b in (1, -1):
                if (swapped, a, b) != ((0, 1, 2, 3), 1, 1):
                    assert (swapped, (a, b, a, b)) in shown
    assert len(shown) < 24 * 16 / 10


def test_a_map_moves_as_its_plain_data_say():
    entries = EntryMap(np.array([2, 0, 1]), np.array([1, -1, 1]), np.array([0.5, 1.0, 2.0]))
    symmetry = Symmetry.generated_by((entries.to_data(), [0, 1]))
    x = np.array([[1.0, 2.0, 3.0]])
    orbit = symmetry.observation.orbit(torch.from_numpy(x))
    assert any(np.allclose(orbit[k].numpy(), entries.move(x)) for k in range(1, len(symmetry.group)))


TURNS = [
    Candidate("rot90", [1, 2, 3, 0], 0.1),
    Candidate("rot180", [2, 3, 0, 1], 0.2),
    Candidate("rot270", [3, 0, 1, 2], 0.3),
]


def test_the_largest_closed_set_is_kept_and_generated_by_few():
    assert list(closed(TURNS)) == TURNS
    assert closed(TURNS[:2]) == (TURNS[1],)  # a quarter turn without its inverse is no group
    assert closed([]) == ()
    assert generating(TURNS) == [TURNS[0]]
    mirror = Candidate("flip_x", [0, 3, 2, 1], 0.05)
    assert closed([*TURNS[:2], mirror]) == (mirror,)  # of two groups of one size, that of the better score


def test_what_the_check_refutes_is_dropped_and_the_rest_closed(monkeypatch):
    asked = []

    def check(env, symmetry, **options):
        asked.append(len(symmetry.group))
        verdict = "exact" if len(symmetry.group) == 2 else "rejected"
        return Report("x", symmetry, verdict, 1, "said so", interactions=10)

    monkeypatch.setattr("equirl.verification.check.check_symmetry", check)
    kept, refused, report, steps = confirmed(Push(), tuple(TURNS), "x", 0, None)
    assert kept == (TURNS[1],)
    assert [c.observation_map for c in refused] == ["rot90", "rot270"]
    assert refused[0].note == "rejected by the check: said so"
    assert (report.verdict, steps, asked) == ("exact", 50, [4, 4, 2, 4, 2])


def test_what_the_check_refutes_wholly_leaves_nothing(monkeypatch):
    monkeypatch.setattr(
        "equirl.verification.check.check_symmetry",
        lambda env, symmetry, **options: Report("x", symmetry, "rejected", 1, "said so", interactions=7),
    )
    found = discover_symmetries(Push("wind"), interactions=4000)
    assert (found.symmetry, found.elements, found.score) == (None, (), None)
    assert found.interactions == 4014
    assert found.report.verdict == "rejected"


@pytest.mark.parametrize(
    ("seen", "done", "sentence"),
    [
        (spaces.Discrete(4), spaces.Discrete(2), "observation space Discrete"),
        (spaces.Text(3), spaces.Discrete(2), "observation space Text"),
        (spaces.Box(0, 1, (3,)), spaces.MultiDiscrete([2, 2]), "action space MultiDiscrete"),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Box(-1, 1, (2,)), "expected Discrete with pictures"),
    ],
)
def test_spaces_without_a_search_are_refused_before_playing(seen, done, sentence, monkeypatch):
    monkeypatch.setattr(module, "search", None)
    env = Push()
    env.observation_space, env.action_space = seen, done
    with pytest.raises(UserError, match=sentence):
        discover_symmetries(env)


def test_too_few_transitions_are_refused():
    with pytest.raises(UserError, match="300 transitions: expected at least 1000"):
        discover_symmetries(Push(), interactions=300)


def test_nothing_found_is_said_without_scores():
    empty = Discovery("x", None)
    assert (empty.score, empty.next_best, empty.to_data()["symmetry"]) == (None, None, None)
