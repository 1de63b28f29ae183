"""Intervals cover, tests keep their level and find what is there."""

import numpy as np
import pytest

from equirl.verification.statistics import clopper_pearson, energy, p_value, permuted_labels, sign_flip_p_value


def test_the_interval_of_no_event_is_the_rule_of_three():
    low, high = clopper_pearson(0, 2000)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 2000))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_the_interval_covers():
    rng = np.random.default_rng(0)
    counts = rng.binomial(50, 0.1, 400)
    covered = [low <= 0.1 <= high for low, high in (clopper_pearson(int(c), 50) for c in counts)]
    assert np.mean(covered) >= 0.95


def test_energy_is_the_squared_difference_of_laws():
    outcomes = np.array([0, 0, 0, 1, 0, 1, 1, 1])  # 3/4 and 1/4 of the first outcome
    found = energy((outcomes[:, None] != outcomes).astype(float), permuted_labels(4, 0, np.random.default_rng(0)))
    assert found[0] == pytest.approx(2 * (3 / 4 - 1 / 4) ** 2)


def test_shufflings_keep_the_sides_equal_and_the_first_row_unshuffled():
    labels = permuted_labels(5, 50, np.random.default_rng(0))
    assert (labels.sum(1) == 0).all()
    assert labels[0].tolist() == [1] * 5 + [-1] * 5
    assert len({tuple(row) for row in labels.tolist()}) > 30


@pytest.mark.parametrize(("shift", "found"), [(0.0, False), (0.8, True)])
def test_the_permutation_test_finds_a_shift_and_nothing_else(shift, found):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=32), rng.normal(size=32) + shift])
    statistics = energy(np.abs(values[:, None] - values), permuted_labels(32, 999, rng))
    assert (p_value(statistics) < 0.01) is found


def test_flipped_signs_keep_the_level_over_many_features():
    rng = np.random.default_rng(2)
    p_values = [sign_flip_p_value(rng.normal(size=(40, 300)), rng, 199)[0] for _ in range(60)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15
    assert 0.3 < np.mean(p_values) < 0.7


def test_flipped_signs_find_one_shifted_feature_among_many():
    rng = np.random.default_rng(3)
    differences = rng.normal(size=(60, 500))
    differences[:, 17] += 1.0
    p_value, z = sign_flip_p_value(differences, rng)
    assert p_value == pytest.approx(1 / 1000)
    assert int(np.abs(z).argmax()) == 17


def test_no_difference_at_all_is_none():
    assert sign_flip_p_value(np.zeros((10, 3)), np.random.default_rng(0))[0] == 1.0
