"""What is inside a zip that SB3's ``model.save()`` wrote, read without running anything that it holds.

SB3 stores a model as JSON, whose values may be pickles, and as tensors. A pickle is a program: `read_archive` leaves
all of them aside, and gives plain values, the texts that SB3 writes beside each pickle, and tensors.
"""

from __future__ import annotations

import json
import math
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch

from equirl.archive_fit import check_fit, load_parameters
from equirl.archive_notes import notes
from equirl.archive_tensors import MOST_DIRECTORY_BYTES, directory, read_tensors, shown
from equirl.errors import UserError

__all__ = ["Archive", "check_fit", "load_parameters", "read_archive"]

MOST_MEMBERS = 100  # SB3 writes fewer than ten
MOST_DATA_BYTES = 16 * 2**20  # JSON takes some twenty times its size in memory
MOST_BYTES = 16 * 2**30  # of all members together
MOST_EXPANSION = 100  # of a member above 1 MiB
MOST_EXPANSION_IN_ALL = 20  # of a zip above 64 MiB; SB3 compresses nothing, and weights hardly shrink
MOST_DEPTH = 50
VARIABLES = ("pytorch_variables.pth", "tensors.pth")  # the second before SB3 0.9
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Archive:
    """What a zip of SB3 holds, but for its pickles.

    Attributes:
        path: the file.
        data: the attributes of the model that are plain JSON.
        twins: for each pickled attribute the texts that SB3 writes beside it; nothing proves that they agree with it.
        parameters: state dicts by the names that SB3's ``set_parameters`` takes, such as "policy.optimizer".
        variables: tensors that belong to no state dict, such as SAC's "log_ent_coef".
        version: of the SB3 that wrote it; empty where it does not say.
        unread: notes on what SB3 does not usually write; none of it was read.
    """

    path: Path
    data: Mapping[str, Any]
    twins: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, torch.Tensor]
    version: str
    unread: list[str]


def read_archive(path: str | Path) -> Archive:
    """Return what a zip of SB3 holds, without running or extracting anything, in memory bounded by the zip's size.

    Raises:
        UserError: a file that cannot be read or is not what SB3 writes; it names the member. Nothing else is raised.
    """
    path = Path(path)
    try:
        if not path.is_file():
            near = f"; did you mean {path}.zip?" if Path(f"{path}.zip").is_file() else ""
            raise UserError(f"{'a folder' if path.is_dir() else 'no such file'}: expected a zip that SB3 saved{near}")
        with path.open("rb") as file:
            return _read(path, file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # whatever bytes, and the file system, can provoke
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise UserError(f"{path}: it cannot be read ({reason}): expected a whole zip that SB3 saved") from error


def _read(path: Path, file: IO[bytes]) -> Archive:
    with _Zip(file) as members:
        for name in ("data", "policy.pth"):
            if name not in members.infos:
                raise UserError(f"it has no member {name!r}: expected a zip that SB3 saved")
        data, pickles, twins = _read_data(members.read("data", MOST_DATA_BYTES))
        version = ""
        if "_stable_baselines3_version" in members.infos:
            text = members.read("_stable_baselines3_version", 1000).decode("ascii", "replace").strip()
            version = text if re.fullmatch(r"[\w.+-]{1,40}", text) else ""
        parameters: dict[str, Mapping[str, Any]] = {}
        variables: dict[str, torch.Tensor] = {}
        for name in members.infos:
            if name in VARIABLES:
                content = members.read(name)
                read = read_tensors(content, name) if content else None
                variables |= _tensors(read if read is not None else {}, name)
            elif name.endswith(".pth"):
                read = read_tensors(members.read(name), name)
                state = isinstance(read, dict) and set(read) == {"state", "param_groups"}
                parameters[name.removesuffix(".pth")] = read if state else _tensors(read, name)
        return Archive(path, data, twins, parameters, variables, version, notes(members.infos, pickles))


class _Zip:
    """The members of a zip, whose table of contents has been checked."""

    def __init__(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        if not size:
            raise UserError("it is empty: expected a zip that SB3 saved")
        file.seek(max(0, size - 2**16 - 22 - 76))
        if directory(file.read())[0] > MOST_DIRECTORY_BYTES:
            raise UserError("its table of contents is too long: expected a zip that SB3 saved")
        file.seek(0)
        self.zip = zipfile.ZipFile(file)
        infos = self.zip.infolist()
        if len(infos) > MOST_MEMBERS:
            raise UserError(f"it has {len(infos)} members: expected at most {MOST_MEMBERS}; SB3 writes fewer than ten")
        self.infos: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            _check_member(info)
            if info.filename in self.infos:
                raise UserError(f"member {shown(info.filename)} comes twice")
            self.infos[info.filename] = info
        declared, most = sum(info.file_size for info in infos), min(MOST_BYTES, 2**26 + MOST_EXPANSION_IN_ALL * size)
        if declared > most:
            largest = max(infos, key=lambda info: info.file_size).filename
            raise UserError(
                f"it expands to {declared} bytes, most of them in {shown(largest)}: expected at most {most}"
            )
        for one, other in pairwise(sorted(infos, key=lambda info: info.header_offset)):
            if one.header_offset + 30 + one.compress_size > other.header_offset:
                raise UserError(f"members {shown(one.filename)} and {shown(other.filename)} overlap")

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """Return the content of a member, never more than it declares."""
        info = self.infos[name]
        if info.file_size > most:
            raise UserError(f"member {name!r} has {info.file_size} bytes: expected at most {most}")
        try:
            with self.zip.open(info) as member:
                content = member.read(info.file_size)
        except Exception as error:  # zipfile raises a dozen kinds for broken members
            raise UserError(f"member {name!r} is broken ({shown(str(error))}): expected a whole zip") from error
        if len(content) != info.file_size:
            raise UserError(f"member {name!r} has {len(content)} bytes and declares {info.file_size}")
        return content


def _check_member(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    folder = name.endswith("/") or kind == stat.S_IFDIR
    if not name or name.startswith("/") or ".." in name.split("/") or _DRIVE.match(name):
        problem = "leads out of the zip"
    elif "\\" in name or not name.isprintable():
        problem = "has a character that SB3 does not write"
    elif folder or kind not in (0, stat.S_IFREG):
        problem = "is a folder" if folder else "is a link or a device"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = f"is compressed by method {info.compress_type}, which is neither stored nor deflated"
    elif info.file_size > MOST_EXPANSION * max(info.compress_size, 2**20 // MOST_EXPANSION):
        problem = f"expands {info.compress_size} bytes to {info.file_size}, more than {MOST_EXPANSION} times"
    else:
        return
    raise UserError(f"member {shown(name)} {problem}: expected a zip that SB3 saved")


def _read_data(content: bytes) -> tuple[dict[str, Any], dict[str, object], dict[str, dict[str, Any]]]:
    """Return the plain values, the texts of the pickles, and what stands beside these."""
    try:
        values = json.loads(
            content.decode("utf-8"), parse_int=_whole, parse_float=_real, object_pairs_hook=_without_repeats
        )
    except UserError as error:
        raise UserError(f"member 'data': {error}") from error
    except RecursionError:
        raise UserError(f"member 'data' is nested too deep: expected at most {MOST_DEPTH} levels") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise UserError(f"member 'data' is no {kind} ({shown(str(error))})") from error
    if not isinstance(values, dict):
        raise UserError(f"member 'data' is a {type(values).__name__}: expected a mapping from names to values")
    _check_depth(values)
    pickled = {key for key, value in values.items() if isinstance(value, dict) and ":serialized:" in value}
    data = {key: value for key, value in values.items() if key not in pickled}
    pickles = {key: values[key].pop(":serialized:") for key in values if key in pickled}
    return data, pickles, {key: values[key] for key in pickles}


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**64:
        raise UserError("it has a huge number: expected at most 64 bits")
    return int(text)


def _real(text: str) -> float:
    # The words Infinity and NaN do not come here: SB3 writes them, for instance for max_grad_norm.
    if not math.isfinite(float(text)):
        raise UserError(f"it has a huge number, {shown(text)}: expected one of double precision")
    return float(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UserError(f"it names {shown(twice)} twice")
    return items


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(MOST_DEPTH):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise UserError(f"member 'data' is nested too deep: expected at most {MOST_DEPTH} levels")


def _tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict):
        raise UserError(f"{name}: it holds a {type(value).__name__}: expected a mapping from names to tensors")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{name}: {shown(key)} is a {type(tensor).__name__}: expected names and tensors")
    return value
