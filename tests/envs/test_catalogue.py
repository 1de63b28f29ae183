"""The catalogue says what a check finds, entry by entry, and altered claims are refuted."""

from collections.abc import Iterable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from equirl import Grid, UserError
from equirl.envs import ENTRIES, entry_named, make_to_check
from equirl.envs.catalogue import Entry
from equirl.verification import by_resets, check_symmetry
from equirl.verification.controls import claims_beside

# Old versions of environments are listed on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")

MODULE = {"box2d": "Box2D"}  # the others are named as their extra
CORRUPTED = 3  # ten of each are refuted in tests/benchmarks/verdicts.md
BRIEF = 6  # pairs of films, half a second a film
PAGE = Path(__file__).resolve().parents[1] / "benchmarks" / "verdicts.md"

# These are checked by the same code as others that stay: Pong by states, Freeway by films, other worlds of
# MiniGrid, the other symmetries of these bodies. Games whose films must confirm something take the longest.
SLOW_MINIGRID = {"MiniGrid-FourRooms-v0", "MiniGrid-LavaGapS7-v0", "MiniGrid-SimpleCrossingS9N1-v0"}
SLOW_BODIES = {"Ant-v5:mirror", "Reacher-v5:mirror", "Walker2d-v4:swap"}
SLOW_GAMES = {entry.name for entry in ENTRIES if entry.name[:4] == "ALE/"} - {
    "ALE/Pong-v5",
    "ALE/Freeway-v5:plain_flip",
}
SLOW_VERDICTS = SLOW_MINIGRID | SLOW_BODIES | SLOW_GAMES
SLOW_CLAIMS = SLOW_MINIGRID | SLOW_BODIES | {"MiniGrid-Empty-8x8-v0", "MiniGrid-DoorKey-6x6-v0"}


def each(chosen: Iterable[Entry], slow: set[str]) -> Any:
    """Parametrize a test by entries, of which some, by their names, are slow."""
    marks = {name: [pytest.mark.slow] for name in slow}
    return pytest.mark.parametrize("entry", [pytest.param(e, id=e.name, marks=marks.get(e.name, ())) for e in chosen])


def environment(entry: Entry):
    if entry.extra and not find_spec(MODULE.get(entry.extra, entry.extra)):
        pytest.skip(f"needs the extra {entry.extra}")
    return make_to_check(entry.name)


def test_what_a_listed_symmetry_does_not_fit_is_told_what_it_does():
    raw = spaces.Box(-np.inf, np.inf, (105,))  # Ant-v5, contact forces included
    with pytest.raises(UserError, match=r"acts on 27 entries.*; equirl.envs.make\('Ant-v5'\) makes an environment"):
        entry_named("Ant-v5").symmetry.check_observation_space(raw)


PICTURES = [entry for entry in ENTRIES if isinstance(entry.symmetry.observation, Grid) and entry.wrapper]


@pytest.mark.parametrize("entry", PICTURES, ids=lambda entry: entry.name)
def test_pictures_of_another_size_than_the_wrappers_are_refused(entry):
    made = environment(entry).observation_space
    height, width = made.shape[:2] if entry.env_id.startswith("ALE/") else made.shape[1:]
    assert entry.symmetry.sides == (height, width)
    entry.symmetry.fitted(made)
    for size in ((84, 84), (210, 160)):  # of SB3's own wrapper, and of the screen
        space = spaces.Box(0, 255, (4 if entry.env_id.startswith("ALE/") else made.shape[0], *size), np.uint8)
        hint = "" if entry.rejected else rf"; equirl.envs.make\('{entry.name}'\) makes"
        with pytest.raises(UserError, match=f"expected pictures of {height} x {width}, .* claimed{hint}"):
            entry.symmetry.check_observation_space(space)


@each(ENTRIES, SLOW_VERDICTS)
def test_a_check_reproduces_the_verdict(entry, monkeypatch):
    if entry.verdict in ("undecidable", "rejected"):  # films have nothing to confirm
        monkeypatch.setattr(by_resets, "FILMS", BRIEF)
    report = check_symmetry(environment(entry), entry.symmetry, states=150, controls=4)
    assert report.verdict == entry.verdict, report


@each([entry for entry in ENTRIES if entry.verdict in ("exact", "exact in law")], SLOW_CLAIMS)
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


def test_the_page_of_verdicts_says_of_every_entry_what_the_catalogue_says():
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    heads, _, *rows = lines
    found = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(found) == [entry.name for entry in ENTRIES]
    for entry in ENTRIES:
        refuted = "10 of 10" if entry.verdict in ("exact", "exact in law") else "-"
        row = found[entry.name]
        assert (row["listed"], row["found"], row["altered claims refuted"]) == (entry.verdict, entry.verdict, refuted)
        assert row["group"] == str(entry.symmetry.group)
