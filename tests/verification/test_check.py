"""Each tier finds what is there, on small environments whose symmetry is known, and says how it knows."""

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from equirl import Symmetry, UserError
from equirl.envs import entry_named, make_to_check
from equirl.verification import Report, Transitions, check_symmetry

MIRROR = Symmetry.generated_by(({"signs": [-1, -1]}, [1, 0]), name="mirror")


class Cart(gym.Env[Any, Any]):
    """A cart between two walls; `fault` says how the mirror is broken."""

    def __init__(self, fault: str = "", settable: bool = True) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.fault, self.settable, self.steps = fault, settable, 0

    def __getattr__(self, name: str) -> Any:
        if name == "state" and self.__dict__.get("settable"):
            return self.__dict__["now"]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("now" if name == "state" else name, value)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = self.np_random.uniform(-0.5, 0.5, 2) + (0.15 if self.fault == "reset" else 0.0)
        self.steps = 0
        return self.now.copy(), {}

    def step(self, action):
        x, v = self.now
        push = 0.1 if action == 1 else -0.1
        if self.fault == "push" and action == 1:
            push = 0.15
        if self.fault == "hidden":
            self.steps += 1
            push *= 1 + self.steps % 3
        if self.fault == "far" and x > 1.5:
            push = 0.0
        if self.fault == "tiny":
            push += 1e-4
        if self.fault in ("noise", "drift"):
            push += self.np_random.normal() * 0.1 + (0.05 if self.fault == "drift" else 0.0)
        if self.fault == "gusts":
            push += self.np_random.choice([-0.2, 0.0, 0.2])
        if self.fault == "east wind":
            push += self.np_random.choice([0.0, 0.2])
        v = 0.95 * v + push
        x = x + 0.1 * v
        self.now = np.array([x, v])
        reward = -(x**2) + (x if self.fault == "reward" else 0.0)
        ended = x > 0.7 or (self.fault != "end" and x < -0.7)
        return self.now.copy(), reward, bool(ended), False, {}


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("", "exact"),
        ("reset", "exact"),  # only transitions, rewards and terminations count
        ("tiny", "approximate"),
        ("far", "locally broken"),
        ("push", "rejected"),
        ("reward", "rejected"),
        ("end", "rejected"),
        ("noise", "exact in law"),
        ("gusts", "exact in law"),
        ("drift", "rejected"),
        ("east wind", "rejected"),
    ],
)
def test_states_that_can_be_set_tell(fault, verdict):
    random = fault in ("noise", "gusts", "drift", "east wind")
    report = check_symmetry(Cart(fault), MIRROR, states=60 if random else 400, controls=2)
    assert (report.verdict, report.tier) == (verdict, 1), report
    assert report.holds is (verdict in ("exact", "exact in law", "approximate"))


def test_a_state_that_hides_something_leaves_it_to_episodes():
    report = check_symmetry(Cart("hidden"), MIRROR, states=200, controls=2)
    assert (report.verdict, report.tier) == ("approximate", 2)
    assert "states hide something" in report.reason


def test_the_numbers_are_those_of_the_environment():
    exact = check_symmetry(Cart(), MIRROR, states=300)
    assert exact.numbers["error"]["max"] == 0  # negation commutes with every rounding
    assert exact.numbers["broken_at_most"] == pytest.approx(1 - 0.025 ** (1 / 600))
    assert exact.worst == ()
    tiny = check_symmetry(Cart("tiny"), MIRROR, states=300)
    change = np.sqrt(0.1**2 + (0.05 * 0.5) ** 2)
    assert tiny.numbers["error"]["median"] == pytest.approx(2e-4 / change, rel=0.5)  # both sides drift by 1e-4
    assert 0 < tiny.numbers["cost_in_return"] < 0.5
    ended = check_symmetry(Cart("end"), MIRROR, states=300)
    assert ended.numbers["terminations_differ"] == ended.numbers["broken"] > 0


def test_the_worst_states_are_those_that_break_it():
    report = check_symmetry(Cart("far"), MIRROR, states=300)
    assert 3 <= len(report.worst) <= 5
    assert all(row["origin"] == "broad" and abs(row["observation"][0]) > 1.5 for row in report.worst)
    assert "broken in" in report.reason


def test_wrong_claims_are_refuted_beside_a_true_one():
    report = check_symmetry(Cart(), MIRROR, states=200)
    names = [row["name"] for row in report.controls]
    assert len(names) >= 3
    assert any(name.startswith("actions") for name in names)
    assert any(name.startswith("observations") for name in names)
    assert all(row["refuted"] for row in report.controls)


def test_a_check_that_accepts_wrong_claims_too_decides_nothing():
    class Still(Cart):
        def step(self, action):
            self.now = np.zeros(2)
            return np.zeros(2), 0.0, False, False, {}

    report = check_symmetry(Still(), MIRROR, states=100, controls=2)
    assert report.verdict == "undecidable"
    assert "wrong claims pass as well" in report.reason


@pytest.mark.parametrize(
    ("fault", "verdict", "tier"),
    [("", "approximate", 2), ("noise", "approximate", 2), ("drift", "rejected", 2), ("reward", "rejected", 2)],
)
def test_without_states_episodes_tell(fault, verdict, tier):
    report = check_symmetry(Cart(fault, settable=False), MIRROR, controls=2)
    assert (report.verdict, report.tier) == (verdict, tier), report


@pytest.mark.parametrize(("claim", "verdict"), [(MIRROR, "approximate"), ("wrong", "rejected")])
def test_where_resets_are_lopsided_a_log_tells(claim, verdict):
    if claim == "wrong":
        claim = {"generators": [[{"signs": [-1, -1]}, [0, 1]]]}
    report = check_symmetry(Cart("reset", settable=False), claim)
    assert (report.verdict, report.tier) == (verdict, 3), report


def test_a_wrapper_with_a_memory_rules_out_setting_states():
    class Delayed(gym.Wrapper[Any, Any, Any, Any]):
        last = 0

        def step(self, action):
            action, self.last = self.last, action
            return self.env.step(action)

    assert check_symmetry(Delayed(Cart()), MIRROR).tier == 2


def test_frame_stacks_lift_by_themselves():
    env = gym.wrappers.FlattenObservation(gym.wrappers.FrameStackObservation(Cart(), 3))
    report = check_symmetry(env, MIRROR)
    assert (report.symmetry.observation.size, report.verdict, report.tier) == (6, "approximate", 2)


def test_states_of_play_come_from_the_policy_given():
    seen = []

    def policy(observation):
        seen.append(observation)
        return 0

    report = check_symmetry(Cart("end"), MIRROR, states=200, policy=policy)
    assert len(seen) == 200
    assert report.numbers["on_policy_broken"][0] > 0  # always to the left, where one side ends and the other does not


def test_an_environment_checks_the_claim_it_carries():
    assert check_symmetry(gym.make("equirl/GridWorld-v0"), states=100).symmetry.group.name == "D4"
    with pytest.raises(UserError, match="no known symmetry of Cart"):
        check_symmetry(Cart())


def test_a_claim_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"4 entries.*\(2,\)"):
        check_symmetry(Cart(), "CartPole-v1")
    with pytest.raises(UserError, match="0 states"):
        check_symmetry(Cart(), MIRROR, states=0)


def test_bounds_that_move_are_said_and_forbid_local_breaking():
    entry = entry_named("MountainCar-v0:mirror")
    report = check_symmetry(make_to_check(entry.name), entry.symmetry, states=300)
    assert report.verdict == "rejected"
    assert "[-1.2, 0.6] to [-1.647, 0.1528]" in report.numbers["bounds"]


def test_transition_tables_are_compared_as_a_whole():
    for name, broken, total in (("symmetric", 0, 64), ("transpose", 40, 64)):
        entry = entry_named(f"FrozenLake-v1:{name}")
        report = check_symmetry(make_to_check(entry.name), entry.symmetry)
        assert (report.numbers["broken"], report.numbers["pairs"], report.tier) == (broken, total, 1)
        assert report.interactions == 0
    assert len(report.worst) == 5


def test_logged_transitions_alone():
    log = Transitions.record(Cart(), 6000, seed=0)
    assert check_symmetry(log, MIRROR).verdict == "approximate"
    assert check_symmetry(log, {"generators": [[{"signs": [-1, 1]}, [1, 0]]]}).verdict == "rejected"
    with pytest.raises(UserError, match="no symmetry to check the transitions for"):
        check_symmetry(log)


@pytest.mark.parametrize(
    ("generator", "verdict"),
    [
        (("rot90", [1, 2, 3, 0]), "approximate"),
        (("flip_x", [0, 3, 2, 1]), "approximate"),
        (("flip_x", [0, 1, 2, 3]), "rejected"),
        (({"grid": "flip_x", "shift": [0, 1]}, [0, 3, 2, 1]), "undecidable"),
    ],
)
def test_logged_pictures_alone(generator, verdict, grid_log):
    report = check_symmetry(grid_log, {"generators": [generator]})
    assert (report.verdict, report.tier) == (verdict, 3), report


@pytest.fixture(scope="module")
def grid_log() -> Transitions:
    return Transitions.record(gym.make("equirl/GridWorld-v0", size=3, n_walls=0), 1500)


def test_a_report_is_plain_data_and_one_line():
    report = check_symmetry(Cart("push"), MIRROR, states=100)
    data = json.loads(json.dumps(report.to_data(), allow_nan=False))
    assert (data["verdict"], data["group"], data["tier_name"], data["holds"]) == ("rejected", "C2", "states", False)
    assert Symmetry.from_data(data["symmetry"]) == MIRROR
    assert "\n" not in str(report)
    assert isinstance(report, Report)


def test_the_same_seed_gives_the_same_report():
    first, second = (check_symmetry(Cart("noise"), MIRROR, states=20, seed=4, controls=1).to_data() for _ in range(2))
    assert first == second
