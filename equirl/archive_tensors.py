"""Tensors from a `.pth` file that nobody vouches for.

`torch.load(weights_only=True)` runs no code, but it takes sizes and a zip's directory from the file. What the file
claims is therefore compared with what it holds before torch sees it.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zipfile
from typing import Any

import torch

from equirl.errors import UserError
from equirl.pickles import Call, Global, MalformedPickleError, Persistent, outline

MOST_DIRECTORY_BYTES = 8 * 2**20  # of a zip's table of contents: about 100,000 members
MOST_PICKLE_BYTES = 16 * 2**20
MOST_VIEWS = 8  # SB3 stores a shared features extractor three times
MOST_DEPTH = 8
MOST_VALUES = 500_000  # counted as often as they are reached: a list may hold another many times
_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d+"
)
_KINDS = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


def shown(value: object) -> str:
    """Return a value from a file for a message: of bounded length, and without characters that move a cursor."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def directory(tail: bytes) -> tuple[int, int, int]:
    """Return size, offset and distance from the end of the table of contents, given the last bytes of a zip.

    Raises:
        UserError: no zip ends there.
    """
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise UserError("no zip ends here: expected a whole zip that SB3 saved")
    size, offset = struct.unpack_from("<LL", tail, end + 12)
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\6\7" and tail[end - 76 : end - 72] == b"PK\6\6":
        size, offset = struct.unpack_from("<QQ", tail, end - 36)
        end -= 76
    return size, offset, len(tail) - end


def read_tensors(raw: bytes, where: str) -> Any:
    """Return what `torch.save` wrote: mappings, lists and numbers with tensors of finite numbers on the CPU.

    Args:
        raw: the content of the `.pth` file.
        where: how messages call it.

    Raises:
        UserError: anything but a file of plain, dense tensors; no other exception leaves.

    >>> file = io.BytesIO()
    >>> torch.save({"weight": torch.ones(2)}, file)
    >>> read_tensors(file.getvalue(), "policy.pth")
    {'weight': tensor([1., 1.])}
    """
    try:
        records, pickle = _records(raw)
        _Vetting(records, len(raw)).check(outline(pickle).value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        return _plain(value, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except MalformedPickleError as error:
        raise UserError(f"{where}: it holds {error}: expected what torch.save writes") from error
    except Exception as error:  # whatever bytes can provoke in zipfile and torch
        reason = shown(str(error).split("\n")[0])
        raise UserError(f"{where}: torch does not read it as weights ({type(error).__name__}: {reason})") from error


def _records(raw: bytes) -> tuple[dict[str, int], bytes]:
    """Return the sizes of the storages, and the pickle that says what they are, of a zip that torch has written."""
    if not raw.startswith(b"PK\3\4"):
        raise UserError("it is no zip: expected one, as torch writes since version 1.6; before, it wrote bare pickles")
    size, offset, distance = directory(raw[-(22 + 76) :])
    # torch reads the zip with another library: where nothing is left to choose, both find the same.
    plain = raw[-22:-18] == b"PK\5\6" and offset + size + distance == len(raw)
    plain = plain and (distance == 22 or struct.unpack_from("<Q", raw, len(raw) - 34)[0] == len(raw) - distance)
    if not plain or size > MOST_DIRECTORY_BYTES:
        raise UserError("its table of contents is not at its end: expected a zip as torch writes it")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        infos = archive.infolist()
        root = infos[0].filename.split("/")[0] if infos else ""
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.orig_filename.removeprefix(f"{root}/")
            if not _MEMBER.fullmatch(name):
                raise UserError(f"its member {shown(info.orig_filename)} is nothing that torch.save writes")
            if name in members:
                raise UserError(f"its member {shown(name)} comes twice")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise UserError(
                    f"its member {shown(name)} is compressed or encrypted: expected it stored, as torch does"
                )
            members[name] = info
        if sum(info.file_size for info in infos) > len(raw):
            raise UserError("its members overlap")
        if "data.pkl" not in members or members["data.pkl"].file_size > MOST_PICKLE_BYTES:
            raise UserError("it has no data.pkl of a sensible size: expected a file that torch.save wrote")
        pickle = archive.read(members["data.pkl"])
        for info in infos:
            with archive.open(info) as member:  # reads the local header, and all of it checks the sum
                while member.read(2**20):
                    pass
    return {name[5:]: info.file_size for name, info in members.items() if name.startswith("data/")}, pickle


class _Vetting:
    """Walks over what a file claims and raises a `UserError` where it is anything but plain dense tensors."""

    def __init__(self, records: dict[str, int], size: int) -> None:
        self.records = records
        self.left = MOST_VIEWS * size
        self.values = MOST_VALUES

    def check(self, value: Any, depth: int = 0) -> None:
        self.values -= 1
        if self.values < 0:
            raise UserError(f"it describes more than {MOST_VALUES} values")
        if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**63):
            return
        if depth > MOST_DEPTH:
            raise UserError(f"it is nested more than {MOST_DEPTH} deep")
        if isinstance(value, list | tuple):
            for part in value:
                self.check(part, depth + 1)
        elif isinstance(value, dict):
            self._mapping(value, depth)
        elif isinstance(value, Call):
            self._call(value, depth)
        elif isinstance(value, Global):
            raise UserError(_code(value))
        else:
            raise UserError(f"it holds {type(value).__name__}: expected tensors, numbers and texts")

    def _mapping(self, items: dict[Any, Any], depth: int) -> None:
        for key, part in items.items():
            if isinstance(key, Persistent):
                raise UserError("a key of a mapping is neither a text nor a number")
            self.check(part, depth + 1)

    def _call(self, call: Call, depth: int) -> None:
        name = call.function.name if isinstance(call.function, Global) else None
        if name == "collections.OrderedDict" and call.arguments == () and not call.members:
            self._mapping(call.items, depth)
            for state in call.states:  # the versions of the modules, which state_dict() writes beside the tensors
                self.check(state, depth + 1)
        elif call.items or call.members or call.states:
            raise UserError("it changes an object after making it: expected plain tensors")
        elif name == "torch._utils._rebuild_parameter" and isinstance(call.arguments, tuple) and call.arguments:
            tensor, *rest = call.arguments
            if not isinstance(tensor, Call) or tensor.function != Global("torch._utils._rebuild_tensor_v2"):
                raise UserError("a parameter is no plain tensor")
            self.check(tensor, depth + 1)
            self.check(rest, depth + 1)
        elif name == "torch._utils._rebuild_tensor_v2":
            self._tensor(call.arguments, depth)
        else:
            raise UserError(_code(call.function))

    def _tensor(self, arguments: Any, depth: int) -> None:
        try:
            storage, offset, size, stride, requires_grad, *rest = arguments
            _, kind, key, _, numel = storage.key
            dtype = _KINDS[kind.name.removeprefix("torch.").removesuffix("Storage")]
            whole = all(type(n) is int and 0 <= n < 2**62 for n in (offset, numel, *size, *stride))
            valid = whole and len(size) == len(stride) <= 16 and isinstance(size, tuple) and isinstance(stride, tuple)
            valid = valid and isinstance(requires_grad, bool) and isinstance(key, str)
        except KeyError:
            raise UserError(f"a tensor is stored as {shown(kind.name)}: expected real or whole numbers") from None
        except (AttributeError, TypeError, ValueError):
            valid = False
        if not valid:
            raise UserError("a tensor is not described as torch.save does")
        self.check(rest, depth + 1)
        if self.records.get(key) != numel * dtype.itemsize:
            raise UserError(f"a tensor claims {numel} numbers in storage {shown(key)}, which does not hold as many")
        reach = 0
        for step, count in sorted((step, count) for step, count in zip(stride, size, strict=True) if count > 1):
            if step <= reach and math.prod(size):
                raise UserError(f"a tensor of shape {shown(size)} overlaps itself")
            reach += step * (count - 1)
        if math.prod(size) and offset + reach >= numel:
            raise UserError(f"a tensor of shape {shown(size)} reaches beyond its storage of {numel} numbers")
        self.left -= math.prod(size) * dtype.itemsize
        if self.left < 0:
            raise UserError(f"its tensors claim more than {MOST_VIEWS} times what it holds")


def _code(function: Any) -> str:
    name = shown(function.name) if isinstance(function, Global) else "something computed"
    if isinstance(function, Global) and function.name.startswith("torch._utils._rebuild"):
        return f"it has a tensor made by {name}: expected plain dense tensors"
    return f"it names {name}, which is Python code and was not run: expected plain tensors"


def _plain(value: Any, name: str) -> Any:
    """Return the value with its tensors detached; raise a `UserError` for numbers that are not finite."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
            raise UserError(f"{shown(name)} is no dense tensor of real numbers")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{shown(name)} has numbers that are not finite: an agent cannot act by these")
        return tensor
    if isinstance(value, dict):
        return {key: _plain(part, f"{name}.{key}" if name else f"{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part, f"{name}.{place}") for place, part in enumerate(value))
    return value
