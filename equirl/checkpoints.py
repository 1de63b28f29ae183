"""Checkpoints that a run goes on from: weights, replay buffer and counters, as files that hold no code.

What they leave out begins anew: the episodes under way, the noise on actions, which SB3 draws anew with each start, the
unfinished rollout of PPO and A2C, and the random numbers.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.archives import load_parameters, read_archive
from equirl.errors import UserError

_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")
_MOST_STATE = 2**16  # characters of state.json, which has a dozen lines
_CHUNK = 2**24  # bytes of a buffer's array at a time
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


def load_checkpoint(model: Any, folder: Path) -> list[str]:
    """Put the latest checkpoint of a run folder into a freshly built model, and return notes on what was not read.

    Weights are read by `equirl.archives` and the buffer as bare arrays: nothing is unpickled, and nothing takes more
    memory than the model has already.

    Raises:
        UserError: there is no checkpoint, or one that does not fit the model.
    """
    state, target = _state(folder), folder / "checkpoints"
    try:
        archive = read_archive(target / Path(state["model"]).name)
        try:
            load_parameters(model, archive)
        except UserError as error:
            raise UserError(f"{archive.path}: {error}") from None
        for key in _COUNTERS:
            if key in state and hasattr(model, key):
                setattr(model, key, state[key])
        if getattr(model, "replay_buffer", None) is not None:
            _fill_buffer(model.replay_buffer, target / Path(state["replay_buffer"]).name)
        return [f"{archive.path.name}: {note}" for note in archive.unread]
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds on a damaged file
        raise UserError(
            f"checkpoint in {str(target)!r} cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "state.json"
    try:
        with path.open(encoding="utf-8") as file:
            state = json.loads(file.read(_MOST_STATE))
    except FileNotFoundError:
        raise UserError(f"no checkpoint to resume from: expected {str(path)!r}, which training writes") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, dict) or not {"num_timesteps", "model"} <= state.keys():
        raise UserError(f"{str(path)!r}: expected a mapping with num_timesteps and model")
    for key in ("model", "replay_buffer"):
        if not isinstance(state.get(key, ""), str):
            raise UserError(f"{str(path)!r}: {key} {state[key]!r}: expected a file's name")
    for key in _COUNTERS:
        value, kinds = state.get(key, 0), (int, float) if key == "exploration_rate" else (int,)
        if type(value) not in kinds or not 0 <= value < math.inf:
            raise UserError(f"{str(path)!r}: {key} {value!r}: expected a number of at least 0")
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
    with zipfile.ZipFile(path) as stored:
        place = np.zeros(2, dtype=np.int64)
        _read_into(place, stored, "place")
        position, full = place.tolist()
        if not 0 <= position < buffer.buffer_size:
            raise ValueError(f"position {position} in a buffer of {buffer.buffer_size}")
        buffer.pos, buffer.full = position, bool(full)
        for name, part in _buffer_arrays(buffer):
            _read_into(part, stored, name)


def _read_into(part: NDArray[Any], stored: zipfile.ZipFile, name: str) -> None:
    """Fill an array with that of the same name, shape and type; numpy's own reader allocates whatever a file claims."""
    with stored.open(f"{name}.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} is not as numpy writes arrays")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if (shape, dtype, is_fortran) != (part.shape, part.dtype, False):
            raise ValueError(f"{name} has shape {shape} of {dtype}, where {part.shape} of {part.dtype} was expected")
        content = part.reshape(-1).view(np.uint8)  # the same memory: the first rows of an array in C's order
        done = 0
        while done < content.size and (read := member.read(min(_CHUNK, content.size - done))):
            content[done : done + len(read)] = np.frombuffer(read, np.uint8)
            done += len(read)
        if done < content.size or member.read(1):
            raise ValueError(f"{name} does not have the {part.nbytes} bytes of its shape")
