"""Checkpoints that a run goes on from: weights, replay buffer and counters, as files that hold no code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.errors import UserError

_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save_checkpoint(model: Any, folder: Path) -> None:
    """Write ``checkpoints/rl_model_<steps>_steps.zip``, and the replay buffer and counters that belong to it.

    Zips of earlier steps stay; the buffer is only kept for the latest. Every file is written beside its place and then
    moved there, and state.json comes last, so that a run that dies while writing leaves the checkpoint before.
    """
    target = folder / "checkpoints"
    target.mkdir(exist_ok=True)
    steps = model.num_timesteps
    name, buffer_name = f"rl_model_{steps}_steps.zip", f"replay_buffer_{steps}.npz"
    partial = target / "partial.zip"
    model.save(partial)
    os.replace(partial, target / name)
    state: dict[str, Any] = {key: getattr(model, key) for key in _COUNTERS if hasattr(model, key)}
    state["model"] = name
    if getattr(model, "replay_buffer", None) is not None:
        arrays: dict[str, Any] = dict(_buffer_arrays(model.replay_buffer))
        arrays["place"] = np.array([model.replay_buffer.pos, model.replay_buffer.full])
        partial = target / "partial.npz"
        np.savez(partial, **arrays)
        os.replace(partial, target / buffer_name)
        state["replay_buffer"] = buffer_name
    partial = target / "partial.json"
    partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(partial, target / "state.json")
    for old in target.glob("replay_buffer_*.npz"):
        if old.name != buffer_name:
            old.unlink()


def checkpoint_steps(folder: Path) -> int:
    """Return the number of steps of a run's latest checkpoint.

    Raises:
        UserError: there is none.
    """
    return int(_state(folder)["num_timesteps"])


def load_checkpoint(model: Any, folder: Path) -> None:
    """Put the latest checkpoint of a run folder into a freshly built model.

    Weights are read by torch's weights-only loader and the buffer as bare arrays: nothing is unpickled.

    Raises:
        UserError: there is no checkpoint, or one that does not fit the model.
    """
    state, target = _state(folder), folder / "checkpoints"
    try:
        model.set_parameters(target / Path(state["model"]).name, device=model.device)
        for key in _COUNTERS:
            if key in state and hasattr(model, key):
                setattr(model, key, type(getattr(model, key))(state[key]))
        if getattr(model, "replay_buffer", None) is not None:
            _fill_buffer(model.replay_buffer, target / Path(state["replay_buffer"]).name)
    except Exception as error:  # torch, zipfile and numpy raise many kinds on a damaged file
        raise UserError(
            f"checkpoint in {str(target)!r} cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no checkpoint to resume from: expected {str(path)!r}, which training writes") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, dict) or not isinstance(state.get("num_timesteps"), int) or "model" not in state:
        raise UserError(f"{str(path)!r}: expected a mapping with num_timesteps and model")
    return state


def _buffer_arrays(buffer: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the filled part of every array, those of dictionary observations by ``name/key``."""
    # One row more: with optimize_memory_usage it holds the next observation of the last transition.
    size = buffer.buffer_size if buffer.full else buffer.pos + 1
    for name in _ARRAYS:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", part[:size]) for key, part in value.items())
        elif value is not None:
            yield name, value[:size]


def _fill_buffer(buffer: Any, path: Path) -> None:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        position, full = (int(number) for number in stored["place"])
        if not 0 <= position < buffer.buffer_size:
            raise ValueError(f"position {position} in a buffer of {buffer.buffer_size}")
        buffer.pos, buffer.full = position, bool(full)
        for name, part in _buffer_arrays(buffer):
            values = stored[name]
            if values.shape != part.shape:
                raise ValueError(f"{name} has shape {values.shape}, where {part.shape} was expected")
            part[:] = values
