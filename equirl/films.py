"""A trained agent at play, in a window or on film."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import Error as GymnasiumError
from numpy.typing import NDArray

from equirl.errors import UserError
from equirl.loading import Found, agent_of
from equirl.runs import make_vec_env


def play(
    found: Found, episodes: int = 1, video: Path | None = None, max_steps: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Let an agent play in a window, or film it into a GIF or MP4.

    Args:
        found: the agent, as `find_agent` returns it.
        episodes: how many to play.
        video: the file to write; without it the environment's own window opens.
        max_steps: the most steps in all.
        seed: of the first episode.

    Returns:
        a JSON-able dictionary with `model`, `environment`, `returns` of the episodes that ended, and `video`.

    Raises:
        UserError: no agent, no window, a film of another kind, or one that cannot be written.
    """
    for name, value in (("episodes", episodes), ("steps", max_steps)):
        if value < 1:
            raise UserError(f"{name} {value}: expected a whole number of at least 1")
    if video is not None and video.suffix not in (".gif", ".mp4"):
        raise UserError(f"video {str(video)!r}: expected a name that ends in .gif or .mp4")
    if video is not None and not video.parent.is_dir():
        raise UserError(f"video {str(video)!r}: expected a folder that exists, and {str(video.parent)!r} does not")
    model, settings = agent_of(found), found.settings
    env: Any = make_vec_env(settings, n_envs=1, seed=seed, render_mode="rgb_array" if video else "human")
    returns: list[float] = []
    try:
        observation = _first(env)
        with _film(video, float(env.metadata.get("render_fps", 30))) as show:
            for _ in range(max_steps):
                if video is not None:
                    show(env.render("rgb_array"))
                action, _ = model.predict(observation, deterministic=True)
                observation, _, _, infos = env.step(action)
                if "episode" in infos[0]:  # by the monitor; a life lost in Atari is no episode
                    returns.append(float(infos[0]["episode"]["r"]))
                    if len(returns) >= episodes:
                        break
    finally:
        env.close()
    return {
        "model": str(found.weights),
        "environment": settings.env_id,
        "returns": returns,
        "video": str(video) if video else None,
    }


def _first(env: Any) -> Any:
    """Return the first observation; with a window, this is where it opens."""
    try:
        return env.reset()
    except Exception as error:
        if type(error).__module__.split(".")[0] != "pygame" and not isinstance(error, GymnasiumError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"no window to play in: {reason}: expected a screen, or --video with a file") from None


@contextmanager
def _film(path: Path | None, fps: float) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that takes one frame, writing GIF or MP4 beside its place and moving it there at the end."""
    if path is None:
        yield lambda frame: None
        return
    import imageio

    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    # Sides of even length are all that the usual video format asks for; imageio would scale to multiples of 16.
    kwargs: dict[str, Any] = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps}
    if path.suffix == ".mp4":
        kwargs["macro_block_size"] = 1
    try:
        opened: Any = imageio.get_writer(partial, **kwargs)
        with closing(opened) as writer:  # on its own it would stay open after an error, and write on

            def show(frame: NDArray[np.uint8]) -> None:
                height, width, _ = frame.shape
                writer.append_data(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))

            yield show
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"video {str(path)!r}: expected a file that can be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
