"""Products of representations act factor by factor, and groups come apart into their factors."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

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
    symmetric,
    trivial,
)
from equirl.products import Factors

C2, C3, C4 = cyclic(2), cyclic(3), cyclic(4)
S3 = symmetric(3)
CHANNELS = [list(p) for p in itertools.permutations(range(3))]
FLIP_X, FLIP_Y = Grid(C2, ["identity", "flip_x"]), Grid(C2, ["identity", "flip_y"])
QUARTER_TURN = np.array([[0.0, -1.0], [1.0, 0.0]])
PAIRS: dict[str, tuple[Representation, Representation, tuple[int, ...]]] = {
    "flips": (FLIP_X, FLIP_Y, (3, 4, 4)),
    "turns and channels": (Grid(C4), Grid(S3, ["identity"] * 6, CHANNELS), (3, 4, 4)),
    "channels of both": (
        *(Grid(C2, ["identity", "rot180"], [[0, 1, 2, 3], [1, 0, 2, 3]]),),
        *(Grid(C2, ["identity"] * 2, [[0, 1, 2, 3], [0, 1, 3, 2]]), (4, 3, 3)),
    ),
    "permutations": (
        Permutation(C2, [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]),
        Permutation(C3, [[0, 1, 2, 3, 4], [0, 1, 3, 4, 2], [0, 1, 4, 2, 3]]),
        (5,),
    ),
    "signs and permutations": (
        SignedPermutation(C2, [[0, 1, 2, 3]] * 2, [[1, 1, 1, 1], [-1, -1, 1, 1]]),
        SignedPermutation(C2, [[0, 1, 2, 3], [1, 0, 3, 2]]),
        (4,),
    ),
    "mirrors about one centre": (
        SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, 1]], centre=[0.5, 2.0]),
        SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [1, -1]], centre=[0.5, 2.0]),
        (2,),
    ),
    "matrices": (
        Matrix(C4, np.array([np.linalg.matrix_power(QUARTER_TURN, k) for k in range(4)])),
        Matrix(C2, np.array([np.eye(2), -np.eye(2)])),
        (2,),
    ),
    "a still one": (Trivial(C3), FLIP_X, (3, 4, 4)),
    "two still ones": (Trivial(C3), Trivial(C2), (3,)),
}


@pytest.mark.parametrize(("first", "second", "shape"), PAIRS.values(), ids=PAIRS)
def test_each_factor_of_a_product_acts_as_before(first, second, shape):
    rep = first * second
    x = torch.randn(2, *shape, dtype=torch.float64)
    names = f"{first.group}x{second.group}"
    assert str(rep.group) == names
    for g in range(len(first.group)):
        for h in range(len(second.group)):
            expected = first(g, second(h, x))
            assert torch.allclose(rep(g * len(second.group) + h, x), expected, atol=1e-12)
    law = itertools.product(range(len(rep.group)), repeat=2)
    assert all(torch.allclose(rep(a, rep(b, x)), rep(rep.group.product(a, b), x), atol=1e-12) for a, b in law)
    assert Representation.from_data(rep.group, rep.to_data()) == rep


def test_a_product_of_dictionaries_goes_key_by_key():
    still, swap = Trivial(C2), Permutation.regular(C2)
    rep = PerKey(C2, {"a": swap, "b": still}) * PerKey(C2, {"a": still, "b": swap})
    x = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0, 4.0]])}
    moved = [{key: part[0].tolist() for key, part in rep(g, x).items()} for g in range(4)]
    assert moved[1] == {"a": [1, 2], "b": [4, 3]}
    assert moved[2] == {"a": [2, 1], "b": [3, 4]}
    assert moved[3] == {"a": [2, 1], "b": [4, 3]}


def test_tokens_multiply():
    first, second = Tokens(C2, [[0, 1, 2, 3], [1, 0, 2, 3]]), Tokens(C2, [[0, 1, 2, 3], [0, 1, 3, 2]])
    assert (first * second)(3, torch.tensor([[0, 1, 2, 3]])).tolist() == [[1, 0, 3, 2]]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (Grid(C4), FLIP_X, "do not commute: "),
        (Permutation(C2, [[0, 1, 2], [1, 0, 2]]), Permutation(C2, [[0, 1, 2], [0, 2, 1]]), "do not commute: "),
        (Grid(C4), Permutation.regular(C2), "expected two representations of one kind that act on the same tensors"),
        (Permutation.regular(C2), Permutation.regular(C3), "that act on the same tensors"),
        (
            SignedPermutation(C2, [[0], [0]], [[1], [-1]], centre=[1.0]),
            SignedPermutation(C2, [[0], [0]], [[1], [-1]], centre=[2.0]),
            "that act on the same tensors",
        ),
        (Grid(C2, ["identity", "flip_x"], layout="HWC"), FLIP_Y, "that act on the same tensors"),
        (PerKey(C2, {"a": FLIP_X}), PerKey(C2, {"b": FLIP_Y}), "that act on the same tensors"),
    ],
)
def test_what_does_not_fit_is_refused(first, second, words):
    with pytest.raises(UserError) as caught:
        first * second
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


GROUPS = {
    "C2xC2": C2 * C2,
    "C4xS3": C4 * S3,
    "C2xC3xC2": C2 * C3 * C2,
    "S3": S3,
    "D4": dihedral(4),
    "trivial": trivial(),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_element_is_one_product_of_elements_of_the_factors(name):
    group = GROUPS[name]
    factors = Factors(group)
    assert len(factors.orders) == name.count("x") + 1
    for places in itertools.product(*map(range, factors.orders)):
        product = 0
        for place, elements in zip(places, factors.elements, strict=True):
            product = group.product(product, elements[place])
        assert factors.table[places] == product
    assert sorted(factors.table.ravel().tolist()) == list(range(len(group)))


@pytest.mark.parametrize("chosen", [[], [0], [1], [2], [0, 2], [2, 1], [0, 1, 2]])
def test_a_group_is_split_into_some_factors_and_the_others(chosen):
    factors = Factors(C2 * C3 * C4)
    table, group = factors.split(chosen), factors.group
    assert table.shape == (int(np.prod([(2, 3, 4)[i] for i in chosen])), 24 // max(1, len(table)))
    for k, row in enumerate(table):
        assert [group.product(int(table[k, 0]), int(h)) for h in table[0]] == row.tolist()
    assert {int(g) for g in table[:, 0]} <= set(factors.split(list(range(3))).ravel().tolist())
    group.subgroup(table[:, 0].tolist())
    group.subgroup(table[0].tolist())


def test_factors_may_be_named_by_their_elements():
    d2 = C2 * C2
    by_hand = Factors(d2, [[0, 3], [0, 1]])  # the half turn and a mirror
    assert by_hand.orders == (2, 2)
    assert Factors(dihedral(4), [[0, 1, 2, 3, 4, 5, 6, 7]]).orders == (8,)


@pytest.mark.parametrize(
    ("group", "elements", "words"),
    [
        (S3, [[0, 3, 4], [0, 1]], "factors of S3 that do not commute: "),
        (C2 * C2, [[0, 1]], "factors of orders (2,): expected their products to be C2xC2's elements, each once"),
        (C2 * C2, [[0, 1], [0, 1]], "expected their products to be C2xC2's elements"),
        (C4, [[0, 1]], "expected a subgroup, which holds all its products"),
        (C4, [[1, 0, 2, 3]], "0, the identity, first"),
        (C4, [[]], "expected lists of elements of C4, one a factor"),
        (C4, ["01"], "expected lists of elements of C4, one a factor"),
        (C4, [[0, 7]], "expected different ones of C4"),
    ],
)
def test_factors_that_are_none_are_refused(group: Any, elements: Any, words: str):
    with pytest.raises(UserError) as caught:
        Factors(group, elements)
    assert words in str(caught.value)
