"""The catalogue says what a check finds, entry by entry, and altered claims are refuted."""

from importlib.util import find_spec
from itertools import islice

import pytest

from equirl.envs import ENTRIES, make_to_check
from equirl.envs.catalogue import Entry
from equirl.verification import by_resets, check_symmetry
from equirl.verification.controls import claims_beside

# Old versions of environments are listed on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")

MODULE = {"box2d": "Box2D"}  # the others are named as their extra
CORRUPTED = 3  # ten of each are refuted in tests/benchmarks/verdicts.md
BRIEF = 6  # pairs of films, half a second a film


def environment(entry: Entry):
    if entry.extra and not find_spec(MODULE.get(entry.extra, entry.extra)):
        pytest.skip(f"needs the extra {entry.extra}")
    return make_to_check(entry.name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_check_reproduces_the_verdict(entry, monkeypatch):
    if entry.verdict in ("undecidable", "rejected"):  # films have nothing to confirm
        monkeypatch.setattr(by_resets, "FILMS", BRIEF)
    report = check_symmetry(environment(entry), entry.symmetry, states=150, controls=4)
    assert report.verdict == entry.verdict, report


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.verdict in ("exact", "exact in law")], ids=lambda entry: entry.name
)
def test_altered_claims_are_refuted(entry):
    env = environment(entry)
    claim = entry.symmetry.fitted(env.observation_space)
    wrong = claims_beside(claim, env.observation_space, env.action_space, 0, entry.same_actions)
    tried = 0
    for name, altered in islice(wrong, CORRUPTED):
        report = check_symmetry(env, altered, states=60, controls=0)
        assert not report.holds, (name, str(report))
        tried += 1
    assert tried == CORRUPTED
