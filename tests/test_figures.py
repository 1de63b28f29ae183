"""Pictures say what they should: the right bars, the right colours, all panels on one scale."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from equirl.figures import BLUE, GREY, ORANGE, orbit_picture
from equirl.runs import build_model, make_vec_env, settings_of


def coloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """Return where a picture has exactly this colour."""
    return (picture == np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)).all(-1)


def bars(picture: np.ndarray, colour: str) -> list[tuple[int, int]]:
    """Return left edge and height of each bar of a colour."""
    where = coloured(picture, colour)
    columns = np.flatnonzero(where.any(0))
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    return [(int(run[0]), int(where[:, run].any(1).sum())) for run in runs if len(run)]


CASES = {
    "vectors": (np.random.default_rng(0).normal(size=(2, 4)), 2),
    "discrete observations": (np.eye(4), 4),
    "long vectors": (np.random.default_rng(0).normal(size=(2, 40)), 2),
    "colours": (np.random.default_rng(0).integers(0, 256, (8, 3, 9, 9)).astype(np.uint8), 4),
    "stacked grey frames": (np.random.default_rng(0).integers(0, 256, (2, 4, 80, 72)).astype(np.uint8), 6),
    "negative floats": (np.random.default_rng(0).normal(size=(4, 3, 5, 5)), 18),
    "nothing but zeros": (np.zeros((2, 4)), 2),
}


@pytest.mark.parametrize(("views", "n_actions"), CASES.values(), ids=CASES)
def test_every_kind_of_observation_can_be_drawn(views, n_actions):
    n = len(views)
    values = np.random.default_rng(1).normal(size=(n, n_actions)) * (views.any() or 0)
    names = [f"a long name {a}" for a in range(n_actions)]
    picture = orbit_picture(views, values, [f"g{i}" for i in range(n)], names)
    assert picture.dtype == np.uint8
    assert picture.shape[0] < 500
    assert picture.shape[1] <= 8 * 200
    assert picture.std() > 0
    assert coloured(picture, ORANGE).any() == values.any()


def test_the_greedy_action_alone_is_orange():
    values = np.array([[1.0, 3.0, 0.0, 2.5], [3.0, 2.5, 1.0, 0.0]])
    picture = orbit_picture(np.ones((2, 4)), values, ["e", "r"], ["a", "b", "c", "d"])
    orange, blue = bars(picture, ORANGE), bars(picture, BLUE)
    assert (len(orange), len(blue)) == (2, 6)
    order = [colour for _, _, colour in sorted([(*bar, "best") for bar in orange] + [(*bar, "") for bar in blue])]
    assert order == ["", "best", "", "", "best", "", "", ""]
    assert len(bars(picture, GREY)) == 8


def test_equal_values_make_equal_bars_in_every_panel():
    values = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    picture = orbit_picture(np.zeros((3, 2)), values, ["e", "r", "r2"], ["l", "r"])
    orange, blue = ([height for _, height in bars(picture, colour)] for colour in (ORANGE, BLUE))
    assert orange[0] == pytest.approx(orange[1], abs=2)
    assert blue[0] == pytest.approx(blue[1], abs=2)
    assert orange[0] == pytest.approx(blue[0], abs=4)  # as far above the mean as the other is below
    assert orange[0] > 40
    assert max(orange[2:] + blue[2:], default=0) <= 2  # on the mean


def test_all_panels_share_a_scale():
    values = np.array([[0.0, 1.0], [0.4, 0.6]])
    picture = orbit_picture(np.array([[1.0, 2.0], [0.1, 0.1]]), values, ["e", "r"], ["l", "r"])
    large, small = (height for _, height in bars(picture, ORANGE))
    assert large / small == pytest.approx(5, rel=0.15)
    first, second, third, fourth = (height for _, height in bars(picture, GREY))
    assert second / first == pytest.approx(2, rel=0.1)
    assert first / third == pytest.approx(10, rel=0.3)
    assert third == fourth


def test_small_differences_show_beside_large_values():
    picture = orbit_picture(np.zeros((2, 2)), np.array([[99.9, 100.1], [100.1, 99.9]]), ["e", "r"], ["l", "r"])
    assert min(height for _, height in bars(picture, ORANGE)) > 40


def test_pictures_keep_their_colours_and_orientation():
    view = np.zeros((3, 2, 2), np.uint8)
    view[0, 0, 0] = view[1, 1, 0] = view[2, 1, 1] = 255  # red above left, green below it, blue to its right
    picture = orbit_picture(view[None].repeat(2, 0), np.zeros((2, 1)), ["e", "r"], ["x"])
    left = np.array_split(picture, 2, axis=1)[0]
    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = (
        np.mean(np.nonzero(coloured(left, colour)), axis=1) for colour in ("#ff0000", "#00ff00", "#0000ff")
    )
    assert red_y + 20 < green_y == blue_y
    assert red_x == green_x < blue_x - 20


def test_stacked_frames_show_their_last():
    views = np.zeros((2, 4, 4, 4), np.uint8)
    black = orbit_picture(views, np.zeros((2, 1)), ["e", "r"], ["x"])
    views[:, 0] = 255
    np.testing.assert_array_equal(orbit_picture(views, np.zeros((2, 1)), ["e", "r"], ["x"]), black)
    views[:, 3] = 255
    assert (orbit_picture(views, np.zeros((2, 1)), ["e", "r"], ["x"]) != black).any()


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (8, 1, 8), (9, 2, 8), (120, 3, 8)])
def test_large_groups_take_more_rows_up_to_three(n, rows, columns):
    picture = orbit_picture(
        np.ones((n, 3)), np.random.default_rng(0).normal(size=(n, 2)), list(map(str, range(n))), "lr"
    )
    assert picture.shape[:2] == (378 * rows, max(198 * columns, 396))


@pytest.mark.parametrize(
    ("algo", "env_id", "expected"),
    [
        ("dqn", "CartPole-v1", "action value"),
        ("ppo", "CartPole-v1", "log-probability"),
        ("ppo", "Pendulum-v1", "action"),
        ("sac", "Pendulum-v1", "action"),
    ],
)
def test_policies_say_what_their_bars_are(algo, env_id, expected):
    settings = settings_of(algo, env_id)
    model = build_model(settings, make_vec_env(settings, n_envs=1), learns=False)
    assert model.policy.scores_are == expected


def test_bars_of_actions_stand_on_zero_and_none_is_the_best():
    views, values = np.zeros((2, 3)), np.array([[-0.5], [1.0]])
    actions, ranked = (orbit_picture(views, values, ["e", "r"], ["0"], kind) for kind in ("action", "action value"))
    assert bars(actions, ORANGE) == []
    assert len(bars(ranked, ORANGE)) == 2
    (_, low), (_, high) = bars(actions, BLUE)
    assert high == pytest.approx(2 * low, abs=4)  # heights from 0, not from the mean
