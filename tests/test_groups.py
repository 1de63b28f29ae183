"""Groups against the axioms, against permutations composed by hand, and against every bad table that was thought of."""

import copy
import json
import pickle
from contextlib import suppress
from functools import reduce
from itertools import permutations
from math import factorial, gcd
from operator import mul
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equirl.errors import UserError, unknown
from equirl.groups import Group, closure, cyclic, dihedral, group_named, symmetric, trivial

FACTORS = st.one_of(st.integers(1, 7).map(cyclic), st.integers(1, 4).map(dihedral), st.integers(1, 3).map(symmetric))
GROUPS = st.lists(FACTORS, min_size=1, max_size=2).map(lambda factors: reduce(mul, factors))


def after(p, q):
    """Return the permutation that does q and then p."""
    return tuple(p[i] for i in q)


def quaternion_table():
    """Return the table of the quaternions 1, -1, i, -i, j, -j, k, -k, multiplied as 2x2 complex matrices."""
    one, i, j = np.eye(2), np.array([[1j, 0], [0, -1j]]), np.array([[0, 1], [-1, 0]])
    units = [sign * unit for unit in (one, i, j, i @ j) for sign in (1, -1)]
    return [[next(c for c, u in enumerate(units) if np.allclose(u, a @ b)) for b in units] for a in units]


# The laws


@given(GROUPS)
def test_axioms_hold_for_all_elements(group):
    table, inverses, everyone = group.table, group.inverses, np.arange(len(group))
    assert table.shape == (len(group), len(group))
    assert sorted(set(table.ravel().tolist())) == everyone.tolist()
    for k in everyone:
        assert (table[table, k] == table[:, table[:, k]]).all(), "(g * h) * k == g * (h * k)"
    assert (table[0] == everyone).all()
    assert (table[:, 0] == everyone).all()
    assert (table[everyone, inverses] == 0).all()
    assert (table[inverses, everyone] == 0).all()


@given(GROUPS, st.data())
def test_methods_read_the_table(group, data):
    g, h = (data.draw(st.integers(0, len(group) - 1)) for _ in range(2))
    assert group.product(g, h) == group.table[g][h]
    assert group.product(g, group.inverse(g)) == 0
    assert group.is_abelian == all(
        group.product(a, b) == group.product(b, a) for a in range(len(group)) for b in range(len(group))
    )


@given(GROUPS, st.data())
def test_element_order_is_the_first_power_that_is_the_identity(group, data):
    g = data.draw(st.integers(0, len(group) - 1))
    powers = [0]
    while len(powers) == 1 or powers[-1] != 0:
        powers.append(group.product(powers[-1], g))
    assert group.element_order(g) == len(powers) - 1
    assert len(group) % group.element_order(g) == 0, "Lagrange"


@pytest.mark.parametrize("n", range(1, 9))
def test_cyclic_elements_are_powers_of_the_generator(n):
    group = cyclic(n)
    assert len(group) == n
    assert [group.element_order(k) for k in range(n)] == [n // gcd(n, k) for k in range(n)]
    assert all(group.product(g, h) == (g + h) % n for g in range(n) for h in range(n))
    assert group.is_abelian


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_dihedral_moves_the_hours_of_a_clock(n):
    group = dihedral(n)
    turns = [tuple((hour + 12 // n * k) % 12 for hour in range(12)) for k in range(n)]
    mirror = tuple(-hour % 12 for hour in range(12))
    hours = turns + [after(turn, mirror) for turn in turns]
    for g in range(2 * n):
        for h in range(2 * n):
            assert hours[group.product(g, h)] == after(hours[g], hours[h])
    assert [group.element_order(n + k) for k in range(n)] == [2] * n
    assert group.is_abelian == (n < 3)


@pytest.mark.parametrize("n", range(1, 5))
def test_symmetric_composes_permutations(n):
    group = symmetric(n)
    elements = [tuple(map(int, name)) for name in group.names]
    assert elements == list(permutations(range(n)))
    assert len(group) == factorial(n)
    for g, p in enumerate(elements):
        for h, q in enumerate(elements):
            assert elements[group.product(g, h)] == after(p, q)


@given(FACTORS, FACTORS)
def test_product_acts_in_each_factor_by_itself(first, second):
    group, m = first * second, len(second)
    assert len(group) == len(first) * m
    for g in range(len(group)):
        for h in range(len(group)):
            expected = first.product(g // m, h // m) * m + second.product(g % m, h % m)
            assert group.product(g, h) == expected
    assert group.name == f"{first.name}x{second.name}"
    assert len(set(group.names)) == len(group)


# Names and data


@pytest.mark.parametrize(
    ("group", "name", "names"),
    [
        (trivial(), "C1", ("e",)),
        (cyclic(3), "C3", ("e", "r", "r2")),
        (dihedral(2), "D2", ("e", "r", "s", "rs")),
        (symmetric(2), "S2", ("01", "10")),
        (cyclic(2) * cyclic(2), "C2xC2", ("(e,e)", "(e,r)", "(r,e)", "(r,r)")),
        (Group([[0, 1], [1, 0]]), "G2", ("e", "g1")),
    ],
    ids=str,
)
def test_names(group, name, names):
    assert (group.name, repr(group), group.names) == (name, name, names)


def test_equal_means_the_same_table_whatever_the_names():
    renamed = Group([[0, 1], [1, 0]], ["e", "swap"], "mine")
    assert renamed == cyclic(2)
    assert hash(renamed) == hash(cyclic(2))
    assert symmetric(3) != dihedral(3), "isomorphic, but other elements have the same number"
    assert cyclic(2) != "C2"


@given(GROUPS)
def test_data_and_pickles_bring_back_table_and_names(group):
    loaded = Group.from_data(json.loads(json.dumps(group.to_data())))
    for other in (loaded, pickle.loads(pickle.dumps(group)), copy.deepcopy(group)):
        assert other == group
        assert (other.name, other.names) == (group.name, group.names)
        assert not other.table.flags.writeable


def test_data_are_a_name_where_that_says_all():
    assert (cyclic(4) * dihedral(3)).to_data() == "C4xD3"
    renamed = Group(cyclic(2).table, ["e", "swap"], "C2")
    assert renamed.to_data() == {"name": "C2", "names": ["e", "swap"], "table": [[0, 1], [1, 0]]}
    assert Group.from_data(renamed.to_data()).names == ("e", "swap")
    misnamed = Group((cyclic(2) * cyclic(2)).table, cyclic(4).names, "C4")
    assert Group.from_data(misnamed.to_data()) == cyclic(2) * cyclic(2)


def test_tables_cannot_be_changed():
    group = cyclic(3)
    with pytest.raises(ValueError, match="read-only"):
        group.table[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        group.inverses[0] = 1


# From generators to a group


PERMUTATIONS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.permutations(range(n)).map(tuple), min_size=0, max_size=3).map(lambda found: (n, found))
)


@given(PERMUTATIONS)
def test_closure_is_every_product_and_its_table_that_of_the_elements(case):
    n, generators = case
    identity = tuple(range(n))
    reached = {identity}
    while (longer := reached | {after(p, q) for p in reached for q in generators}) != reached:
        reached = longer
    elements, group = closure(generators, after, identity)
    assert elements[0] == identity
    assert set(elements) == reached
    assert len(elements) == len(group) == len(reached)
    for g, p in enumerate(elements):
        for h, q in enumerate(elements):
            assert elements[group.product(g, h)] == after(p, q)


STANDARD = [f"C{n}" for n in range(1, 25)] + [f"D{n}" for n in range(3, 13)] + ["C2xC2", "C2xC4", "C3xC3", "C4xC4"]


@pytest.mark.parametrize("name", STANDARD)
def test_closure_recognises_standard_groups(name):
    group = group_named(name)
    rows = [tuple(row) for row in group.table.tolist()]  # the group acting on itself
    elements, found = closure(rows[1:][::-1], after, rows[0])  # whatever the order of the generators
    assert (found.name, found, found.names) == (name, group, group.names)
    assert set(elements) == set(rows)


@pytest.mark.parametrize(
    ("name", "found"), [("C2xC3", "C6"), ("S3", "D3"), ("D2", "C2xC2"), ("D1", "C2"), ("S2", "C2")]
)
def test_closure_gives_isomorphic_groups_one_name(name, found):
    rows = [tuple(row) for row in group_named(name).table.tolist()]
    assert closure(rows[1:], after, rows[0])[1].name == found


def test_closure_names_other_elements_by_words_of_generators():
    quaternions = Group(quaternion_table())
    rows = [tuple(row) for row in quaternions.table.tolist()]
    elements, group = closure([rows[2], rows[4]], after, rows[0])
    assert group.name == "G8"
    assert group.names[:4] == ("e", "a", "b", "a2")
    for name, element in zip(group.names[1:3], elements[1:3], strict=True):
        assert element == {"a": rows[2], "b": rows[4]}[name]
    ab = group.names.index("ab")  # b acts first
    assert elements[ab] == after(rows[2], rows[4])
    assert sorted(group.element_order(g) for g in range(8)) == [1, 2, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("count", [5, 30])
def test_closure_reads_every_generator_and_keeps_names_apart(count):
    size = 2 * count if count == 5 else 3
    swaps = [tuple(i ^ 1 if i // 2 == k else i for i in range(size)) for k in range(5)]
    turn = (1, 2, 0)
    generators = swaps if count == 5 else [tuple(range(3))] * (count - 1) + [turn]
    elements, group = closure(generators, after, tuple(range(size)))
    assert len(elements) == (32 if count == 5 else 3)
    assert group.names[0] == "e"
    assert len(set(group.names)) == len(group)


def test_closure_stops_at_its_limit():
    turn = (1, 2, 3, 4, 0)
    assert len(closure([turn], after, tuple(range(5)), limit=5)[1]) == 5
    with pytest.raises(UserError, match="more than 4 elements: expected a finite group"):
        closure([turn], after, tuple(range(5)), limit=4)
    with pytest.raises(UserError, match="more than 1024 elements"):
        closure([1], int.__add__, 0)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Group([]), r"shape \(0,\): expected \(n, n\)"),
        (lambda: Group(5), r"shape \(\): expected \(n, n\)"),
        (lambda: Group([[0, 1]]), r"shape \(1, 2\)"),
        (lambda: Group([[0, 1], [1]]), "rows of different lengths"),
        (lambda: Group([[0, 1.5], [1, 0]]), "float64: expected whole numbers"),
        (lambda: Group("table"), "expected whole numbers"),
        (lambda: Group([[1, 0], [0, 1]]), "row 0 to be the identity"),
        (lambda: Group([[0, 1], [0, 1]]), "every column a permutation"),
        (lambda: Group([[0, 1], [1, 2]]), "every column a permutation"),
        (lambda: Group([[0, 1], [1, -1]]), "every column a permutation"),
        # A quasigroup with identity whose product is not associative, the smallest there is.
        (
            lambda: Group([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]),
            r"\(g \* h\) \* k and g \* \(h \* k\) differ",
        ),
        (lambda: Group([[0, 1], [1, 0]], ["e"]), "names e for 2 elements"),
        (lambda: Group([[0, 1], [1, 0]], ["e", "e"]), "names e, e for 2 elements: expected one an element"),
        (lambda: Group([[0, 1], [1, 0]], ["e", "s", "s"]), "names e, s, s for 2 elements"),
        (lambda: cyclic(0), r"cyclic\(0\): expected a whole number from 1 to 1024"),
        (lambda: cyclic(2000), r"cyclic\(2000\)"),
        (lambda: cyclic(2.0), r"cyclic\(2.0\)"),  # type: ignore[arg-type]
        (lambda: dihedral(-1), r"dihedral\(-1\): expected a whole number from 1 to 512"),
        (lambda: symmetric(7), r"symmetric\(7\): expected a whole number from 1 to 6"),
        (lambda: cyclic(40) * cyclic(40), "a group of 1600 elements: expected at most 1024"),
        (lambda: group_named("Z4"), "unknown group 'Z4': expected C<n>, D<n>, S<n> or a product such as 'C2xC2'"),
        (lambda: group_named("C0"), "unknown group 'C0'"),
        (lambda: group_named("C2x"), "unknown group 'C2x'"),
        (lambda: group_named("C²"), "unknown group"),
        (lambda: group_named("S9"), r"symmetric\(9\)"),
        (lambda: Group.from_data(4), "group 4: expected a name such as 'C4' or a mapping"),
        (lambda: Group.from_data({"name": "C4"}), "expected a name such as 'C4' or a mapping with a 'table'"),
        (lambda: Group.from_data({"table": [[0]], "names": 1}), "names 1 of a group: expected a list"),
        (lambda: Group.from_data({"table": [[0, 1], [1, 0]], "names": "es"}), "names 'es' of a group"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_whole_numbers_of_numpy_are_whole_numbers():
    four: Any = np.int64(4)
    assert cyclic(four) == cyclic(4)
    assert cyclic(four).to_data() == "C4"


def test_errors_offer_the_nearest_name_in_one_line():
    assert str(unknown("group", "c2", ["C2", "D4"])).endswith("expected one of C2, D4; did you mean 'C2'?")
    assert "did you mean" not in str(unknown("group", "zzz", ["C2", "D4"]))
    many = str(unknown("name", "x", [f"name{i}" for i in range(20)]))
    assert "... (20 in all)" in many
    assert str(UserError(f"got {np.eye(2)}: expected one")) == "got [[1. 0.] [0. 1.]]: expected one"


@settings(max_examples=200)
@given(st.recursive(st.none() | st.integers(-1, 3) | st.text(max_size=3), lambda x: st.lists(x, max_size=3)))
def test_any_data_are_a_group_or_a_user_error(data):
    for value in (data, {"table": data}, {"table": [[0]], "names": data}):
        with suppress(UserError):
            assert isinstance(Group.from_data(value), Group)
