"""The Atari wrappers: their pictures commute with the flip, and the real games agree."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage

from equirl.envs.atari import BreakoutFrame, PongFrame, SymmetricAtari, picture
from equirl.errors import UserError
from equirl.hyperparameters import named_callables

NOOP, FIRE, RIGHT, LEFT = 0, 1, 2, 3
PONG_CROP, BREAKOUT_CROP = (34, 194, 0, 160), (33, 193, 8, 152)
even_frames = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6).flatmap(
    lambda half: st.sampled_from([(), (3,)]).flatmap(
        lambda colour: arrays(np.uint8, (2 * half[0], 2 * half[1], *colour))
    )
)


def make(env_id: str, **options: Any) -> Any:
    """gym.make, for mypy an Any: the tests look at ALE behind the environment."""
    return gym.make(env_id, **options)


def whole(frame: np.ndarray) -> tuple[int, int, int, int]:
    return 0, frame.shape[0], 0, frame.shape[1]


def slow_picture(frame: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """Pixel by pixel, in Python's integers."""
    top, bottom, left, right = crop

    def grey(row: int, column: int) -> int:
        pixel = frame[row, column].tolist()
        return pixel if frame.ndim == 2 else (299 * pixel[0] + 587 * pixel[1] + 114 * pixel[2] + 500) // 1000

    return np.array(
        [
            [[(sum(grey(i + di, j + dj) for di in (0, 1) for dj in (0, 1)) + 2) // 4] for j in range(left, right, 2)]
            for i in range(top, bottom, 2)
        ],
        dtype=np.uint8,
    )


def background(env: Any, steps: int = 240) -> np.ndarray:
    """The median observation of short games (before many bricks are gone), random actions held for four steps each."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    seen = []
    for step in range(steps):
        if step % 40 == 39:
            env.reset()
        if step % 4 == 0:
            action = int(rng.integers(env.action_space.n))
        seen.append(env.step(action)[0])
    return np.median(seen, axis=0)


def asymmetry(image: np.ndarray, axis: int) -> tuple[float, float]:
    """The fraction of pixels that differ by more than one grey level from the flip, and the largest difference."""
    difference = np.abs(image - np.flip(image, axis))
    return float((difference > 1).mean()), float(difference.max())


# The picture


@given(even_frames)
def test_picture_is_its_slow_reference(frame: np.ndarray) -> None:
    np.testing.assert_array_equal(picture(frame, whole(frame)), slow_picture(frame, whole(frame)))


@given(even_frames, st.sampled_from([0, 1]))
def test_picture_commutes_with_both_flips(frame: np.ndarray, axis: int) -> None:
    box = whole(frame)
    np.testing.assert_array_equal(picture(np.flip(frame, axis), box), np.flip(picture(frame, box), axis))


@pytest.mark.parametrize(
    ("wrapper", "game", "crop", "axis"),
    [(PongFrame, "Pong", PONG_CROP, 0), (BreakoutFrame, "Breakout", BREAKOUT_CROP, 1)],
)
@pytest.mark.parametrize("obs_type", ["rgb", "grayscale"])
def test_wrappers_commute_with_their_games_flip(
    wrapper: Any, game: str, crop: tuple[int, int, int, int], axis: int, obs_type: str
) -> None:
    env = wrapper(make(f"ALE/{game}-v5", obs_type=obs_type), clip_reward=False)
    show = env.env.observation
    frame = np.random.default_rng(0).integers(256, size=env.unwrapped.observation_space.shape, dtype=np.uint8)
    mirrored = frame.copy()
    court = np.s_[crop[0] : crop[1], crop[2] : crop[3]]
    mirrored[court] = np.flip(frame[court], axis)
    np.testing.assert_array_equal(show(mirrored), np.flip(show(frame), axis))
    assert not np.array_equal(show(mirrored), show(frame))


@pytest.mark.parametrize("game", ["Pong", "Breakout", "MsPacman", "Seaquest"])
def test_colour_and_grayscale_frames_give_the_same_picture(game: str) -> None:
    env = make(f"ALE/{game}-v5")
    ale = env.unwrapped.ale
    env.reset(seed=0)
    for _ in range(20):
        env.step(env.action_space.sample())
        colour, grey = ale.getScreenRGB(), ale.getScreenGrayscale()
        np.testing.assert_array_equal(picture(colour, (0, 210, 0, 160)), picture(grey, (0, 210, 0, 160)))


# The games


def test_pong_background_is_its_own_upside_down_image() -> None:
    env = make("ALE/Pong-v5", obs_type="grayscale")
    court = background(PongFrame(env, terminal_on_life_loss=False))
    assert court.shape == (80, 80, 1)
    assert asymmetry(court, 0) == (0.0, 0.0)
    fraction, largest = asymmetry(background(env), 0)
    assert fraction > 0.02
    assert largest > 36


def test_breakout_background_is_its_own_left_right_image() -> None:
    env = make("ALE/Breakout-v5", obs_type="grayscale")
    field = background(BreakoutFrame(env, terminal_on_life_loss=False))
    assert field.shape == (80, 72, 1)
    # The paddle, in the last two rows, comes to rest somewhere; above it the background is exact.
    assert asymmetry(field[:78], 1) == (0.0, 0.0)
    assert np.unique(field[:78]).size > 6  # the black field and six colours of bricks


def test_breakout_walls_end_in_two_colours_so_they_are_cropped_away() -> None:
    walls = background(make("ALE/Breakout-v5", obs_type="grayscale"), 40)[33:193, np.r_[0:8, 152:160]]
    assert asymmetry(walls[:156], 1) == (0.0, 0.0)
    assert asymmetry(walls[156:], 1) == (1.0, 17.0)


def test_minimal_action_sets() -> None:
    pong, breakout = (make(f"ALE/{game}-v5").unwrapped.get_action_meanings() for game in ("Pong", "Breakout"))
    assert pong == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert breakout == ["NOOP", "FIRE", "RIGHT", "LEFT"]


def moved(env: Any, action: int, rows: slice, columns: slice) -> np.ndarray:
    """The middle of what is lit in a strip after holding an action from a fresh game, as (row, column) of the strip."""
    env.reset(seed=0)
    for _ in range(8):
        observation = env.step(action)[0]
    strip = observation[rows, columns, 0].astype(int)
    return np.argwhere(strip != np.bincount(strip.ravel()).argmax()).mean(axis=0)


@pytest.mark.parametrize(("right", "left"), [(2, 3), (4, 5)])
def test_right_moves_pongs_paddle_up_and_left_down(right: int, left: int) -> None:
    env = PongFrame(make("ALE/Pong-v5", repeat_action_probability=0.0), terminal_on_life_loss=False)
    strip = slice(0, 80), slice(70, 72)
    up, still, down = (moved(env, action, *strip)[0] for action in (right, NOOP, left))
    assert up < still - 10
    assert down > still + 10


def test_right_and_left_move_breakouts_paddle_sideways() -> None:
    env = BreakoutFrame(make("ALE/Breakout-v5", repeat_action_probability=0.0), terminal_on_life_loss=False)
    strip = slice(78, 80), slice(0, 72)
    right, left = (moved(env, action, *strip)[1] for action in (RIGHT, LEFT))
    assert right > left + 30


# The wrapper as an environment


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_passes_sb3s_environment_checker(env_id: str) -> None:
    check_env(PongFrame(make(env_id)), warn=False)


def test_stacked_and_transposed_as_any_sb3_atari_environment() -> None:
    envs = make_vec_env("ALE/Pong-v5", n_envs=2, seed=0, wrapper_class=PongFrame)
    stacked = VecTransposeImage(VecFrameStack(envs, 4))
    assert stacked.observation_space.shape == (4, 80, 80)
    first = np.asarray(stacked.reset())
    assert first.shape == (2, 4, 80, 80)
    assert first.dtype == np.uint8


@pytest.mark.parametrize(
    ("env_id", "options", "given", "raw_frames"),
    [
        ("PongNoFrameskip-v4", {}, {}, 4),
        ("PongNoFrameskip-v4", {}, {"frame_skip": 2}, 2),
        ("PongNoFrameskip-v4", {}, {"frame_skip": 1}, 1),
        ("ALE/Pong-v5", {}, {}, 4),
        ("ALE/Pong-v5", {}, {"frame_skip": 1}, 4),
        ("ALE/Pong-v5", {"frameskip": 1}, {}, 4),
        ("ALE/Pong-v5", {"frameskip": 3}, {}, 3),
    ],
)
def test_frames_are_skipped_once(env_id: str, options: dict[str, Any], given: dict[str, Any], raw_frames: int) -> None:
    env: Any = PongFrame(make(env_id, **options), **given)
    env.reset(seed=0)
    before = env.unwrapped.ale.getEpisodeFrameNumber()
    env.step(NOOP)
    assert env.unwrapped.ale.getEpisodeFrameNumber() - before == raw_frames


@pytest.mark.parametrize(("env_id", "wrapper"), [("ALE/Pong-v5", PongFrame), ("BreakoutNoFrameskip-v4", BreakoutFrame)])
def test_resets_press_only_what_the_flip_leaves_alone(
    env_id: str, wrapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = wrapper(make(env_id), terminal_on_life_loss=False)
    pressed: list[int] = []
    step = env.unwrapped.step

    def noted(action: int) -> Any:
        pressed.append(action)
        return step(action)

    monkeypatch.setattr(env.unwrapped, "step", noted)
    for seed in range(3):
        env.reset(seed=seed)
    assert set(pressed) == {NOOP, FIRE}


def test_one_life_is_an_episode_and_monitor_reports_whole_games_unclipped(monkeypatch: pytest.MonkeyPatch) -> None:
    envs: Any = make_vec_env("ALE/Breakout-v5", seed=0, wrapper_class=BreakoutFrame)
    game = envs.envs[0].unwrapped
    raw: list[float] = []
    step = game.step

    def worth_seven(action: int) -> tuple:
        observation, reward, *rest = step(action)
        raw.append(7.0 * reward)
        return observation, raw[-1], *rest

    monkeypatch.setattr(game, "step", worth_seven)
    envs.reset()
    rng = np.random.default_rng(0)
    rewards, lives, info = set(), 0, [dict[str, Any]()]
    while "episode" not in info[0]:
        _, reward, done, info = envs.step(rng.integers(4, size=1))
        rewards.add(float(reward[0]))
        lives += int(done[0])
    assert rewards == {0.0, 1.0}
    assert lives == 5
    assert info[0]["episode"]["r"] == sum(raw) >= 7.0


def test_a_configuration_finds_the_wrappers_by_name() -> None:
    entry = [{"equirl.envs.atari.PongFrame": {"terminal_on_life_loss": False}}]
    [(wrapper, keywords)] = named_callables("env_wrapper", entry)
    assert isinstance(wrapper(make("ALE/Pong-v5"), **keywords), PongFrame)


# What users get wrong


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda: PongFrame(make("CartPole-v1")), "environment 'CartPole-v1': expected an Atari environment"),
        (lambda: PongFrame(make("ALE/Breakout-v5")), "PongFrame on the Atari game 'breakout': expected 'pong'"),
        (lambda: PongFrame(make("ALE/Pong-v5", obs_type="ram")), r"shape \(128,\) from 'ALE/Pong-v5'"),
        (lambda: PongFrame(PongFrame(make("ALE/Pong-v5"))), r"shape \(80, 80, 1\) .* no other picture wrapper"),
        (lambda: PongFrame(make("ALE/Pong-v5", continuous=True)), "expected Discrete, so continuous=False"),
        (lambda: PongFrame(make("ALE/Pong-v5"), frame_skip=4), "itself skips 4: expected 1"),
        (lambda: PongFrame(make("ALE/Pong-v5"), frame_skip=0), "frame_skip 0: expected 1 or more"),
        (lambda: PongFrame(make("ALE/Pong-v5"), noop_max=-1), "noop_max -1: expected 0 or more"),
        (lambda: PongFrame(make("ALE/Pong-v5"), action_repeat_probability=1.5), "1.5: expected 0 or more and"),
        (lambda: SymmetricAtari(make("ALE/Pong-v5"), crop=(34, 195, 0, 160)), "an even number of rows"),
        (lambda: SymmetricAtari(make("ALE/Pong-v5"), crop=(34, 212, 0, 160)), "a frame of 210 rows and 160 col"),
        (lambda: SymmetricAtari(make("ALE/Pong-v5"), crop=(34, 194)), r"crop \(34, 194\): expected \(top, bottom"),
    ],
)
def test_mistakes_are_told_in_one_line(mistake: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        mistake()
    assert "\n" not in str(raised.value)
