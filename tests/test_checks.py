"""The checks against values worked out by hand: they must see a broken symmetry, wherever it is broken."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from equirl import (
    Equitune,
    Grid,
    Identity,
    PerKey,
    Permutation,
    SignedPermutation,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    equivariance_error,
    greedy_disagreement,
)

C2, C3 = cyclic(2), cyclic(3)
SWAP, CYCLE = Permutation.regular(C2), Permutation.regular(C3)
NEGATE = SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, -1]])


def times(*factors):
    return lambda x: x * torch.tensor(factors, dtype=x.dtype)


# equivariance_error


@pytest.mark.parametrize(
    ("f", "x", "error"),
    [
        (times(2, 2), [[1.0, 5.0]], 0.0),
        # f(g x) = (5, 0) and g f(x) = (0, 1); the largest output is 1.
        (times(1, 0), [[1.0, 5.0]], 5.0),
        # f(g x) = (10, 90) and g f(x) = (30, 30): 60 apart, in units of the 30 at x.
        (times(1, 3), [[30.0, 10.0]], 2.0),
        # f(g x) = (30, 30) and g f(x) = (90, 10): 60 apart, in units of 90.
        (times(1, 3), [[10.0, 30.0]], 2 / 3),
        # Outputs below 1 are measured in units of 1: f(g x) = (0.5, 0) and g f(x) = (0, 0.1).
        (times(1, 0), [[0.1, 0.5]], 0.5),
        # The worst of the batch, 5 in the first row, in units of the largest output, 4 in the second.
        (times(1, 0), [[2.0, 5.0], [4.0, 4.0]], 1.25),
        # A fixed point x = g x shows it too: f(g x) = (3, 0) and g f(x) = (0, 3).
        (times(1, 0), [[3.0, 3.0]], 1.0),
        (times(-1, -1), [[1.0, 5.0]], 0.0),
    ],
)
def test_error_by_hand(f, x, error):
    assert equivariance_error(f, SWAP, SWAP, torch.tensor(x)) == pytest.approx(error)


def test_error_is_the_worst_over_all_elements():
    """Only the turn by two thirds shows it: f(r2 x) = (0, 0, 7), whereas the rest is 0."""
    shown = torch.tensor([1.0, 2.0, 0.0])

    def f(x):
        return torch.where((x == shown.roll(2)).all(-1, keepdim=True), torch.tensor([0.0, 0.0, 7.0]), torch.zeros(3))

    assert torch.equal(CYCLE(2, shown), shown.roll(2))
    assert equivariance_error(f, CYCLE, CYCLE, shown[None]) == 7.0


def test_error_sees_a_function_that_changes_between_calls():
    calls = iter([0.0, 1.0, 1.0])
    assert equivariance_error(lambda x: x + next(calls), SWAP, SWAP, torch.zeros(1, 2)) == 1.0


def test_error_sees_the_wrong_representation():
    x = torch.tensor([[1.0, 5.0]])
    assert equivariance_error(lambda x: x, SWAP, SWAP, x) == 0.0
    assert equivariance_error(lambda x: x, SWAP, Trivial(C2), x) == pytest.approx(4 / 5)
    assert equivariance_error(lambda x: x, NEGATE, SWAP, x) == pytest.approx(10 / 5 * 0.6)
    assert equivariance_error(lambda x: -x, NEGATE, NEGATE, x) == 0.0
    assert equivariance_error(lambda x: x.square(), NEGATE, NEGATE, x) == 2.0
    assert equivariance_error(lambda x: x.square(), NEGATE, Trivial(C2), x) == 0.0


def test_error_tells_an_inverse_from_the_element():
    """A quarter turn undone the wrong way looks right for swaps only."""
    cycle = Permutation.regular(cyclic(4))
    backwards = Permutation(cyclic(4), cycle.indices[cycle.group.inverses])
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert equivariance_error(lambda x: x, cycle, cycle, x) == 0.0
    assert equivariance_error(lambda x: x, cycle, backwards, x) > 0.5


def test_error_of_pictures():
    turn = Grid(dihedral(4))
    x = torch.rand(2, 3, 5, 5)
    assert equivariance_error(lambda x: x.mean((-2, -1)), turn, Trivial(dihedral(4)), x) < 1e-6
    assert equivariance_error(lambda x: x.cumsum(-1), turn, turn, x) > 0.1


def test_error_of_features_looks_at_the_outputs_alone():
    x = torch.tensor([[1.0, 5.0]])
    assert equivariance_error(lambda x: (x, torch.rand(1, 3)), SWAP, SWAP, x) == 0.0
    assert equivariance_error(lambda x: (times(1, 0)(x), x), SWAP, SWAP, x) == 5.0


def test_error_of_dictionaries_is_the_worst_of_their_parts():
    rep = PerKey(C2, {"a": SWAP, "b": NEGATE})
    x = {"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([[2.0, 3.0]])}
    assert equivariance_error(lambda x: x, rep, rep, x) == 0.0
    orders = iter(["ab", "ba", "ab"])
    assert equivariance_error(lambda x: {key: x[key] for key in next(orders)}, rep, rep, x) == 0.0, "in any order"
    # b: f(g x) = (4, 9) and g f(x) = (-4, -9): 18 apart; the largest output is 9.
    assert equivariance_error(lambda x: {"a": x["a"], "b": x["b"] ** 2}, rep, rep, x) == 2.0
    # a: f(g x) = (5, 0) and g f(x) = (0, 1): 5 apart; the largest output is 3.
    assert equivariance_error(lambda x: {"a": times(1, 0)(x["a"]), "b": x["b"]}, rep, rep, x) == pytest.approx(5 / 3)
    assert equivariance_error(lambda x: x["a"], rep, SWAP, x) == 0.0


def test_error_of_whole_numbers_does_not_wrap_around():
    tokens = Tokens(C2, [[0, 1, 2], [2, 1, 0]])
    x = torch.tensor([[0, 1]], dtype=torch.uint8)
    assert equivariance_error(lambda x: x, tokens, tokens, x) == 0.0
    assert equivariance_error(lambda x: x, tokens, Trivial(C2), x) == 2.0
    assert equivariance_error(lambda x: x > 0, tokens, Trivial(C2), x) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_not_called_equivariant(value):
    x = torch.tensor([[1.0, 5.0]])
    assert not equivariance_error(lambda x: x * value, SWAP, SWAP, x) <= 1e9
    late = iter([1.0, 1.0, value])
    assert not equivariance_error(lambda x: x * next(late), SWAP, SWAP, x) <= 1e9


def test_error_needs_no_gradients_and_leaves_none():
    layer, seen = torch.nn.Linear(2, 2), []

    def f(x):
        seen.append(layer(x))
        return seen[-1]

    equivariance_error(f, SWAP, SWAP, torch.rand(1, 2))
    assert seen
    assert not any(y.requires_grad for y in seen)


@pytest.mark.parametrize("f", [times(1, 0), times(1, 2), lambda x: x[:, :1]])
def test_a_group_of_one_element_is_always_satisfied(f):
    one = Trivial(cyclic(1))
    assert equivariance_error(f, one, one, torch.rand(3, 2)) == 0.0
    assert greedy_disagreement(f, one, one, torch.rand(3, 2)) == 0.0


# greedy_disagreement


@pytest.mark.parametrize(
    ("f", "x", "share"),
    [
        (lambda x: x, [[1.0, 5.0]], 0.0),
        (lambda x: 100 * x - 3, [[1.0, 5.0], [9.0, 2.0]], 0.0),
        # Always the second action: wrong for each sample.
        (lambda x: x + torch.tensor([0.0, 100.0]), [[1.0, 5.0], [9.0, 2.0]], 1.0),
        # Right where the difference is above 3: two of four.
        (lambda x: x + torch.tensor([0.0, 3.0]), [[1.0, 5.0], [9.0, 2.0], [1.0, 2.0], [3.0, 2.0]], 0.5),
        # Values may differ much while actions agree.
        (lambda x: x * x.sum(-1, keepdim=True) + x[:, :1], [[1.0, 5.0]], 0.0),
    ],
)
def test_disagreement_by_hand(f, x, share):
    assert greedy_disagreement(f, SWAP, SWAP, torch.tensor(x)) == share


def test_disagreement_is_over_samples_and_elements_but_the_identity():
    """Entry 0 counts three times, which misleads in one turn of each sample.

    (2, 1, 0) -> action 0; turned (0, 2, 1) -> 1, as it should; turned again (1, 0, 2) -> 0 in place of 2.
    (0, 2, 1) -> action 1; turned (1, 0, 2) -> 0 in place of 2; turned again (2, 1, 0) -> 0, as it should.
    """
    x = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    assert greedy_disagreement(times(3, 1, 1), CYCLE, CYCLE, x) == 0.5
    assert greedy_disagreement(times(3, 1, 1), CYCLE, CYCLE, x[:1]) == 0.5
    assert greedy_disagreement(times(3, 3, 3), CYCLE, CYCLE, x) == 0.0


def test_disagreement_reads_values_beside_features_and_dictionaries():
    x = torch.tensor([[1.0, 5.0]])
    assert greedy_disagreement(lambda x: (x, x), SWAP, SWAP, x) == 0.0
    rep = PerKey(C2, {"a": SWAP})
    assert greedy_disagreement(lambda x: x["a"], rep, SWAP, {"a": x}) == 0.0
    assert greedy_disagreement(lambda x: x["a"] + torch.tensor([0.0, 9.0]), rep, SWAP, {"a": x}) == 1.0


def test_disagreement_with_actions_that_stay():
    """An invariant choice: the greedy action must not change at all."""
    x = torch.tensor([[1.0, 5.0]])
    assert (
        greedy_disagreement(lambda x: x.sum(-1, keepdim=True) * torch.tensor([1.0, 2.0]), SWAP, Trivial(C2), x) == 0.0
    )
    assert greedy_disagreement(lambda x: x, SWAP, Trivial(C2), x) == 1.0


def test_disagreement_needs_a_permutation_of_actions():
    with pytest.raises(UserError, match=r"greedy actions under Signed.*: expected a permutation of action values"):
        greedy_disagreement(lambda x: x, NEGATE, NEGATE, torch.rand(1, 2))


# greedy_disagreement of actions, within a tolerance


@pytest.mark.parametrize(
    ("f", "x", "tolerance", "share"),
    [
        (lambda x: -2 * x, [[1.0, 5.0]], 0.0, 0.0),
        # f(g x) = -x + 0.5 and g f(x) = -x - 0.5: 1 apart in both entries.
        (lambda x: x + 0.5, [[1.0, 5.0]], 1.0, 0.0),
        (lambda x: x + 0.5, [[1.0, 5.0]], 0.875, 1.0),
        # One entry is enough: 1 apart in the first, 0 in the second.
        (lambda x: x + torch.tensor([0.5, 0.0]), [[1.0, 5.0]], 0.875, 1.0),
        # 2 x^2 = 2, 8 and 18 apart.
        (lambda x: x.square(), [[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], 8.0, 1 / 3),
        # Each entry has its own tolerance: 2 and 8 apart, then 8 and 2.
        (lambda x: x.square(), [[1.0, 2.0], [2.0, 1.0]], torch.tensor([2.0, 8.0]), 0.5),
    ],
)
def test_disagreement_of_actions_by_hand(f, x, tolerance, share):
    assert greedy_disagreement(f, NEGATE, NEGATE, torch.tensor(x), tolerance) == pytest.approx(share)


def test_disagreement_of_actions_that_turn():
    """Only the turn by two thirds goes wrong, by 7 in an entry: one of two turns."""
    shown = torch.tensor([[1.0, 2.0, 0.0]])

    def f(x):
        return x + torch.where((x == shown.roll(2)).all(-1, keepdim=True), 7.0, 0.0) * torch.tensor([0.0, 1.0, 0.0])

    assert greedy_disagreement(f, CYCLE, CYCLE, shown, 6.5) == 0.5
    assert greedy_disagreement(f, CYCLE, CYCLE, shown, 7.0) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_actions_that_are_no_numbers_agree_with_nothing(value):
    x = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    assert greedy_disagreement(lambda x: x * value, SWAP, SWAP, x, 0.5) == 1.0
    late = iter([1.0, value])
    assert greedy_disagreement(lambda x: x * next(late), SWAP, SWAP, x, 0.5) == 1.0


entries = st.lists(st.integers(-4, 4).map(float), min_size=3, max_size=3)


@given(st.lists(entries, min_size=1, max_size=6), entries)
def test_one_hot_actions_within_a_half_are_greedy_actions(rows, offset):
    """What the values say, and what the actions that they lead to say, is the same, ties included."""
    x, off = torch.tensor(rows), torch.tensor(offset)
    by_values = greedy_disagreement(lambda x: x + off, CYCLE, CYCLE, x)
    by_actions = greedy_disagreement(lambda x: one_hot((x + off).argmax(-1), 3), CYCLE, CYCLE, x, 0.5)
    assert by_values == by_actions
    wrong = []
    for row in x:
        still = int((row + off).argmax())
        wrong += [int((row.roll(k) + off).argmax()) != (still + k) % 3 for k in (1, 2)]
    assert by_values == pytest.approx(sum(wrong) / len(wrong))


@given(st.lists(entries, min_size=1, max_size=6), entries, st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 8.0])] * 3))
def test_disagreement_of_actions_equals_a_loop_and_falls_with_tolerance(rows, offset, allowed):
    x, off = torch.tensor(rows), torch.tensor(offset)

    def share(tolerance):
        return greedy_disagreement(lambda x: x * x + off, CYCLE, CYCLE, x, tolerance)

    def apart(row, k):
        return ((row.roll(k).square() + off) - (row.square() + off).roll(k)).abs().tolist()

    wrong = [any(a > t for a, t in zip(apart(row, k), allowed, strict=True)) for row in x for k in (1, 2)]
    assert share(torch.tensor(allowed)) == pytest.approx(sum(wrong) / len(wrong))
    assert share(max(allowed)) <= share(torch.tensor(allowed)) <= share(min(allowed))
    assert share(0.0) == pytest.approx(sum(any(apart(row, k)) for row in x for k in (1, 2)) / len(wrong))


def test_a_symmetrizer_mends_what_the_checks_see():
    net, x = torch.nn.Linear(2, 2), torch.randn(50, 2)
    for method, bad in ((Identity(SWAP, SWAP), True), (Equitune(SWAP, SWAP), False)):
        f = partial(method, net)
        assert (equivariance_error(f, SWAP, SWAP, x) > 1e-3) == bad
        assert (greedy_disagreement(f, SWAP, SWAP, x) > 0) == bad
