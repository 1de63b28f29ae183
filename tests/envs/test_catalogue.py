"""The catalogue says what a check finds, entry by entry, and altered claims are refuted."""

from importlib.util import find_spec
from itertools import islice

import pytest

from equirl import Symmetry
from equirl.envs import ENTRIES, make_to_check
from equirl.envs.catalogue import Entry
from equirl.verification import check_symmetry
from equirl.verification.controls import claims_beside, plain_map

MODULE = {"box2d": "Box2D"}  # the others are named as their extra
CORRUPTED = 10


def environment(entry: Entry):
    if entry.extra and not find_spec(MODULE.get(entry.extra, entry.extra)):
        pytest.skip(f"needs the extra {entry.extra}")
    return make_to_check(entry.name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_check_reproduces_the_verdict(entry):
    report = check_symmetry(environment(entry), entry.symmetry, states=400, controls=4)
    assert report.verdict == entry.verdict, report


# Sets of actions that do the same everywhere, so that exchanging them is no error. MinAtar: n l u r d f.
SAME = {
    "MinAtar/Breakout-v0": {0, 2, 4, 5},
    "MinAtar/Asterix-v0": {0, 5},
    "MinAtar/Freeway-v0": {0, 1, 3, 5},
    "MiniGrid-Empty-8x8-v0": {3, 4, 5, 6},
}


def differs_by_interchangeable_actions(claim: Symmetry, true: Symmetry, same: set[int]) -> bool:
    """Whether the claim is the true symmetry but for actions that do the same."""
    for g in range(len(claim.group)):
        alike = [h for h in range(len(true.group)) if plain_map(claim.observation, g) == plain_map(true.observation, h)]
        if not alike:
            return False
        pairs = zip(claim.action.indices[g].tolist(), true.action.indices[alike[0]].tolist(), strict=True)
        if any(a != b and not {a, b} <= same for a, b in pairs):
            return False
    return True


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.verdict in ("exact", "exact in law")], ids=lambda entry: entry.name
)
def test_altered_claims_are_refuted(entry):
    env = environment(entry)
    beside = claims_beside(entry.symmetry.fitted(env.observation_space), env.observation_space, env.action_space, 0)
    same = SAME.get(entry.env_id, set())
    wrong = (pair for pair in beside if not differs_by_interchangeable_actions(pair[1], entry.symmetry, same))
    tried = 0
    for name, claim in islice(wrong, CORRUPTED):
        report = check_symmetry(env, claim, states=60, controls=0)
        assert not report.holds, (name, str(report))
        tried += 1
    assert tried == CORRUPTED
