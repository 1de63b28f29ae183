"""Values of every space move as their one-hot vectors, batches and dictionaries do."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from equirl import Grid, PerKey, Permutation, SignedPermutation, Trivial, cyclic
from equirl.verification.moving import Mover

SWAP = Permutation(cyclic(2), [[0, 1, 2], [0, 2, 1]])
MIRROR = SignedPermutation(cyclic(2), [[0, 1], [0, 1]], [[1, 1], [-1, 1]])


@pytest.mark.parametrize("start", [0, 5])
def test_a_discrete_value_moves_as_its_one_hot_vector(start):
    space = spaces.Discrete(3, start=start)
    move = Mover(SWAP, space)
    for value in range(start, start + 3):
        moved = spaces.flatten(space, move(1, value))
        assert (moved == SWAP(1, torch.as_tensor(spaces.flatten(space, value))).numpy()).all()
    assert move(1, np.array([start, start + 1, start + 2])).tolist() == [start, start + 2, start + 1]


def test_choices_move_as_their_one_hot_vectors():
    space = spaces.MultiDiscrete([2, 2])
    rep = Permutation(cyclic(2), [[0, 1, 2, 3], [2, 3, 0, 1]])  # the two choices change places
    move = Mover(rep, space)
    for value in ([0, 1], [1, 1], [1, 0]):
        moved = spaces.flatten(space, move(1, np.array(value)))
        assert (moved == rep(1, torch.as_tensor(spaces.flatten(space, np.array(value)))).numpy()).all()
    assert move(1, np.array([[0, 1], [1, 1]])).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_vectors_keep_their_type_alone_and_in_batches(dtype):
    move = Mover(MIRROR, spaces.Box(-9, 9, (2,), np.float64))
    moved = move(1, np.array([[1, 2], [3, 4]], dtype))
    assert (moved.dtype, moved.tolist()) == (dtype, [[-1, 2], [-3, 4]])
    assert move(1, np.array([1, 2], dtype)).tolist() == [-1, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_pictures_turn(dtype):
    picture = np.arange(4).reshape(1, 2, 2) % 2 > 0
    moved = Mover(Grid(cyclic(4)), spaces.Box(0, 1, (1, 2, 2), np.uint8))(1, picture.astype(dtype))
    assert moved.dtype == dtype
    assert (moved == np.rot90(picture, axes=(-2, -1))).all()


def test_dictionaries_move_key_by_key():
    space = spaces.Dict(
        {"where": spaces.Box(-9, 9, (2,), np.float32), "which": spaces.Discrete(3), "when": spaces.Discrete(7)}
    )
    rep = PerKey(cyclic(2), {"where": MIRROR, "which": SWAP, "when": Trivial(cyclic(2))})
    moved = Mover(rep, space)(1, {"where": np.ones(2, np.float32), "which": 2, "when": 6})
    assert (moved["where"].tolist(), int(moved["which"]), moved["when"]) == ([-1, 1], 1, 6)


def test_the_identity_returns_what_it_got():
    value = np.ones(2)
    assert Mover(MIRROR, spaces.Box(-1, 1, (2,)))(0, value) is value
    assert isinstance(Mover(SWAP, gym.spaces.Discrete(3)).space, spaces.Discrete)
