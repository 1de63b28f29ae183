"""Agents at play: films that can be watched, and nothing half-written where one fails."""

import warnings
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio as films_writer
import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from equirl import films
from equirl.errors import UserError
from equirl.folders import create_folder, write_settings
from equirl.loading import find_agent
from equirl.runs import Settings, build_model, make_vec_env, settings_of


def play(path: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return films.play(find_agent(path, packages=[__name__]), *args, **kwargs)


EXTRA = {"n_timesteps": 10, "eval_freq": 10, "eval_episodes": 1, "save_freq": 10}


class Odd(gym.Wrapper):
    """Pictures with sides of odd length, the third of which may fail."""

    fails = False

    def reset(self, **kwargs):
        self.rendered = 0
        return self.env.reset(**kwargs)

    def render(self):
        self.rendered += 1
        if self.fails and self.rendered == 3:
            raise RuntimeError("no picture")
        picture: Any = self.env.render()
        return picture[:99, :151]


def saved(folder: Path, env_id: str = "CartPole-v1", **chosen: Any) -> Path:
    made = settings_of("dqn", env_id, chosen)
    settings = Settings(made.algo, made.env_id, made.hyperparameters, extra=EXTRA)
    run = create_folder(folder, settings)
    write_settings(run, settings)
    build_model(settings, make_vec_env(settings), learns=False).save(run / f"{env_id.replace('/', '-')}.zip")
    return run


def frames(path: Path) -> Any:
    """Return all pictures of a film, whose reader forgets to close its pipes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return imageio.imread(path, index=None)


def seconds(path: Path) -> float:
    """Return how long a film lasts; equal pictures in a row are one of longer duration in a GIF."""
    if path.suffix == ".mp4":
        return len(frames(path)) / 50
    with Image.open(path) as film:
        durations = []
        for number in range(getattr(film, "n_frames", 1)):
            film.seek(number)
            durations.append(film.info["duration"] / 1000)
    return sum(durations)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("logs"), policy_kwargs={"net_arch": [8]})


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_can_be_watched(suffix, run, tmp_path):
    path = tmp_path / f"film{suffix}"
    result = play(run, video=path)
    assert result["video"] == str(path)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    film = frames(path)
    assert film.shape[1:] == (400, 600, 3)
    assert all((one != other).any() for one, other in pairwise(film))
    (steps,) = result["returns"]  # a reward of 1 for each step that is shown, at 50 a second
    assert seconds(path) == pytest.approx(steps / 50)


@pytest.mark.parametrize(("suffix", "shape"), [(".gif", (100, 152, 3)), (".mp4", (100, 152, 3))])
def test_sides_of_odd_length_fit(suffix, shape, tmp_path, recwarn):
    path = tmp_path / f"film{suffix}"
    play(saved(tmp_path, env_wrapper=f"{__name__}.Odd"), video=path, max_steps=4)
    assert frames(path).shape[1:] == shape
    assert seconds(path) == pytest.approx(4 / 50)
    assert not recwarn


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("before", [b"", b"an older film"])
def test_a_film_that_fails_leaves_nothing_behind(suffix, before, tmp_path, monkeypatch):
    path = tmp_path / f"film{suffix}"
    if before:
        path.write_bytes(before)
    run = saved(tmp_path, env_wrapper=f"{__name__}.Odd")
    monkeypatch.setattr(Odd, "fails", True)
    opened: list[Any] = []
    get_writer = films_writer.get_writer

    def spied(*args: Any, **kwargs: Any) -> Any:
        opened.append(get_writer(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(films_writer, "get_writer", spied)
    with pytest.raises(RuntimeError, match="no picture"):
        play(run, video=path)
    assert {path.name for path in tmp_path.iterdir()} == ({"dqn", path.name} if before else {"dqn"})
    assert not before or path.read_bytes() == before
    assert [writer.closed for writer in opened] == [True]  # or it would write on


def test_episodes_and_steps_are_counted(run, tmp_path):
    assert len(play(run, episodes=3, video=tmp_path / "a.gif")["returns"]) == 3
    assert play(run, max_steps=4, video=tmp_path / "b.gif")["returns"] == []
    assert seconds(tmp_path / "b.gif") == pytest.approx(4 / 50)
    one, same, other = (play(run, seed=seed, video=tmp_path / "c.gif")["returns"] for seed in (1, 1, 7))
    assert one == same != other


class Ends(gym.Wrapper):
    """Counts what looks like the end of an episode."""

    seen = 0

    def step(self, action):
        *rest, terminated, truncated, info = self.env.step(action)
        Ends.seen += terminated
        return *rest, terminated, truncated, info


def test_a_life_lost_is_no_episode(tmp_path, monkeypatch):
    run = saved(tmp_path, "ALE/Breakout-v5", env_wrapper=["equirl.envs.atari.BreakoutFrame", f"{__name__}.Ends"])
    monkeypatch.setattr(films, "_film", lambda path, fps: nullcontext(lambda frame: None))
    monkeypatch.setattr(Ends, "seen", 0)
    returns = play(run, video=tmp_path / "a.gif", max_steps=150)["returns"]
    assert Ends.seen > len(returns)


@pytest.mark.parametrize(
    ("name", "words"), [("film.avi", "ends in .gif or .mp4"), ("film", ".gif"), ("none/film.gif", "folder that exists")]
)
def test_a_film_of_another_kind_is_refused(name, words, run, tmp_path):
    with pytest.raises(UserError, match=words):
        play(run, video=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_folder_in_the_way_is_refused(suffix, run, tmp_path):
    path = tmp_path / f"film{suffix}"
    path.mkdir()
    with pytest.raises(UserError, match="expected a file that can be written"):
        play(run, video=path, max_steps=2)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"max_steps": -1}])
def test_no_episodes_or_steps_are_refused(wrong, run, tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        play(run, video=tmp_path / "a.gif", **wrong)


def test_a_window_opens_where_there_is_a_screen_and_is_one_line_where_there_is_none(run, monkeypatch):
    import pygame

    assert play(run, max_steps=2)["video"] is None  # SDL's dummy screen, as all tests have
    pygame.quit()
    monkeypatch.setenv("SDL_VIDEODRIVER", "no such driver")
    with pytest.raises(UserError, match="no window to play in"):
        play(run, max_steps=2)
    pygame.quit()


def test_frames_are_what_the_environment_draws(run, tmp_path):
    play(run, video=tmp_path / "a.gif", max_steps=1, seed=4)
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    env.reset(seed=4)
    drawn: Any = env.render()
    shown = frames(tmp_path / "a.gif")[0]
    assert np.abs(shown.astype(int) - drawn).mean() < 4  # the format has 256 colours
