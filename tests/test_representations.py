"""The laws of every representation over every group, each against a slow reference written from its formula."""

import copy
import itertools
import json
import pickle
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from equirl import (
    Grid,
    Matrix,
    PerKey,
    Permutation,
    Representation,
    SignedPermutation,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    group_named,
)
from equirl.grids import GRID_MAPS

MAPS = {
    "C2": ("identity", "flip_x"),
    "C4": ("identity", "rot90", "rot180", "rot270"),
    "D4": ("identity", "rot90", "rot180", "rot270", "flip_x", "transpose", "flip_y", "antitranspose"),
    "C2xC2": ("identity", "flip_y", "flip_x", "rot180"),
    "C3": ("identity",) * 3,
    "S3": ("identity", "flip_x", "flip_x", "identity", "identity", "flip_x"),
}
GROUPS = {name: group_named(name) for name in MAPS}
DTYPES = (torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool)


def parity(row):
    """Return the sign of a permutation, by its inversions."""
    return (-1) ** sum(row[i] > row[j] for i, j in itertools.combinations(range(len(row)), 2))


def signed(group):
    """Return the group on itself with signs: those of its permutations, and of a coordinate that counts downwards."""
    gauge = np.where(np.arange(len(group)) == 2, -1, 1)
    signs = [parity(row) * gauge * gauge[row] for row in group.table]
    return SignedPermutation(group, group.table, signs)


def centred(group, centre):
    """Return the signed group on itself about a centre; halves move whole numbers to whole numbers."""
    linear = signed(group)
    return SignedPermutation(group, linear.indices, linear.signs, centre)


def matrices(group):
    """Return the group on itself in a skew basis."""
    basis = np.eye(len(group)) + 0.3 * np.random.default_rng(0).random((len(group), len(group)))
    return Matrix(group, [basis @ np.eye(len(group))[:, row] @ np.linalg.inv(basis) for row in group.table])


def representations(group):
    """Return name -> (representation, shape of a sample) for every kind of representation."""
    n, maps = len(group), MAPS[group.name]
    turns = bool({"rot90", "transpose"} & set(maps))
    side = (4, 4) if turns else (3, 4)
    padded = np.concatenate([group.table, np.full((n, 1), n)], axis=1)  # the last token, or channel, stays
    found = {
        "trivial": (Trivial(group), (2, 3)),
        "permutation": (Permutation.regular(group), (n,)),
        "permutation of leading axes": (Permutation.regular(group), (2, 3, n)),
        "signed": (signed(group), (n,)),
        "signed in leading axes": (signed(group), (2, n)),
        "signed about a centre": (centred(group, np.arange(n) - 1.5), (n,)),
        "signed about a centre in leading axes": (centred(group, np.arange(n) * 3 + 0.5), (2, n)),
        "matrix": (matrices(group), (n,)),
        "matrix in leading axes": (matrices(group), (2, n)),
        "grid": (Grid(group, maps), (2, *side)),
        "grid of frames": (Grid(group, maps), (2, 2, *side)),
        "grid without channels": (Grid(group, maps), side),
        "grid with channels": (Grid(group, maps, channels=group.table), (n, *side)),
        "grid with gauges": (Grid(group, maps, fixed=[0, 2]), (4, *side)),
        "grid with channels and gauges": (Grid(group, maps, channels=padded, fixed=[n]), (n + 1, *side)),
        "grid HWC": (Grid(group, maps, layout="HWC"), (*side, 2)),
        "grid HWC of all": (Grid(group, maps, padded, fixed=[n], layout="HWC"), (*side, n + 1)),
        "tokens": (Tokens(group, padded), (5,)),
        "tokens, one each": (Tokens(group, padded), ()),
        "per key": (
            PerKey(group, {"still": Trivial(group), "speed": signed(group), "picture": Grid(group, maps)}),
            {"still": (2,), "speed": (n,), "picture": (1, *side)},
        ),
    }
    if not turns:
        found["grid on a torus"] = (Grid(group, maps, shift=(2, -1)), (2, *side))
    return found


CELLS = {f"{group}-{kind}": cell for group in GROUPS for kind, cell in representations(GROUPS[group]).items()}
each = pytest.mark.parametrize(("rep", "shape"), CELLS.values(), ids=CELLS)


def sample(rep, shape, batch=3, dtype=None):
    """Return random inputs of the dtype, by default one that the representation acts on."""
    if isinstance(shape, dict):
        return {key: sample(rep.keys[key], part, batch) for key, part in shape.items()}
    full = (batch, *shape)
    if isinstance(rep, Tokens):
        return torch.randint(0, rep.logits.size, full)
    numbers = torch.randperm(int(np.prod(full))).view(full)  # all different, so that no two moves look alike
    if dtype is None:
        dtype = torch.float64 if isinstance(rep, Matrix) else torch.int64
    return numbers % 2 == 0 if dtype == torch.bool else numbers.to(dtype)


def same(x, y, rep):
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key], rep.keys[key]) for key in x)
    equal = torch.allclose(x, y, rtol=1e-9) if isinstance(rep, Matrix) else torch.equal(x, y)
    return equal and x.dtype == y.dtype and x.shape == y.shape


def rows(trees, g):
    return {key: rows(tree, g) for key, tree in trees.items()} if isinstance(trees, dict) else trees[g]


def stack(trees):
    if isinstance(trees[0], dict):
        return {key: stack([tree[key] for tree in trees]) for key in trees[0]}
    return torch.stack(trees)


# A slow reference: the formulas of the docstrings, one entry at a time


def moved_cell(name, i, j, height, width):
    """Return where a turn or mirror takes the cell (i, j), counted from the top left."""
    return {
        "identity": (i, j),
        "rot90": (width - 1 - j, i),
        "rot180": (height - 1 - i, width - 1 - j),
        "rot270": (j, height - 1 - i),
        "flip_x": (i, width - 1 - j),
        "flip_y": (height - 1 - i, j),
        "transpose": (j, i),
        "antitranspose": (width - 1 - j, height - 1 - i),
    }[name]


def slowly(rep, g, x):
    if isinstance(rep, PerKey):
        return {key: slowly(rep.keys[key], g, value) for key, value in x.items()}
    if isinstance(rep, Trivial):
        return x
    if isinstance(rep, Tokens):
        return torch.tensor([rep.logits.indices[g][token] for token in x.flatten()]).view(x.shape)
    y = torch.zeros_like(x)
    if isinstance(rep, Matrix):
        for i, j in itertools.product(range(rep.size), repeat=2):
            y[..., i] += rep.matrices[g][i][j] * x[..., j]
    elif isinstance(rep, SignedPermutation):
        centre = np.zeros(rep.size) if rep.centre is None else rep.centre
        for i, (sign, to) in enumerate(zip(rep.signs[g], rep.indices[g], strict=True)):
            y[..., to] = (centre[to] + sign * (x[..., i].double() - centre[i])).to(x.dtype)
    elif rep.layout == "HWC":
        chw = Grid(rep.group, rep.maps, rep.channels, rep.fixed, rep.shift)
        return slowly(chw, g, x.movedim(-1, -3).contiguous()).movedim(-3, -1)
    else:
        pictures, out = (t.view(-1, *([1] * (3 - rep.rank)), *t.shape[-rep.rank :]) for t in (x, y))
        _, channels, height, width = pictures.shape
        mirrored = {"flip_x": (0, 1), "flip_y": (1, 0), "rot180": (1, 1)}.get(rep.maps[g], (0, 0))
        for c, i, j in itertools.product(range(channels), range(height), range(width)):
            i2, j2 = (i, j) if c in rep.fixed else moved_cell(rep.maps[g], i, j, height, width)
            if c not in rep.fixed:
                i2, j2 = (i2 + rep.shift[0] * mirrored[0]) % height, (j2 + rep.shift[1] * mirrored[1]) % width
            out[:, c if rep.channels is None else rep.channels[g][c], i2, j2] = pictures[:, c, i, j]
    return y


@each
def test_moves_as_its_formula_says(rep, shape):
    x = sample(rep, shape)
    for g in range(len(rep.group)):
        assert same(rep(g, x), slowly(rep, g, x), rep), rep.group.names[g]


# The laws


@each
def test_one_element_after_another_is_their_product(rep, shape):
    x = sample(rep, shape)
    assert same(rep(0, x), x, rep)
    for g, h in itertools.product(range(len(rep.group)), repeat=2):
        assert same(rep(g, rep(h, x)), rep(rep.group.product(g, h), x), rep)


@each
def test_orbit_has_a_row_for_each_element(rep, shape):
    x = sample(rep, shape)
    orbit = rep.orbit(x)
    assert same(orbit, stack([rep(g, x) for g in range(len(rep.group))]), rep)


@each
def test_undo_moves_each_row_by_the_inverse(rep, shape):
    group = rep.group
    x = sample(rep, shape)
    undone = rep.undo(rep.orbit(x))
    assert same(undone, stack([x] * len(group)), rep)
    others = stack([sample(rep, shape) for _ in range(len(group))])
    undone = rep.undo(others)
    for g in range(len(group)):
        assert same(rows(undone, g), rep(group.inverse(g), rows(others, g)), rep)


@each
def test_an_element_for_each_sample(rep, shape):
    x = sample(rep, shape, batch=2 * len(rep.group))
    g = torch.randperm(2 * len(rep.group)) % len(rep.group)
    moved = rep(g, x)
    for b, element in enumerate(g.tolist()):
        one = rows(x, slice(b, b + 1))
        assert same(rows(moved, slice(b, b + 1)), rep(element, one), rep)


@each
def test_data_pickles_and_copies_are_equal_and_move_alike(rep, shape):
    x = sample(rep, shape)
    orbit = rep.orbit(x)  # fills the tables that a copy must not need
    data = json.loads(json.dumps(rep.to_data()))
    for other in (Representation.from_data(rep.group, data), pickle.loads(pickle.dumps(rep)), copy.deepcopy(rep)):
        assert type(other) is type(rep)
        assert other == rep
        assert hash(other) == hash(rep)
        assert other.to_data() == rep.to_data()
        assert same(other.orbit(x), orbit, rep)


@each
def test_identity_elements_are_those_that_move_nothing(rep, shape):
    x = torch.arange(rep.logits.size) if isinstance(rep, Tokens) else sample(rep, shape)
    for g in range(len(rep.group)):
        assert rep.is_identity(g) == same(slowly(rep, g, x), x, rep)
        if not isinstance(rep, PerKey):
            assert (rep.describe(g) == "identity") == rep.is_identity(g)


# Data types, memory and gradients

SIGNLESS = [cell for name, cell in CELLS.items() if name.startswith(("D4", "S3")) and "signed" not in name]
SIGNLESS = [(rep, shape) for rep, shape in SIGNLESS if not isinstance(rep, Matrix | Tokens | PerKey)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rep", "shape"), SIGNLESS, ids=lambda part: repr(part).replace(" ", ""))
def test_moving_keeps_the_data_type_and_every_value(rep, shape, dtype):
    x = sample(rep, shape, batch=2, dtype=dtype)
    for g in range(len(rep.group)):
        expected = slowly(rep, g, x.to(torch.int64)).to(dtype)
        assert same(rep(g, x), expected, rep)
        assert same(rep.orbit(x)[g], expected, rep)
        assert same(rep.undo(rep.orbit(x))[g], x, rep)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float32, torch.float64], ids=str)
def test_signs_keep_signed_data_types(dtype):
    rep = signed(GROUPS["D4"])
    x = torch.arange(-4, 4).to(dtype)[None]
    for g in range(8):
        assert same(rep(g, x), slowly(rep, g, x), rep)
        assert same(rep.orbit(x)[g], slowly(rep, g, x), rep)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64], ids=str)
def test_tokens_keep_their_data_type(dtype):
    rep = Tokens(cyclic(3), [[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    x = torch.tensor([[0, 1, 2, 2]]).to(dtype)
    assert rep(1, x).tolist() == [[1, 2, 0, 0]]
    assert rep(1, x).dtype == rep.orbit(x).dtype == rep.undo(rep.orbit(x)).dtype == dtype
    assert rep(torch.tensor([2]), x).dtype == dtype


DEEP = {name: cell for name, cell in CELLS.items() if isinstance(cell[1], tuple) and len(cell[1]) > 2}


@pytest.mark.parametrize(("rep", "shape"), DEEP.values(), ids=DEEP)
def test_memory_layout_does_not_matter(rep, shape):
    x = sample(rep, shape)
    strided = x.transpose(1, -1).contiguous().transpose(1, -1)
    assert not strided.is_contiguous() or 1 in x.shape
    assert same(rep.orbit(strided), rep.orbit(x), rep)
    assert same(rep.undo(rep.orbit(x).transpose(0, 1).contiguous().transpose(0, 1)), rep.undo(rep.orbit(x)), rep)


@each
def test_an_empty_batch_stays_empty(rep, shape):
    x = sample(rep, shape, batch=0)
    assert same(rows(rep.orbit(x), 0), x, rep)
    assert same(rows(rep.undo(rep.orbit(x)), 0), x, rep)


@pytest.mark.parametrize("rep", [signed(GROUPS["D4"]), matrices(GROUPS["D4"])], ids=repr)
def test_tables_made_in_inference_serve_training(rep):
    """torch refuses to differentiate through tensors that were made in inference mode."""
    x = torch.randn(2, 8)
    with torch.inference_mode():
        rep.undo(rep.orbit(x))
    x.requires_grad_()
    rep.undo(rep.orbit(x)).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 8), 8.0))


@pytest.mark.parametrize(
    "rep", [signed(GROUPS["S3"]), matrices(GROUPS["S3"]), Grid(GROUPS["S3"], MAPS["S3"])], ids=repr
)
def test_gradients_are_moved_back(rep):
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rep.orbit, x)
    assert torch.autograd.gradcheck(rep.undo, torch.randn(6, 2, 3, 6, dtype=torch.float64, requires_grad=True))


# The conventions


@settings(max_examples=30)
@given(st.sampled_from(sorted(GROUPS)), st.data())
def test_permutations_send_values_with_their_action(name, data):
    """rep(g, q)[..., p_g[a]] == q[..., a], for a group acting on the places of a random relabelling of itself."""
    group = GROUPS[name]
    order = data.draw(st.permutations(range(len(group))))
    back = np.argsort(order)
    rep = Permutation(group, [[order[g_h] for g_h in row[back]] for row in group.table])
    q = torch.randn(2, len(group))
    for g in range(len(group)):
        for action in range(len(group)):
            assert torch.equal(rep(g, q)[..., rep.indices[g][action]], q[..., action])
    one_hot = torch.nn.functional.one_hot(torch.tensor([0]), len(group))
    assert [int(rep(g, one_hot).argmax(-1)) for g in range(len(group))] == [row[0] for row in rep.indices]


def test_grid_is_rot90_and_flip_of_torch():
    pictures = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    turns, all_eight = Grid(cyclic(4)), Grid(dihedral(4))
    for k in range(4):
        assert torch.equal(turns(k, pictures), torch.rot90(pictures, k, (-2, -1)))
        assert torch.equal(all_eight(k, pictures), torch.rot90(pictures, k, (-2, -1)))
        mirrored = torch.rot90(torch.flip(pictures, (-1,)), k, (-2, -1))
        assert torch.equal(all_eight(4 + k, pictures), mirrored)
    hwc = pictures.movedim(1, -1)
    assert torch.equal(Grid(cyclic(4), layout="HWC")(1, hwc), torch.rot90(hwc, 1, (1, 2)))
    flip_y = Grid(cyclic(2), ["identity", "flip_y"])
    wide = torch.rand(2, 3, 4, 7)
    assert torch.equal(flip_y(1, wide), torch.flip(wide, (-2,)))


def test_rot90_turns_counter_clockwise_as_seen():
    """The top right corner comes to the top left."""
    picture = torch.zeros(1, 3, 3)
    picture[0, 0, 2] = 1
    assert Grid(cyclic(4))(1, picture)[0, 0, 0] == 1


def test_a_torus_mirrors_about_another_column():
    """Freeway's lanes, ten columns around: column c goes to (8 - c) mod 10, so 4 and 9 stay."""
    rep = Grid(cyclic(2), ["identity", "flip_x"], shift=(0, -1))
    picture = torch.arange(10).expand(2, 3, 10)
    assert rep(1, picture)[0, 0].tolist() == [(8 - c) % 10 for c in range(10)]
    rows_too = Grid(cyclic(2), ["identity", "rot180"], shift=(1, 2))
    x = torch.arange(20).view(1, 4, 5)
    expected = [[[int(x[0, (4 - i) % 4, (6 - j) % 5]) for j in range(5)] for i in range(4)]]
    assert rows_too(1, x).tolist() == expected


def test_gauges_stay_while_the_rest_is_mirrored():
    """As in Seaquest: channel 1 is a gauge."""
    rep = Grid(cyclic(2), ["identity", "flip_x"], fixed=[1])
    picture = torch.tensor([[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]])
    assert rep(1, picture).tolist() == [[[3, 2, 1]], [[4, 5, 6]], [[9, 8, 7]]]
    assert not rep.is_identity(1)
    assert not Grid(cyclic(2), ["identity", "flip_x"], fixed=[0]).is_identity(1)


def test_regular_is_the_group_on_itself():
    group = GROUPS["S3"]
    assert Permutation.regular(group).indices.tolist() == group.table.tolist()


def test_trivial_leaves_trees_as_they_are():
    rep = Trivial(cyclic(3))
    x = {"a": torch.rand(2, 3), "b": torch.rand(2)}
    assert rep(2, x) is x
    assert {key: value.shape for key, value in rep.orbit(x).items()} == {"a": (3, 2, 3), "b": (3, 2)}


def test_equal_means_the_same_kind_group_and_numbers():
    swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    assert swap == Permutation(cyclic(2), np.array([[0, 1], [1, 0]]))
    assert swap != Permutation(cyclic(2), [[0, 1], [0, 1]])
    assert swap != SignedPermutation(cyclic(2), [[0, 1], [1, 0]])
    assert Trivial(cyclic(2)) != Trivial(cyclic(3))
    assert Grid(cyclic(4)) != Grid(cyclic(4), layout="HWC")
    assert Grid(cyclic(4), fixed=[1, 0]) == Grid(cyclic(4), fixed=[0, 1, 1])
    assert swap != "permutation"
    assert len({swap, Permutation(cyclic(2), [[0, 1], [1, 0]]), Trivial(cyclic(2))}) == 2


@pytest.mark.parametrize(
    ("rep", "g", "words"),
    [
        (Trivial(cyclic(2)), 1, "identity"),
        (Permutation(cyclic(2), [[0, 1, 2], [0, 2, 1]]), 1, "(1 2)"),
        (Permutation(cyclic(3), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]), 2, "(0 2 1)"),
        (SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1, 1], [-1, 1]]), 1, "negate 0"),
        (SignedPermutation(cyclic(2), [[0, 1, 2], [1, 0, 2]], [[1] * 3, [1, 1, -1]]), 1, "negate 2, then (0 1)"),
        (Matrix(cyclic(2), [np.eye(2), -np.eye(2)]), 1, "matrix [[-1.0, -0.0], [-0.0, -1.0]]"),
        (Grid(cyclic(4)), 3, "rot270"),
        (Grid(cyclic(2), ["identity", "flip_x"], [[0, 1], [1, 0]]), 1, "flip_x, channels (0 1)"),
        (Tokens(cyclic(2), [[0, 1, 2], [2, 1, 0]]), 1, "(0 2)"),
        (
            PerKey(cyclic(2), {"a": Trivial(cyclic(2)), "b": Grid(cyclic(2), ["identity", "flip_y"])}),
            1,
            "a: identity; b: flip_y",
        ),
    ],
    ids=repr,
)
def test_describe(rep, g, words):
    assert rep.describe(g) == words
    assert rep.describe(0).replace("a: ", "").replace("; b: identity", "") == "identity"


# About a centre


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(GROUPS)), st.data())
def test_laws_hold_about_any_centre(name, data):
    """To rounding in float64, since offsets such as c + c' are rounded once."""
    group = GROUPS[name]
    number = st.floats(-100, 100) | st.sampled_from([0.0, -np.pi / 6, 1.0])
    rep = centred(group, data.draw(st.lists(number, min_size=len(group), max_size=len(group))))
    x = torch.randn(2, len(group), dtype=torch.float64)

    def near(y, z):
        return torch.allclose(y, z, rtol=0, atol=1e-12)

    orbit = rep.orbit(x)
    assert near(rep.undo(orbit), x.expand_as(orbit))
    centre = torch.zeros(len(group)) if rep.centre is None else torch.from_numpy(rep.centre)
    assert near(rep.orbit(centre.double()[None]), centre.double())
    for g in range(len(group)):
        assert torch.equal(rep(g, x), orbit[g])
        assert torch.equal(rep(torch.tensor([g, g]), x), orbit[g])
        assert near(orbit[g], slowly(rep, g, x))
        for h in range(len(group)):
            assert near(rep(g, rep(h, x)), rep(group.product(g, h), x))
    text = json.dumps(rep.to_data())
    assert torch.equal(Representation.from_data(group, json.loads(text)).orbit(x), orbit)
    assert torch.equal(rep.stacked(2).orbit(torch.cat([x, x], -1)), torch.cat([orbit, orbit], -1))


ABOUT_5 = SignedPermutation(cyclic(2), [[0, 1, 2]] * 2, [[1] * 3, [-1, -1, 1]], centre=[5, 0, 7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_entries_without_an_offset_stay_bit_for_bit(dtype):
    """Adding 0 would turn -0 into 0."""
    linear = SignedPermutation(cyclic(2), ABOUT_5.indices, ABOUT_5.signs)
    bits = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    x = torch.tensor([[0.0, 0.0, 0.0], [-0.0, -0.0, -0.0], [0.1, 0.1, 0.1], [1e-7, -1e-7, np.inf]], dtype=dtype)
    assert torch.equal(ABOUT_5(0, x).view(bits), x.view(bits))
    assert torch.equal(ABOUT_5(1, x)[:, 1:].contiguous().view(bits), linear(1, x)[:, 1:].contiguous().view(bits))
    assert torch.equal(ABOUT_5(1, x)[:, 0], 10 - x[:, 0])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float16, torch.float32], ids=str)
def test_a_whole_offset_keeps_signed_data_types(dtype):
    x = torch.tensor([[9, 3, 1]]).to(dtype)
    for moved in (ABOUT_5(1, x), ABOUT_5.orbit(x)[1], ABOUT_5(torch.tensor([1]), x)):
        assert moved.tolist() == [[1, -3, 1]]
        assert moved.dtype == dtype
    assert ABOUT_5.undo(ABOUT_5.orbit(x))[1].tolist() == x.tolist()


def test_a_centre_that_moves_nothing_is_none():
    """So that equal representations are equal data: the identity and swaps of equal centres need no centre."""
    plain = signed(GROUPS["D4"])
    assert centred(GROUPS["D4"], np.zeros(8)) == plain
    assert "centre" not in plain.to_data()
    assert SignedPermutation(c2, SWAP, centre=[3, 3]) == SignedPermutation(c2, SWAP)
    assert SignedPermutation(c2, SWAP, centre=[3, 3]).offsets is None
    assert SignedPermutation(c2, SWAP, centre=[3, 4]) != SignedPermutation(c2, SWAP)
    assert ABOUT_5.to_data()["centre"] == [5, 0, 0], "entry 2 does not move"
    assert SignedPermutation(c2, ABOUT_5.indices, ABOUT_5.signs, [5, -0.0, 0]) == ABOUT_5
    assert json.dumps(ABOUT_5.to_data()) == json.dumps(pickle.loads(pickle.dumps(ABOUT_5)).to_data())


@pytest.mark.parametrize(
    ("indices", "signs", "centre", "words"),
    [
        ([0, 1], [-1, -1], [-np.pi / 6, 0], "reflect 0 about -0.524, negate 1"),
        ([0, 1, 2], [-1, -1, -1], [0.5, 0.5, 2], "reflect 0 1 about 0.5, reflect 2 about 2"),
        ([1, 0], [-1, -1], [1, 4], "reflect 0 1 about 2.5, then (0 1)"),
        ([1, 0], [1, 1], [1, 4], "shift 0 by 3, shift 1 by -3, then (0 1)"),
    ],
)
def test_describe_says_the_centre(indices, signs, centre, words):
    size = len(indices)
    rep = SignedPermutation(cyclic(2), [list(range(size)), indices], [[1] * size, signs], centre)
    assert (rep.describe(0), rep.describe(1)) == ("identity", words)


# Stacked frames


UNSTACKED = ("tokens", "tokens, one each", "grid with gauges", "grid without channels")
STACKED = {name: cell for name, cell in CELLS.items() if name.split("-", 1)[1] not in UNSTACKED}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("rep", "shape"), STACKED.values(), ids=STACKED)
def test_stacked_moves_each_frame(rep, shape, k):
    def joined(frames, part=rep):
        if isinstance(frames[0], dict):
            return {key: joined([frame[key] for frame in frames], part.keys[key]) for key in frames[0]}
        return torch.cat(frames, -3 if isinstance(part, Grid) and part.layout == "CHW" else -1)

    frames = [sample(rep, shape) for _ in range(k)]
    for g in range(len(rep.group)):
        assert same(rep.stacked(k)(g, joined(frames)), joined([rep(g, frame) for frame in frames]), rep)


class Film(gym.Env):
    """Shows the same pseudo-random frames each time, moved by one element."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, rep, g, space):
        self.rep, self.g, self.observation_space = rep, g, space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=5)
        return self.frame(), {}

    def step(self, action):
        return self.frame(), 0.0, False, False, {}

    def frame(self):
        drawn = self.np_random.integers(0, 255, self.observation_space.shape).astype(self.observation_space.dtype)
        return self.rep(self.g, torch.from_numpy(drawn)).numpy()


def box(shape, dtype=np.uint8):
    return gym.spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("rep", "space"),
    [
        (signed(GROUPS["C4"]), box((4,), np.float32)),
        (Grid(GROUPS["C4"], MAPS["C4"]), box((3, 6, 6))),
        (Grid(GROUPS["C3"], MAPS["C3"], channels=GROUPS["C3"].table), box((3, 6, 6))),
        (Grid(GROUPS["S3"], MAPS["S3"], channels=[[0, 1]] * 6, fixed=[1], layout="HWC"), box((5, 6, 2))),
        (Grid(GROUPS["D4"], layout="HWC"), box((6, 6, 3))),
    ],
    ids=["vector", "CHW", "CHW with channels", "HWC with gauges", "HWC"],
)
def test_stacked_is_how_sb3_stacks(rep, space):
    for g in range(len(rep.group)):
        seen = []
        for element in (0, g):
            env = VecFrameStack(DummyVecEnv([partial(Film, rep, element, space)]), 3)
            frames: list[Any] = [env.reset(), *(env.step(np.zeros(1))[0] for _ in range(4))]
            seen.append(torch.from_numpy(np.concatenate(frames)))
        still, moved = seen
        assert torch.equal(rep.stacked(3)(g, still), moved)
        assert rep.is_identity(g) == torch.equal(still, moved)


# What is refused

SWAP = [[0, 1], [1, 0]]
FLIP = ["identity", "flip_x"]


def turn_by(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


swap, c2, c4 = Permutation(cyclic(2), SWAP), cyclic(2), cyclic(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Permutation(c2, [[0, 1]]), r"indices of shape \(1, 2\): expected \(2, size\), a row an element of C2"),
        (lambda: Permutation(c2, [[], []]), r"indices of shape \(2, 0\): expected \(2, size\)"),
        (lambda: Permutation(c2, [[0, 1], [1]]), "indices has rows of different lengths"),
        (
            lambda: Permutation(c2, [[0.0, 1.0], [1.0, 0.5]]),
            "indices has entries of type float64: expected whole numbers",
        ),
        (lambda: Permutation(c2, [[0, 1], [1, 1]]), r"indices \[1, 1\]: expected a permutation, each of 0..1 once"),
        (lambda: Permutation(c2, [[1, 0], [0, 1]]), "not a representation of C2: element e after element e"),
        (
            lambda: Permutation(c4, [[0, 1], [1, 0], [1, 0], [0, 1]]),
            "not a representation of C4: element r after element r is not their product r2",
        ),
        (
            lambda: Permutation(c2, [[0, 1, 2], [1, 2, 0]]),
            "not a representation of C2: element r after element r is not their product e",
        ),
        (lambda: SignedPermutation(c2, SWAP, [[1, 1], [2, 1]]), "expected -1 or 1 for each of the 2 entries"),
        (lambda: SignedPermutation(c2, SWAP, [[1], [1]]), "expected -1 or 1 for each of the 2 entries"),
        (lambda: SignedPermutation(c2, SWAP, [[1, 1], [-1, 1]]), "not a representation of C2"),
        (lambda: swap(1, torch.rand(2, 3)), r"acts on 2 entries, got shape \(3,\)$"),
        (lambda: swap.orbit(torch.rand(2, 6)), r"got shape \(6,\); for 3 stacked frames use symmetry.stacked\(3\)"),
        (lambda: swap(1, torch.tensor(1.0)), r"acts on 2 entries, got shape \(\)"),
        (lambda: signed(c4)(1, torch.zeros(4, dtype=torch.uint8)), "changes signs: expected a signed data type, got"),
        (lambda: signed(c4).orbit(torch.zeros(4, dtype=torch.bool)), "expected a signed data type, got torch.bool"),
        (
            lambda: ABOUT_5.orbit(torch.zeros(1, 3, dtype=torch.uint8)),
            "changes signs: expected a signed data type, got",
        ),
        (
            lambda: SignedPermutation(c2, SWAP, centre=[3, 4])(1, torch.zeros(2, dtype=torch.uint8)),
            "moves about a centre: expected a signed data type, got torch.uint8",
        ),
        (
            lambda: SignedPermutation(c2, SWAP, centre=[3, 4.5]).undo(torch.zeros(2, 2, dtype=torch.long)),
            "moves about a centre: expected a floating data type, got torch.int64",
        ),
        (lambda: SignedPermutation(c2, SWAP, None, [1]), r"centre \[1\]: expected 2 numbers, each below 1e30 in size"),
        (lambda: SignedPermutation(c2, SWAP, None, [1, [2]]), r"centre \[1, \[2\]\]: expected 2 numbers"),  # type: ignore[arg-type]
        (lambda: SignedPermutation(c2, SWAP, None, [1, np.nan]), "expected 2 numbers"),
        (lambda: SignedPermutation(c2, SWAP, None, [1, np.inf]), "expected 2 numbers"),
        (lambda: SignedPermutation(c2, SWAP, None, ["1", "2"]), "expected 2 numbers"),
        (lambda: SignedPermutation(c2, SWAP, None, 3), "centre 3: expected 2 numbers"),
        (
            lambda: Representation.from_data(c2, {"kind": "permutation", "indices": SWAP, "centre": [1, 2]}),
            "representation 'permutation': .*centre",
        ),
        (lambda: Matrix(c2, [[[1, 0], [0, 1]]]), r"matrices of shape \(1, 2, 2\): expected \(2, size, size\)"),
        (lambda: Matrix(c2, 1), r"matrices of shape \(\): expected \(2, size, size\)"),
        (lambda: Matrix(c2, [[[1, 2]], [[1, 2]]]), r"matrices of shape \(2, 1, 2\)"),
        (lambda: Matrix(c2, [[[1]], [[1], [2]]]), "matrices of C2: expected numbers of shape"),
        (lambda: Matrix(c2, [[["a"]], [["b"]]]), "matrices of C2: expected numbers of shape"),
        (lambda: Matrix(c2, np.zeros((2, 1, 1))), "not a representation of C2"),
        (lambda: Matrix(c2, [[[1.0]], [[float("nan")]]]), "not a representation of C2"),
        (lambda: Matrix(c2, [[[1, 0], [0, 0]]] * 2), "identity first"),
        (
            lambda: Matrix(cyclic(3), [turn_by(angle) for angle in (0, 2.094, 4.189)]),
            "products miss those of its elements by .*e-04, expected at most 1e-9",
        ),
        (
            lambda: matrices(c2)(1, torch.zeros(1, 2, dtype=torch.long)),
            "expected a floating data type, got torch.int64",
        ),
        (lambda: matrices(c2).orbit(torch.zeros(1, 3)), "acts on 2 entries, got shape"),
        (lambda: Grid(c2), r"Grid\(C2\) has no default: expected maps=, a name for each of its 2 elements, among"),
        (lambda: Grid(c2, ["identity", "flip"]), "unknown grid map 'flip': .* did you mean 'flip_"),
        (lambda: Grid(c2, ["identity"]), "1 grid maps for C2: expected 2, one an element"),
        (lambda: Grid(c2, ["identity", "rot90"]), "not a representation of C2: element r after element r"),
        (lambda: Grid(c2, ["flip_x", "identity"]), "not a representation of C2: element e after element e"),
        (lambda: Grid(c2, ["identity", "rot90"], fixed=[0]), "not a representation of C2"),
        (lambda: Grid(c2, FLIP, channels=[[0, 1, 2], [1, 2, 0]]), "not a representation of C2"),
        (lambda: Grid(c2, FLIP, channels=[[0, 1], [5, 7]]), r"channels \[5, 7\]: expected a permutation"),
        (lambda: Grid(c2, FLIP, channels=SWAP, fixed=[0]), "not a representation of C2"),
        (lambda: Grid(c2, FLIP, channels=SWAP, fixed=[2]), r"fixed \[2\]: expected channels from 0 to 1"),
        (lambda: Grid(c2, FLIP, fixed=[-1]), r"fixed \[-1\]: expected channels from 0$"),
        (lambda: Grid(c2, FLIP, fixed=[0.5]), "fixed has entries of type float64"),  # type: ignore[list-item]
        (lambda: Grid(c2, FLIP, shift=[1]), r"shift \[1\]: expected \(rows, columns\)"),
        (lambda: Grid(c2, FLIP, shift=[0, 0.5]), "shift has entries of type float64"),  # type: ignore[list-item]
        (lambda: Grid(c4, shift=(5, 5)), r"shift \(5, 5\) with rot90: expected maps that keep rows and columns apart"),
        (lambda: Grid(c2, FLIP, layout="WHC"), "unknown layout 'WHC': expected one of CHW, HWC"),
        (
            lambda: Grid(c4)(1, torch.rand(3, 4, 5)),
            r"has rot90, which needs a square picture: .* \(4 x 5\); crop or pool",
        ),
        (lambda: Grid(c4, layout="HWC")(1, torch.rand(4, 5, 3)), r"which needs a square picture: .* \(4 x 5\)"),
        (lambda: Grid(c2, FLIP)(1, torch.rand(5)), r"acts on CHW pictures: got shape \(5,\)"),
        (lambda: Grid(c2, FLIP, layout="HWC")(1, torch.rand(5, 5)), r"acts on HWC pictures: got shape \(5, 5\)"),
        (lambda: Grid(c2, FLIP, channels=SWAP)(1, torch.rand(3, 4, 4)), r"permutes 2 channels: got shape \(3, 4, 4\)"),
        (lambda: Grid(c2, FLIP, fixed=[3])(1, torch.rand(3, 4, 4)), r"leaves channels \(3,\) fixed: .* with 3"),
        (
            lambda: Grid(c2, FLIP, fixed=[0]).stacked(2),
            "cannot be stacked without its number of channels: give channels=",
        ),
        (lambda: Tokens(c2, [[0, 1], [0, 0]]), r"indices \[0, 0\]: expected a permutation"),
        (
            lambda: Tokens(c2, SWAP)(1, torch.rand(2, 3)),
            "renames tokens: expected an integer data type, got torch.float32",
        ),
        (lambda: Tokens(c2, SWAP).orbit(torch.tensor([[0, 2]])), r"tokens from 0 to 2: expected 0..1, for Tokens\(C2"),
        (lambda: Tokens(c2, SWAP).orbit(torch.tensor([[-1, 1]])), "tokens from -1 to 1: expected 0..1"),
        (lambda: Tokens(c2, SWAP).stacked(2), "cannot be stacked: expected a representation on vectors or images"),
        (lambda: PerKey(c2, {"a": Trivial(c4)}), "key 'a' carries a representation of C4: expected one of C2"),
        (
            lambda: PerKey(c2, {"a": swap}).orbit({"b": torch.rand(2)}),
            r"got \['b'\]: expected a dictionary with the keys \['a'\]",
        ),
        (lambda: PerKey(c2, {"a": swap})(1, []), "got list: expected a dictionary"),  # type: ignore[arg-type]
        (lambda: PerKey(c2, {"a": swap}).check_shape((2,)), "acts on dictionaries: expected a Dict space"),
        (lambda: Representation.from_data(c2, {"indices": SWAP}), "expected a mapping with a 'kind', one of grid, "),
        (lambda: Representation.from_data(c2, {"kind": "permuation"}), "did you mean 'permutation'"),
        (lambda: Representation.from_data(c2, {"kind": ["grid"]}), "unknown kind of representation"),
        (lambda: Representation.from_data(c2, {"kind": "permutation"}), "representation 'permutation': .*indices"),
        (lambda: Representation.from_data(c2, {"kind": "permutation", "indexes": SWAP}), "indexes"),
        (lambda: Representation.from_data(c2, {"kind": "per_key"}), "keys None: expected a mapping from each key"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_table_once_made_does_not_let_other_shapes_pass():
    rep = matrices(c2)
    rep.orbit(torch.rand(1, 2))
    with pytest.raises(UserError, match="acts on 2 entries"):
        rep.orbit(torch.rand(1, 3))
    with pytest.raises(UserError, match="floating"):
        rep.orbit(torch.ones(1, 2, dtype=torch.long))
    negated = SignedPermutation(c2, [[0], [0]], [[1], [-1]])
    negated.orbit(torch.rand(1, 1))
    with pytest.raises(UserError, match="signed data type"):
        negated.orbit(torch.zeros(1, 1, dtype=torch.uint8))


JSON = st.recursive(
    st.none() | st.integers(-1, 2) | st.sampled_from(["identity", "flip_x", "grid", ""]),
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(["kind", "keys", "a"]), x, max_size=2),
)
PARTS = ["indices", "signs", "centre", "matrices", "maps", "channels", "fixed", "shift", "layout", "keys", "other"]


@settings(max_examples=200)
@given(st.sampled_from([*Representation.kinds, "other"]), st.dictionaries(st.sampled_from(PARTS), JSON, max_size=3))
def test_any_data_are_a_representation_or_a_user_error(kind, parts):
    with suppress(UserError):
        assert isinstance(Representation.from_data(c2, {"kind": kind, **parts}), Representation)
    usual: dict[str, dict[str, Any]] = {
        "permutation": {"indices": SWAP},
        "grid": {"maps": FLIP},
        "signed_permutation": {"indices": SWAP},
    }
    with suppress(UserError):
        Representation.from_data(c2, {"kind": kind, **usual.get(kind, {}), **parts})


def test_every_grid_map_is_tested():
    assert {name for maps in MAPS.values() for name in maps} == set(GRID_MAPS)
