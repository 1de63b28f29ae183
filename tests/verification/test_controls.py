"""Wrong claims are wrong, all different, fit the spaces, and leave out what is true again."""

from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from equirl import PerKey, Permutation, SignedPermutation, Symmetry, Trivial, UserError, cyclic, resolve_symmetry
from equirl.representations import Matrix
from equirl.verification.controls import claims_beside, plain_map, wrong_claims

GRID = Symmetry.generated_by(
    ({"grid": "flip_x", "channels": [0, 2, 1], "fixed": [0]}, [1, 0]), name="channels and a gauge"
)
KEYS = Symmetry.generated_by(({"keys": {"a": {"signs": [-1, 1]}, "b": "flip_x"}}, [1, 0]))


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "equirl/GridWorld-v0", "Reacher-v5"])
def test_none_is_an_element_of_the_true_group(name):
    true = resolve_symmetry(name)
    maps = {repr((plain_map(true.observation, g), plain_map(true.action, g))) for g in range(len(true.group))}
    claims = list(islice(wrong_claims(true, np.random.default_rng(0)), 20))
    assert len(claims) >= 18  # Pendulum has few entries
    assert len({repr(dict(claim) | {"name": ""}) for _, claim in claims}) == len(claims)
    for _, claim in claims:
        others = {repr((plain_map(claim.observation, g), plain_map(claim.action, g))) for g in range(len(claim.group))}
        assert not others <= maps


@pytest.mark.parametrize(("symmetry", "words"), [(GRID, {"becomes", "not fixed", "swapped"}), (KEYS, {"'a'", "'b'"})])
def test_every_kind_of_mistake_is_made(symmetry, words):
    names = " / ".join(name for name, _ in islice(wrong_claims(symmetry, np.random.default_rng(1)), 30))
    assert all(word in names for word in words), names
    assert "actions: " in names
    assert "observations: " in names


def test_claims_that_do_not_fit_the_spaces_are_left_out():
    symmetry = resolve_symmetry("equirl/GridWorld-v0")
    oblong = spaces.Box(0, 255, (3, 4, 6), np.uint8)
    flips = Symmetry.generated_by(("flip_x", [0, 3, 2, 1]))
    for _, claim in claims_beside(flips, oblong, spaces.Discrete(4), 0):
        claim.check_spaces(oblong, spaces.Discrete(4))
    square = gym.make("equirl/GridWorld-v0").observation_space
    assert len(list(claims_beside(symmetry, square, spaces.Discrete(4), 0))) > 10


def test_exchanging_actions_that_do_the_same_is_no_mistake():
    flip = Symmetry.generated_by(("flip_x", [0, 2, 1, 3]))
    space = spaces.Box(0, 255, (1, 5, 5), np.uint8)
    every = {claim.action.describe(1) for _, claim in claims_beside(flip, space, spaces.Discrete(4), 0)}
    wrong = {claim.action.describe(1) for _, claim in claims_beside(flip, space, spaces.Discrete(4), 0, (0, 3))}
    assert "(0 3)(1 2)" in every
    assert "(0 3)(1 2)" not in wrong
    assert "identity" in wrong


def test_actions_left_alone_are_altered_by_their_number():
    still = Symmetry(SignedPermutation(cyclic(2), [[0, 1]] * 2, [[1, 1], [-1, 1]]), Trivial(cyclic(2)))
    names = [name for name, _ in islice(wrong_claims(still, np.random.default_rng(0), actions=3), 6)]
    assert any(name.startswith("actions") for name in names)


def test_what_has_no_plain_terms_yields_nothing():
    turn = Symmetry(Matrix(cyclic(2), [np.eye(2), -np.eye(2)]), Permutation(cyclic(2), [[0, 1], [1, 0]]))
    assert list(wrong_claims(turn, np.random.default_rng(0))) == []
    with pytest.raises(UserError, match="plain terms"):
        plain_map(turn.observation, 1)


def test_plain_terms_rebuild_each_element():
    rep = PerKey(cyclic(2), {"a": SignedPermutation(cyclic(2), [[0, 1], [1, 0]], [[1, 1], [-1, -1]])})
    plain = plain_map(rep, 1)
    assert plain == {"keys": {"a": {"permutation": [1, 0], "signs": [-1, -1]}}}
    again = Symmetry.generated_by((plain, [1, 0]))
    assert again.observation.keys["a"] == rep.keys["a"]
