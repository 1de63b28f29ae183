"""Symmetries: from generators in plain terms, as data and in SB3's files, against spaces, by name, in the catalogue."""

import copy
import json
import pickle
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.save_util import data_to_json, json_to_data
from torch import nn

from equirl import (
    Grid,
    Group,
    Matrix,
    PerKey,
    Permutation,
    SignedPermutation,
    Symmetry,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    equivariance_error,
    register_symmetry,
    registered_symmetries,
    resolve_symmetry,
    symmetrize,
    symmetry,
    symmetry_of,
)
from equirl.agents.dqn import MlpPolicy
from equirl.envs import ENTRIES, make
from equirl.symmetry import no_symmetry

CARTPOLE = ({"signs": [-1, -1, -1, -1]}, [1, 0])
TURN, MIRROR = ("rot90", [1, 2, 3, 0]), ("flip_x", [0, 3, 2, 1])
SEAQUEST = ({"grid": "flip_x", "fixed": [2]}, [0, 2, 1])
KEYS = ({"keys": {"time": [0], "eye": "flip_y", "speed": {"signs": [-1]}}}, [1, 0])
MOUNTAIN = ({"signs": [-1, -1], "centre": [-np.pi / 6, 0]}, {"signs": [-1], "centre": [0.5]})
EXAMPLES = {
    "signs": Symmetry.generated_by(CARTPOLE, name="pole"),
    "turns": Symmetry.generated_by(TURN),
    "turns and mirrors": Symmetry.generated_by(TURN, MIRROR, name="square"),
    "gauges": Symmetry.generated_by(SEAQUEST),
    "keys": Symmetry.generated_by(KEYS),
    "HWC torus": Symmetry.generated_by(({"grid": "flip_x", "shift": [0, -1], "layout": "HWC"}, [0, 1])),
    "matrix": Symmetry(Matrix(cyclic(2), np.array([[[1, 0], [0, 1]], [[0, 2], [0.5, 0]]])), Trivial(cyclic(2)), "skew"),
    "tokens": Symmetry(Tokens(cyclic(2), [[0, 1], [1, 0]]), Permutation(cyclic(2), [[0, 1], [1, 0]])),
    "centre": Symmetry.generated_by(MOUNTAIN, name="hill"),
    "centre of a key": Symmetry.generated_by(
        ({"keys": {"time": [0], "place": {"signs": [-1], "centre": [0.1]}}}, [1, 0])
    ),
    "other group": Symmetry.generated_by(
        ([0, 2, 3, 1], [0, 1]), ([1, 2, 0, 3], [0, 1]), name="the 12 turns of a tetrahedron"
    ),
    "none": no_symmetry(),
}
C2, SWAP = cyclic(2), Permutation(cyclic(2), [[0, 1], [1, 0]])
NEGATED = SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, 1]])


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Let each test register what it likes."""
    registered_symmetries()
    monkeypatch.setattr(symmetry, "_REGISTRY", dict(symmetry._REGISTRY))
    monkeypatch.setattr(symmetry, "_LOADED", list(symmetry._LOADED))


# From generators


@pytest.mark.parametrize(
    ("generators", "group", "observation", "action"),
    [
        ([([1, 0], [1, 0])], "C2", SWAP, SWAP),
        ([(np.array([1, 0]), (1, 0))], "C2", SWAP, SWAP),
        ([({"permutation": [1, 0]}, [0, 1])], "C2", SWAP, Permutation(C2, [[0, 1], [0, 1]])),
        ([({"signs": [-1, 1]}, [1, 0])], "C2", SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, 1]]), SWAP),
        (
            [({"permutation": [1, 0], "signs": [-1, -1]}, {"signs": [-1]})],
            "C2",
            SignedPermutation(C2, [[0, 1], [1, 0]], [[1, 1], [-1, -1]]),
            SignedPermutation(C2, [[0], [0]], [[1], [-1]]),
        ),
        # A quarter turn of the plane: (x, y) -> (-y, x).
        (
            [({"permutation": [1, 0], "signs": [1, -1]}, [1, 2, 3, 0])],
            "C4",
            SignedPermutation(cyclic(4), [[0, 1], [1, 0], [0, 1], [1, 0]], [[1, 1], [1, -1], [-1, -1], [-1, 1]]),
            Permutation.regular(cyclic(4)),
        ),
        (
            [MOUNTAIN],
            "C2",
            SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, -1]], [-np.pi / 6, 0]),
            SignedPermutation(C2, [[0]] * 2, [[1], [-1]], [0.5]),
        ),
        # A quarter turn of the plane about (5, 2).
        (
            [({"permutation": [1, 0], "signs": [1, -1], "centre": [5, 2]}, [0])],
            "C4",
            SignedPermutation(
                cyclic(4), [[0, 1], [1, 0], [0, 1], [1, 0]], [[1, 1], [1, -1], [-1, -1], [-1, 1]], [5, 2]
            ),
            None,
        ),
        ([({"signs": [-1, 1], "centre": [0, 0.0]}, [1, 0])], "C2", NEGATED, SWAP),
        ([({"permutation": [1, 0], "centre": [3, 3]}, [1, 0])], "C2", SWAP, SWAP),
        (
            [({"permutation": [1, 0], "centre": [3, 4]}, [0])],
            "C2",
            SignedPermutation(C2, SWAP.indices, None, [3, 4]),
            None,
        ),
        ([TURN], "C4", Grid(cyclic(4)), Permutation.regular(cyclic(4))),
        ([("flip_y", [1, 0])], "C2", Grid(C2, ["identity", "flip_y"]), SWAP),
        ([SEAQUEST], "C2", Grid(C2, ["identity", "flip_x"], fixed=[2]), Permutation(C2, [[0, 1, 2], [0, 2, 1]])),
        (
            [({"grid": "flip_x", "channels": [1, 0], "shift": [0, -1], "layout": "HWC"}, [0])],
            "C2",
            Grid(C2, ["identity", "flip_x"], [[0, 1], [1, 0]], shift=(0, -1), layout="HWC"),
            Permutation(C2, [[0], [0]]),
        ),
        (
            [KEYS],
            "C2",
            PerKey(
                C2,
                {
                    "eye": Grid(C2, ["identity", "flip_y"]),
                    "speed": SignedPermutation(C2, [[0], [0]], [[1], [-1]]),
                    "time": Permutation(C2, [[0], [0]]),
                },
            ),
            SWAP,
        ),
        ([({"keys": {"a": [1, 0]}}, [0]), ({"keys": {"a": [0, 1]}}, [0])], "C2", PerKey(C2, {"a": SWAP}), None),
        ([([0, 1], [0])], "C1", Permutation(cyclic(1), [[0, 1]]), None),
    ],
    ids=str,
)
def test_generated_by(generators, group, observation, action):
    found = Symmetry.generated_by(*generators)
    assert found.group.name == group
    assert found.observation == observation
    assert action is None or found.action == action


def test_two_generators_make_every_product_of_both():
    square = Symmetry.generated_by(TURN, MIRROR)
    assert square.group.name == "D4"
    assert sorted(square.observation.maps) == sorted(Grid(dihedral(4)).maps)
    assert len({tuple(row) for row in square.action.indices.tolist()}) == 8
    directions = {0: (-1, 0), 1: (0, -1), 2: (1, 0), 3: (0, 1)}  # up, left, down, right
    for g in range(8):
        for action, (down, right) in directions.items():
            arrow = torch.zeros(1, 3, 3)
            arrow[0, 1 + down, 1 + right] = 1
            i, j = np.argwhere(square.observation(g, arrow)[0].numpy())[0] - 1
            assert directions[int(square.action.indices[g][action])] == (i, j), square.group.names[g]
    vectors = Symmetry.generated_by(({"signs": [-1, 1]}, [0]), ({"signs": [1, -1]}, [0]))
    assert vectors.group.name == "C2xC2"
    assert {tuple(row) for row in vectors.observation.signs.tolist()} == {(1, 1), (-1, 1), (1, -1), (-1, -1)}


def test_generators_about_one_centre_make_every_product():
    mirrors = [({"signs": signs, "centre": [0.1, 1 / 3]}, [0]) for signs in ([-1, 1], [1, -1])]
    diagonal = ({"permutation": [1, 0], "centre": [0.1, 1 / 3]}, [0])
    assert Symmetry.generated_by(*mirrors).group.name == "C2xC2"
    square = Symmetry.generated_by(mirrors[0], diagonal)
    assert square.group.name == "D4"
    corners = square.observation.orbit(torch.tensor([[1.1, 1 / 3]], dtype=torch.float64))[:, 0].round(decimals=9)
    assert len(corners.unique(dim=0)) == 4
    assert torch.allclose((corners - torch.tensor([0.1, 1 / 3])).norm(dim=1), torch.ones(8).double(), atol=1e-6)


def test_keys_may_come_in_any_order():
    first, second = ({"keys": {"a": [1, 0], "b": [0]}}, [0]), ({"keys": {"b": [0], "a": [1, 0]}}, [0])
    assert Symmetry.generated_by(first, second) == Symmetry.generated_by(first) == Symmetry.generated_by(second)


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ([], r"generators \[\]: expected pairs, each \(observation map, action map\)"),
        (["rot90", [1, 2, 3, 0]], "expected pairs"),
        ([("rot90",)], "expected pairs"),
        ([([1, 2, 3, 0], [1, 0, 2])], None),  # order 4 on observations, 2 on actions: fine
        (
            [([1, 0], [1, 2, 0])],
            "generator 1 has order 2 on observations and 3 on actions: expected the order on actions to divide",
        ),
        ([([1, 0], [1, 0]), ([0, 1], [1, 0])], "generator 2 has order 1 on observations and 2 on actions"),
        # Each generator alone is fine, but the two mirrors agree on observations and not on actions.
        ([([1, 0], [1, 0, 2]), ([1, 0], [0, 2, 1])], "moves actions but leaves every observation as it is: expected"),
        ([([1, 0], [0]), ([1, 2, 0], [0])], "maps of 2 and 3 entries: expected one size"),
        ([([1, 0], [0]), ("flip_x", [0])], "generators that mix vectors, pictures and dictionaries"),
        ([("flip_x", [0]), ({"grid": "flip_x", "fixed": [0]}, [0])], "differ in channels, fixed, shift or layout"),
        ([({"keys": {"a": [1, 0]}}, [0]), ({"keys": {"b": [1, 0]}}, [0])], "name different keys"),
        ([({"grid": "rot90", "shift": [1, 0]}, [0])], "keep rows and columns apart"),
        ([([*range(1, 2), 0, 3, 4, 2, 6, 7, 8, 9, 5, *np.roll(range(10, 17), 1).tolist()], [0])], None),  # order 210
        ([(np.concatenate([np.roll(range(a, b), 1) for a, b in [(0, 32), (32, 59), (59, 84)]]), [0])], "above 1024"),
        ([("rot9", [0])], "unknown grid map 'rot9': .* did you mean 'rot90'"),
        ([({"grid": ["rot90"]}, [0])], "unknown grid map"),
        ([(None, [0])], "map None: expected a permutation, a grid map's name, or a mapping"),
        ([({}, [0])], "map {}: expected a permutation"),
        ([({"gird": "rot90"}, [0])], "unknown kind of map 'gird': .* did you mean 'grid'"),
        (
            [({"grid": "rot90", "chanels": [0]}, [0])],
            "unknown part of a grid map 'chanels': .* did you mean 'channels'",
        ),
        ([({"grid": "rot90", "permutation": [0]}, [0])], "unknown part of a grid map 'permutation'"),
        ([({"keys": {"a": [0]}, "signs": [1]}, [0])], "unknown part of a keys map 'signs'"),
        ([({"layout": "HWC"}, [0])], "unknown kind of map 'layout'"),
        ([({"grid": "rot90", "layout": "WHC"}, [1, 2, 3, 0])], "unknown layout 'WHC'"),
        ([({"grid": "flip_x", "channels": [0, 0]}, [0])], r"channels \[0, 0\]: expected a permutation, each of 0..1"),
        ([([0, 2], [0])], r"permutation \[0, 2\]: expected a permutation, each of 0..1 once"),
        ([([0.5, 1.2], [0])], "permutation has entries of type float64: expected whole numbers"),
        ([([[0, 1]], [0])], r"permutation of shape \(1, 2\): expected one row"),
        ([([], [0])], r"signs \[\]: expected some entries"),
        ([({"signs": [1, 0]}, [0])], r"signs \[1, 0\]: expected 2 entries, each -1 or 1"),
        ([({"permutation": [1, 0], "signs": [-1]}, [0])], r"signs \[-1\]: expected 2 entries, each -1 or 1"),
        ([({"signs": 5}, [0])], r"signs of shape \(\): expected one row"),
        (
            [({"signs": [-1], "centre": [1]}, [0]), ({"signs": [-1]}, [0])],
            r"generators about the centres \[1.0\] and 0: expected the same centre in each",
        ),
        ([({"signs": [-1], "centre": [1, 2]}, [0])], r"centre \[1, 2\]: expected 1 numbers, each below 1e30"),
        ([({"signs": [-1], "centre": None}, [0])], "centre None: expected 1 numbers"),
        ([({"grid": "flip_x", "centre": [1]}, [0])], "unknown part of a grid map 'centre'"),
        ([({"centre": [1]}, [0])], "unknown kind of map 'centre'"),
        ([({"keys": [1]}, [0])], r"keys \[1\]: expected a mapping from each key to its map"),
    ],
)
def test_generators_that_make_no_symmetry_are_refused(generators, message):
    if message is None:
        assert isinstance(Symmetry.generated_by(*generators), Symmetry)
    else:
        with pytest.raises(UserError, match=message):
            Symmetry.generated_by(*generators)


def test_one_group_and_its_kernel():
    with pytest.raises(UserError, match="observations move by C2 and actions by C4: expected one group"):
        Symmetry(SWAP, Permutation.regular(cyclic(4)))
    still = Trivial(C2)
    with pytest.raises(UserError, match="element r moves actions but leaves every observation as it is"):
        Symmetry(still, SWAP)
    assert Symmetry(SWAP, still).group == C2, "an invariance moves observations only"
    assert Symmetry(still, still).group == C2
    per_key = PerKey(C2, {"a": still, "b": SWAP})
    assert Symmetry(per_key, SWAP).group == C2
    with pytest.raises(UserError, match="moves actions"):
        Symmetry(PerKey(C2, {"a": still}), SWAP)


# Data


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_json_pickles_and_copies_are_the_same_symmetry(example):
    text = json.dumps(example)
    for other in (Symmetry.from_data(json.loads(text)), pickle.loads(pickle.dumps(example)), copy.deepcopy(example)):
        assert isinstance(other, Symmetry)
        assert other == example
        assert (other.name, other.group, other.group.names) == (example.name, example.group, example.group.names)
        assert (other.observation, other.action) == (example.observation, example.action)
        assert json.dumps(other) == text
    assert Symmetry.from_data(example) is example
    assert json.loads(text) == dict(example), "nothing but plain data"


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_sb3_stores_it_as_readable_json(example):
    stored = data_to_json({"policy_kwargs": {"symmetry": example, "method": "equitune"}})
    assert json.loads(stored)["policy_kwargs"]["symmetry"] == dict(example)
    loaded = json_to_data(stored)["policy_kwargs"]["symmetry"]
    assert resolve_symmetry(loaded) == example


def test_data_of_the_readme_stay_readable():
    """What an older model's zip holds must go on loading."""
    data = {
        "name": "CartPole-v1",
        "group": "C2",
        "observation": {
            "kind": "signed_permutation",
            "indices": [[0, 1, 2, 3]] * 2,
            "signs": [[1, 1, 1, 1], [-1, -1, -1, -1]],
        },
        "action": {"kind": "permutation", "indices": [[0, 1], [1, 0]]},
    }
    assert Symmetry.from_data(data) == resolve_symmetry("CartPole-v1")
    assert dict(resolve_symmetry("CartPole-v1")) == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": None}, "group None: expected a name such as 'C4'"),
        ({"group": "C3"}, "expected .3, size."),
        ({"observation": "vector"}, "representation 'vector': expected a mapping with a 'kind'"),
        ({"action": {"kind": "permutations", "indices": []}}, "did you mean 'permutation'"),
        ({"acton": 1}, "unknown part of a symmetry 'acton': .* did you mean 'action'"),
    ],
)
def test_data_that_are_no_symmetry_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        resolve_symmetry({**EXAMPLES["signs"], **change})


def test_missing_parts_are_named():
    with pytest.raises(UserError, match="symmetry without observation, action: expected a mapping with group, obs"):
        resolve_symmetry({"group": "C2"})
    with pytest.raises(UserError, match=r"symmetry \[\]: expected a mapping"):
        Symmetry.from_data([])  # type: ignore[arg-type]


TURNED_OVER = ("flip_x", [1, 0])


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((8, 6), True), ((3, 8, 6), True), ((8, 6, 3), True), ((3, 8, 8), False), ((8, 6, 6), True), ((6, 8, 3), False)],
)
def test_a_symmetry_of_pictures_of_one_size_is_one_of_no_others(shape, fits):
    space = Box(0, 255, shape, np.uint8)
    flip = Symmetry.generated_by(TURNED_OVER, name="mine", sides=(8, 6))
    assert Symmetry.generated_by(TURNED_OVER).fitted(space)
    for each in (flip, pickle.loads(pickle.dumps(flip)), resolve_symmetry(json.loads(json.dumps(flip)))):
        assert (each.sides, each == flip) == ((8, 6), True)
        if fits:
            assert each.fitted(space).sides == (8, 6)
            continue
        with pytest.raises(
            UserError, match=r"Box.*: expected pictures of 8 x 6, channels (fir|la)st, of which alone .* claimed$"
        ):
            each.fitted(space)


def test_sides_stay_with_stacks_and_products_and_are_not_said_where_there_are_none():
    flip = Symmetry.generated_by(TURNED_OVER, sides=[8, 6])
    other = Symmetry.generated_by(("flip_y", [0, 1]))
    assert flip.stacked(3).sides == (flip * other).sides == (other * flip).sides == (8, 6)
    assert "sides" not in other
    assert flip != Symmetry.generated_by(TURNED_OVER)
    assert resolve_symmetry({"generators": [list(TURNED_OVER)], "sides": [8, 6]}) == flip
    with pytest.raises(UserError, match=r"sides \(8, 6\) and \(8, 8\): expected pictures of one size"):
        flip * Symmetry.generated_by(("flip_y", [0, 1]), sides=(8, 8))


def test_who_registers_a_symmetry_says_what_it_fits():
    mine = Symmetry.generated_by(({"signs": [-1]}, [1, 0]), name="mine")
    for hint, end in ((None, r"stacked\(2\)"), ("make one of one", "; make one of one")):
        register_symmetry("mine", mine, hint)
        with pytest.raises(UserError, match=f"{end}$"):
            mine.check_observation_space(Box(-1, 1, (2,)))
    other = Symmetry.generated_by(({"signs": [-1]}, [0, 1]), name="mine")  # of the same name alone
    with pytest.raises(UserError, match=r"stacked\(2\)$"):
        other.check_observation_space(Box(-1, 1, (2,)))


@pytest.mark.parametrize(
    ("generator", "sides", "words"),
    [
        (TURNED_OVER, [8], r"sides \[8\]: expected height and width"),
        (TURNED_OVER, 8, "sides 8: expected height and width"),
        (TURNED_OVER, [8, 0], "sides 0: expected a whole number of at least 1"),
        (({"signs": [-1]}, [1, 0]), [8, 8], r"sides \[8, 8\] with .*: expected pictures"),
    ],
)
def test_wrong_sides_are_refused(generator, sides, words):
    with pytest.raises(UserError, match=words):
        Symmetry.generated_by(generator, sides=sides)


JSON = st.recursive(
    st.none() | st.integers(-1, 2) | st.sampled_from(["flip_x", "HWC", "", "C2"]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["grid", "signs", "keys", "a"]), x, max_size=2),
)
PARTS = ["grid", "channels", "fixed", "shift", "layout", "permutation", "signs", "centre", "keys"]


@settings(max_examples=300)
@given(JSON | st.dictionaries(st.sampled_from(PARTS), JSON, max_size=3), JSON)
def test_any_data_are_a_symmetry_or_a_user_error(seen, done):
    for make_one in (
        lambda: Symmetry.generated_by((seen, done)),
        lambda: Symmetry.generated_by((seen, [0])),
        lambda: Symmetry.generated_by(({"grid": "flip_x", **seen} if isinstance(seen, dict) else seen, [0])),
        lambda: Symmetry.generated_by(done),
        lambda: resolve_symmetry({"group": "C2", "observation": seen, "action": done}),
        lambda: resolve_symmetry(seen),
        lambda: resolve_symmetry({"generators": [["flip_x", [0]]], "sides": seen}),
    ):
        with suppress(UserError):
            assert isinstance(make_one(), Symmetry)


# Spaces


def box(*shape, low=-1.0, dtype=np.float32):
    return Box(low, 1 if low < 1 else 255, shape, dtype)


SIGNED4, FLIP = EXAMPLES["signs"].observation, Grid(C2, ["identity", "flip_x"])
STILL, HALVED = Trivial(C2), SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, 1]], [0.5, 0])
SHIFTED = SignedPermutation(C2, SWAP.indices, centre=[0, 0.5])
ROTATED = Matrix(C2, [np.eye(2), np.array([[0.6, 0.8], [0.8, -0.6]])])


@pytest.mark.parametrize(
    ("rep", "space"),
    [
        (SIGNED4, box(4)),
        (SIGNED4, Box(-9, 9, (4,), np.int16)),
        (HALVED, box(2)),
        (HALVED, Box(0, 1, (2,), np.int16)),
        (SWAP, Box(0, 255, (2,), np.uint8)),
        (SWAP, Box(0, 255, (3, 2), np.uint8)),
        (SWAP, Discrete(2)),
        (SWAP, MultiBinary(2)),
        (Permutation(C2, [[0, 1, 2, 3, 4], [2, 3, 0, 1, 4]]), MultiDiscrete([2, 2, 1])),
        (Permutation(C2, [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]), MultiDiscrete([2, 3])),
        (FLIP, Box(0, 255, (3, 8, 9), np.uint8)),
        (Grid(cyclic(4)), Box(0, 255, (3, 8, 8), np.uint8)),
        (Grid(cyclic(4), layout="HWC"), Box(0, 255, (8, 8, 3), np.uint8)),
        (ROTATED, box(2)),
        (Tokens(C2, [[0, 1], [1, 0]]), Box(0, 1, (7,), np.int64)),
        (PerKey(C2, {"a": SWAP, "b": FLIP}), Dict(a=box(2), b=box(1, 4, 4))),
        (STILL, Dict(a=box(2))),
        (STILL, box(5)),
        (STILL, Discrete(7)),
    ],
    ids=str,
)
def test_observation_spaces_that_fit(rep, space):
    Symmetry(rep, Trivial(rep.group)).check_spaces(space, Discrete(3))


@pytest.mark.parametrize(
    ("rep", "space", "message"),
    [
        (SIGNED4, box(3), r"observation space Box\(3,\): .* acts on 4 entries, got shape \(3,\)"),
        (SIGNED4, box(12), r"for 3 stacked frames use symmetry.stacked\(3\)"),
        (SIGNED4, Box(0, 255, (4,), np.uint8), "observation space holds uint8: expected signed numbers, since"),
        (HALVED, Box(0, 1, (2,), np.uint8), "observation space holds uint8: expected signed numbers, since .* changes"),
        (SHIFTED, Box(0, 1, (2,), np.uint8), "holds uint8: expected signed numbers, since .* moves about a centre"),
        (SHIFTED, Box(0, 1, (2,), np.int16), "holds int16: expected floats, since .* moves by fractions"),
        (SIGNED4, box(4, low=0, dtype=np.bool_), "observation space holds bool: expected signed numbers"),
        (SIGNED4, Discrete(4), r"observation space Discrete\(4\): expected a permutation of its entries, got Signed"),
        (SIGNED4, MultiBinary(4), "expected a permutation of its entries"),
        (ROTATED, Discrete(2), r"expected a permutation of its entries, got Matrix\(C2"),
        (SWAP, Discrete(3), r"observation space Discrete\(3\): .* acts on 2 entries, got shape \(3,\)"),
        (SWAP, MultiBinary(3), r"observation space MultiBinary\(3\): .* acts on 2 entries"),
        (SWAP, MultiDiscrete([2, 2]), r"acts on 2 entries, got shape \(4,\)"),
        (
            Permutation(C2, [[0, 1, 2, 3], [0, 2, 1, 3]]),
            MultiDiscrete([2, 2]),
            r"MultiDiscrete\(\[2 2\]\): element r takes values of one choice to several",
        ),
        (Permutation(C2, [[0, 1, 2, 3], [2, 3, 0, 1]]), MultiDiscrete([1, 2, 1]), "values of one choice to several"),
        (Grid(cyclic(4)), Box(0, 255, (3, 8, 9), np.uint8), r"observation space Box\(3, 8, 9\): .* square picture"),
        (Grid(cyclic(4)), Box(0, 255, (9, 9, 3), np.uint8), "square picture"),
        (FLIP, box(4), "acts on CHW pictures"),
        (FLIP, Discrete(4), "expected a permutation of its entries, got Grid"),
        (FLIP, Tuple([Discrete(2)]), r"acts on CHW pictures: got shape \(\)"),
        (SWAP, Dict(a=box(2)), "observation space is a Dict: expected a PerKey representation"),
        (PerKey(C2, {"a": SWAP}), Dict(b=box(2)), r"observation keys \['b'\]: expected \['a'\], a representation each"),
        (PerKey(C2, {"a": SWAP}), Dict(a=box(3)), r"observation 'a' space Box\(3,\): .* acts on 2 entries"),
        (PerKey(C2, {"a": NEGATED}), Dict(a=MultiBinary(2)), "observation 'a' space MultiBinary"),
        (PerKey(C2, {"a": SWAP}), box(2), r"observation space Box\(2,\): .* acts on dictionaries"),
    ],
    ids=str,
)
def test_observation_spaces_that_do_not_fit(rep, space, message):
    with pytest.raises(UserError, match=message):
        Symmetry(rep, Trivial(rep.group)).check_spaces(space, Discrete(3))


@pytest.mark.parametrize(
    ("rep", "space", "message"),
    [
        (SWAP, Discrete(2), None),
        (SWAP, box(2), None),
        (NEGATED, box(2), None),
        (NEGATED, Box(np.array([-2, 0]), np.array([2, 1]), dtype=np.float64), None),
        (NEGATED, box(2, low=-np.inf), r"action space Box\(2,\) from \[-inf -inf\] to \[1. 1.\]: .* leads out of it"),
        (NEGATED, Box(-np.inf, np.inf, (2,)), None),
        (NEGATED, box(2, low=0.0), r"action space Box\(2,\) from \[0. 0.\] to \[1. 1.\]: .* leads out of it"),
        (HALVED, Box(0, 1, (2,)), None),
        (HALVED, Box(0, 2, (2,)), r"action space Box\(2,\) from \[0. 0.\] to \[2. 2.\]: .* leads out of it"),
        (HALVED, Box(np.array([0, 0.5]), np.array([np.inf, 1]), dtype=np.float64), "leads out of it"),
        (HALVED, Box(-np.inf, np.inf, (2,)), None),
        (HALVED, Box(0, 1.00001, (2,)), "leads out of it"),
        (SignedPermutation(C2, [[0]] * 2, [[1], [-1]], [0.2]), Box(0.1, 0.3, (1,)), None),  # to the bounds' rounding
        (SignedPermutation(C2, [[0]] * 2, [[1], [-1]], [0.2]), Box(0.1, 0.3001, (1,)), "leads out of it"),
        (SHIFTED, Box(np.array([0, 0.5]), np.array([1, 1.5]), dtype=np.float64), None),
        (SHIFTED, box(2), "leads out of it"),
        (SWAP, Box(np.array([-1, -2]), np.array([1, 1]), dtype=np.float64), "leads out of it"),
        (ROTATED, Box(-np.inf, np.inf, (2,)), None),
        (ROTATED, box(2), r"Matrix\(C2, size=2\) leads out of it"),
        (NEGATED, Discrete(2), r"action space Discrete\(2\): expected a permutation of its entries"),
        (NEGATED, Box(0, 1, (2,), np.uint8), "action space holds uint8: expected signed numbers"),
        (SWAP, Discrete(3), r"action space Discrete\(3\): .* acts on 2 entries, got shape \(3,\)"),
        (SWAP, MultiBinary(2), None),
        (STILL, box(3, low=0.5), None),
        (STILL, Discrete(3), None),
    ],
    ids=str,
)
def test_action_spaces(rep, space, message):
    claim = Symmetry(Permutation.regular(C2), rep)
    if message is None:
        claim.check_spaces(box(2), space)
    else:
        with pytest.raises(UserError, match=message):
            claim.check_spaces(box(2), space)


def test_no_symmetry_fits_everything():
    for space in (box(2), Discrete(3), MultiDiscrete([2, 3]), MultiBinary(3), Dict(a=box(2)), box(3, 4, 5)):
        no_symmetry().check_spaces(space, Discrete(2))
        no_symmetry().check_spaces(space, box(2, low=0.5))


def test_stacked_moves_observations_only():
    example = EXAMPLES["signs"]
    assert example.stacked(1) is example
    stacked = example.stacked(3)
    assert (stacked.action, stacked.name, stacked.observation.size) == (example.action, "pole", 12)
    stacked.check_spaces(box(12), Discrete(2))


# About a centre, in agents


class Corridor(gym.Env):
    """From a place in [0, 10], at a speed, walk down or up; the nearer end is the goal: place -> 10 - place."""

    observation_space, action_space = Box(np.array([0, -1], np.float32), np.array([10, 1], np.float32)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(4, 6), 0
        return np.array([self.place, 0], np.float32), {}

    def step(self, action):
        self.place, self.steps = self.place + 2 * action - 1, self.steps + 1
        done = not 0 < self.place < 10
        return np.array([np.clip(self.place, 0, 10), 2 * action - 1], np.float32), float(done), done, False, {}


@pytest.mark.parametrize("method", ["equitune", "lambda", "equizero"])
def test_an_agent_is_equivariant_about_a_centre_and_its_zip_keeps_it(method, tmp_path):
    claim = Symmetry.generated_by(({"signs": [-1, -1], "centre": [5, 0]}, [1, 0]), name="corridor")
    claim.check_spaces(Corridor.observation_space, Corridor.action_space)
    model: Any = DQN(
        MlpPolicy,
        Corridor(),
        policy_kwargs={"symmetry": claim, "method": method},
        seed=0,
        learning_starts=20,
        buffer_size=200,
        batch_size=16,
    ).learn(80)
    seen = torch.rand(64, 2) * torch.tensor([10.0, 2.0]) - torch.tensor([0.0, 1.0])
    mirrored = torch.tensor([10.0, 0.0]) - seen
    with torch.no_grad():
        ours = model.q_net(seen)
        torch.testing.assert_close(model.q_net(mirrored), ours.flip(-1), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(model.q_net.plain(mirrored), model.q_net.plain(seen).flip(-1), atol=1e-3)
        model.save(tmp_path / "model.zip")
        with zipfile.ZipFile(tmp_path / "model.zip") as file:
            written = json.loads(file.read("data"))["policy_kwargs"]["symmetry"]
        assert written["observation"]["centre"] == [5, 0]
        loaded: Any = DQN.load(tmp_path / "model.zip")
        assert loaded.policy.symmetry == claim
        assert torch.equal(loaded.q_net(seen), ours)


@pytest.mark.parametrize("method", ["equitune", "equizero"])
def test_actions_mirror_about_a_centre(method):
    """A controller of u in [0, 1] under u -> 1 - u, from places in [0, 10]."""
    claim = Symmetry.generated_by(({"signs": [-1, -1], "centre": [5, 0]}, {"signs": [-1], "centre": [0.5]}))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    net = symmetrize(plain, input=claim.observation, output=claim.action, method=method)
    seen = torch.rand(32, 2) * 10
    mirrored = torch.tensor([10.0, 0.0]) - seen
    torch.testing.assert_close(net(mirrored), 1 - net(seen), atol=1e-5, rtol=1e-5)
    assert equivariance_error(net, claim.observation, claim.action, seen) < 1e-5
    assert equivariance_error(plain, claim.observation, claim.action, seen) > 1e-2
    if method == "equitune":
        torch.testing.assert_close(net(torch.tensor([[5.0, 0.0]])), torch.tensor([[0.5]]))


# Fitted to a space


def picture(rep=None, **more):
    return Symmetry(rep or Grid(C2, ["identity", "flip_x"], **more), Trivial(C2), "seen")


def pixels(*shape):
    return Box(0, 255, shape, np.uint8)


THREE = {"channels": [[0, 1, 2], [0, 2, 1]]}
TURNS = Symmetry(Grid(cyclic(4)), Trivial(cyclic(4)))


@pytest.mark.parametrize(
    ("claim", "space", "layout", "channels"),
    [
        (picture(), pixels(3, 84, 84), "CHW", None),
        (picture(), pixels(84, 84, 3), "HWC", None),
        (picture(layout="HWC"), pixels(84, 84, 3), "HWC", None),
        (picture(layout="HWC"), pixels(3, 84, 84), "CHW", None),
        (picture(), pixels(210, 160, 3), "HWC", None),
        (picture(layout="HWC"), pixels(3, 210, 160), "CHW", None),
        (picture(), pixels(12, 210, 160), "CHW", None),  # frames: there is nothing to stack without channels
        (picture(), pixels(210, 160), "CHW", None),
        (picture(layout="HWC"), pixels(210, 160), "CHW", None),
        (picture(), pixels(4, 84, 84, 1), "HWC", None),
        (picture(), pixels(4, 1, 84, 84), "CHW", None),
        (picture(), pixels(16, 10, 10), "CHW", None),  # a square picture of more channels than rows
        (picture(layout="HWC"), pixels(16, 10, 10), "CHW", None),
        (picture(), pixels(10, 10, 16), "HWC", None),
        (picture(), pixels(5, 5, 5), "CHW", None),
        (picture(layout="HWC"), pixels(5, 5, 5), "HWC", None),
        (TURNS, pixels(9, 9, 4), "HWC", None),
        (TURNS, pixels(20, 9, 9), "CHW", None),
        (picture(**THREE), pixels(3, 4, 4), "CHW", 3),
        (picture(**THREE), pixels(4, 4, 3), "HWC", 3),
        (picture(**THREE, layout="HWC"), pixels(3, 4, 2), "CHW", 3),
        (picture(**THREE), pixels(4, 3, 3), "HWC", 3),  # though three rows and columns would be a square
        (picture(**THREE), pixels(12, 4, 4), "CHW", 12),
        (picture(**THREE), pixels(4, 4, 12), "HWC", 12),
        (picture(**THREE), pixels(3, 4, 4, 9), "HWC", 9),
        (picture(**THREE), pixels(10, 3, 4, 4), "CHW", 3),
        (picture(**THREE, fixed=[0]), pixels(4, 4, 6), "HWC", 6),
        (picture(fixed=[2]), pixels(4, 4, 3), "HWC", None),
        (picture(fixed=[2], shift=(0, -1)), pixels(3, 4, 4), "CHW", None),
    ],
    ids=str,
)
def test_pictures_fit_in_either_layout(claim, space, layout, channels):
    fitted = claim.fitted(space)
    rep = fitted.observation
    assert (rep.layout, None if rep.channels is None else rep.channels.shape[1]) == (layout, channels)
    assert (fitted.action, fitted.name) == (claim.action, claim.name)
    assert (fitted is claim) == (rep == claim.observation)
    assert fitted.fitted(space) is fitted
    seen = torch.from_numpy(space.sample())[None]
    first = seen if layout == "CHW" else seen.movedim(-1, -3)
    if first.ndim == 3:  # rows and columns alone
        first = first[:, None]
    one = claim.observation.in_layout("CHW")
    count = first.shape[-3] if one.channels is None else one.channels.shape[1]
    moved = torch.cat([one(1, frame) for frame in first.split(count, -3)], -3)  # frame by frame, channels first
    assert torch.equal(rep(1, seen), (moved if layout == "CHW" else moved.movedim(-3, -1)).reshape(seen.shape))


@pytest.mark.parametrize(
    ("claim", "space", "expected"),
    [
        (EXAMPLES["signs"], box(4), SIGNED4),
        (EXAMPLES["signs"], box(12), SIGNED4.stacked(3)),
        (EXAMPLES["signs"], box(3, 4), SIGNED4),
        (EXAMPLES["signs"], box(3, 8), SIGNED4.stacked(2)),
        (EXAMPLES["centre"], box(6), EXAMPLES["centre"].observation.stacked(3)),
        (EXAMPLES["matrix"], box(4), EXAMPLES["matrix"].observation.stacked(2)),
        (Symmetry(SWAP, SWAP), Discrete(2), SWAP),
        (Symmetry(SWAP, SWAP), MultiDiscrete([1, 1]), SWAP),
        (Symmetry(SWAP, SWAP), MultiBinary(2), SWAP),
        (no_symmetry(), Dict(a=box(4)), no_symmetry().observation),
        (EXAMPLES["tokens"], Box(0, 1, (7,), np.int64), EXAMPLES["tokens"].observation),
        (
            EXAMPLES["keys"],
            Dict(time=box(4), eye=pixels(5, 4, 3), speed=box(2)),
            PerKey(
                C2,
                {
                    "time": Permutation(C2, [[0, 1, 2, 3]] * 2),
                    "eye": Grid(C2, ["identity", "flip_y"], layout="HWC"),
                    "speed": SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, -1]]),
                },
            ),
        ),
    ],
    ids=str,
)
def test_vectors_and_dictionaries_fit_with_their_frames(claim, space, expected):
    fitted = claim.fitted(space)
    assert (fitted.observation, fitted.action, fitted.name) == (expected, claim.action, claim.name)
    assert (fitted is claim) == (expected == claim.observation)


@pytest.mark.parametrize(
    ("claim", "space", "message"),
    [
        (EXAMPLES["signs"], box(6), r"observation space Box\(6,\): .* acts on 4 entries"),
        (EXAMPLES["signs"], box(), r"acts on 4 entries, got shape \(\)"),
        (EXAMPLES["signs"], box(2), "acts on 4 entries"),
        (EXAMPLES["signs"], Box(0, 9, (8,), np.uint8), "expected signed numbers"),
        (EXAMPLES["signs"], Discrete(4), "expected a permutation of its entries"),
        (Symmetry(SWAP, SWAP), Discrete(4), "acts on 2 entries"),
        (TURNS, pixels(210, 160, 3), "needs a square picture"),
        (picture(**THREE), pixels(4, 8, 4), "permutes 3 channels"),
        (picture(**THREE), pixels(4, 4), r"acts on CHW pictures: got shape \(4, 4\)"),
        (picture(fixed=[5]), pixels(3, 4, 4), r"leaves channels \(5,\) fixed"),
        (picture(), box(4), "acts on CHW pictures"),
        (EXAMPLES["keys"], Dict(time=box(1), eye=pixels(5, 4, 3)), "observation keys .*: expected"),
        (EXAMPLES["keys"], Dict(time=box(1), eye=box(3), speed=box(1)), "observation 'eye' space"),
        (EXAMPLES["signs"], Dict(a=box(4)), "expected a PerKey representation"),
    ],
    ids=str,
)
def test_what_fits_no_way_is_refused(claim, space, message):
    with pytest.raises(UserError, match=message) as error:
        claim.fitted(space)
    assert "\n" not in str(error.value)


# Names


def test_registered_symmetries_are_made_when_asked_for():
    calls = []

    def made():
        calls.append(1)
        return EXAMPLES["turns"]

    register_symmetry("mine", made)
    register_symmetry("yours", EXAMPLES["signs"])
    assert {"mine", "yours", "none", "CartPole-v1"} <= set(registered_symmetries())
    assert not calls
    assert resolve_symmetry("mine") is resolve_symmetry("mine") is EXAMPLES["turns"]
    assert len(calls) == 1
    assert resolve_symmetry("yours") is EXAMPLES["signs"]
    assert registered_symmetries() == sorted(registered_symmetries())


def test_packages_add_theirs_by_entry_points(monkeypatch):
    def load():
        register_symmetry("theirs", EXAMPLES["turns"])
        register_symmetry("mine", EXAMPLES["turns"])
        assert "mine" in registered_symmetries(), "a catalogue may ask for names itself"

    def found(group):
        assert group == "equirl.symmetries"
        return [SimpleNamespace(load=load)]

    monkeypatch.setattr(symmetry, "_LOADED", [])
    monkeypatch.setattr(symmetry, "entry_points", found)
    register_symmetry("mine", EXAMPLES["signs"])
    assert resolve_symmetry("theirs") is EXAMPLES["turns"]
    assert resolve_symmetry("mine") is EXAMPLES["signs"], "what the program registers stands before the catalogues"


def test_resolve_takes_names_symmetries_and_data():
    example = EXAMPLES["turns and mirrors"]
    assert resolve_symmetry(example) is example
    assert resolve_symmetry(dict(example)) == example
    assert resolve_symmetry("none").group == cyclic(1)
    with pytest.raises(UserError, match=r"unknown symmetry 'CartPole-v0': .* did you mean 'CartPole-v1'"):
        resolve_symmetry("CartPole-v0")
    with pytest.raises(UserError, match="symmetry 3: expected a registered name, a Symmetry or its plain data"):
        resolve_symmetry(3)  # type: ignore[arg-type]


class Bare(gym.Env):
    observation_space, action_space = box(4), Discrete(2)


def test_symmetry_of_an_environment():
    assert symmetry_of("CartPole-v1") == resolve_symmetry("CartPole-v1")
    assert symmetry_of("Nothing-v0") is None
    with gym.make("CartPole-v1") as env:
        assert symmetry_of(env) == resolve_symmetry("CartPole-v1")
    assert symmetry_of(Bare()) is None
    env = Bare()
    env.symmetry = EXAMPLES["signs"]
    assert symmetry_of(gym.wrappers.TimeLimit(env, 5)) is EXAMPLES["signs"]
    env.symmetry = "none"
    assert symmetry_of(env) == no_symmetry()
    env.symmetry = {"group": "C2"}
    with pytest.raises(UserError, match="symmetry without observation"):
        symmetry_of(env)


# The catalogue


NEEDS = {"box2d": "Box2D"}  # modules that are called otherwise than the extra that installs them


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # older versions are listed as well
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_catalogue_entries_fit_their_environments(entry):
    claim = entry.symmetry
    assert claim.name == entry.name
    assert len(claim.group) > 1
    if entry.extra and find_spec(NEEDS.get(entry.extra, entry.extra)) is None:
        pytest.skip(f"needs {entry.extra}")
    with make(entry.name) as env:
        seen: Any = env.observation_space
        fitted = claim.fitted(seen)
        fitted.check_spaces(seen, env.action_space)
        if isinstance(seen, Box):
            x = torch.from_numpy(np.stack([seen.sample() for _ in range(2)]))
            assert fitted.observation.orbit(x).shape == (len(claim.group), *x.shape)


def test_groups_with_names_of_their_own_keep_them():
    group = Group([[0, 1], [1, 0]], ["stay", "swap"], "mine")
    claim = Symmetry(Permutation.regular(group), Permutation.regular(group))
    assert resolve_symmetry(json.loads(json.dumps(claim))).group.names == ("stay", "swap")


# Generators as plain data


def test_generators_in_plain_data_make_the_same_symmetry():
    data = json.loads(json.dumps({"generators": [[{"signs": [-1, -1, -1, -1]}, [1, 0]]], "name": "mine"}))
    expected = Symmetry.generated_by(({"signs": [-1, -1, -1, -1]}, [1, 0]), name="mine")
    assert Symmetry.from_data(data) == expected == resolve_symmetry(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"generators": "rot90"}, "generators 'rot90': expected a list of pairs"),
        ({"generators": [["rot90"]]}, "expected pairs"),
        ({"generators": [["rot90", [1, 2, 3, 0]]], "group": "C4"}, "unknown part of a symmetry 'group'"),
        ({"generators": [["flip_x", [1, 2, 3, 0]]]}, "order 2 on observations and 4 on actions"),
    ],
)
def test_wrong_generators_in_plain_data_are_refused(data, words):
    with pytest.raises(UserError, match=words):
        Symmetry.from_data(data)
