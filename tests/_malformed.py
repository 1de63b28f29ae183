"""Zips that are not what SB3 writes, made out of one that is: each must be refused in one line."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch._utils import _rebuild_tensor_v2


class Made:
    """Pickled as a call, whatever of."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Stored:
    """Pickled as torch's storages are."""

    def __init__(self, kind=torch.FloatStorage, key="0", numel=4):
        self.key = ("storage", kind, key, "cpu", numel)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.key if isinstance(value, Stored) else None


def payload(canary: Path) -> Made:
    """Return an object that creates the canary when it is unpickled."""
    return Made(open, str(canary), "w")


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of these members; the keys are names or ZipInfos."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def saved(value, **kwargs) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    return file.getvalue()


def inner(value, storages=None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a `.pth` file with this pickle and these storages, each of four float32 unless given."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=2)
    pickler.fast = False
    pickler.dump(value)
    storages = {"0": bytes(16)} if storages is None else storages
    parts = {"archive/data.pkl": file.getvalue(), "archive/version": b"3\n"}
    return zipped(parts | {f"archive/data/{key}": content for key, content in storages.items()}, compression)


def tensor(size=(4,), stride=(1,), offset=0, stored=None, hooks=None) -> Made:
    stored = stored or Stored()
    return Made(_rebuild_tensor_v2, stored, offset, size, stride, False, OrderedDict() if hooks is None else hooks)


def raw_inner(content: bytes) -> bytes:
    """Return a `.pth` file whose pickle is these bytes."""
    return zipped({"archive/data.pkl": content, "archive/version": b"3\n"})


def patched(content: bytes, name: str, field: str, value: int, of: str = "policy.pth") -> bytes:
    """Return the zip with a field of a member's entry in the table of contents changed."""
    place = {
        "flags": (8, "<H"),
        "method": (10, "<H"),
        "compressed": (20, "<L"),
        "size": (24, "<L"),
        "start": (42, "<L"),
    }
    offset, form = place[field]
    start = content.index(b"PK\1\2")
    while content[start + 46 : start + 46 + len(name)] != name.encode():
        start = content.index(b"PK\1\2", start + 4)
    data = bytearray(content)
    struct.pack_into(form, data, start + offset, value)
    return bytes(data)


def _often() -> bytes:
    """Return 500 tensors of one storage that makes up most of the file."""
    stored = Stored(numel=100_000)
    return inner({f"{n}": tensor((100_000,), stored=stored) for n in range(500)}, {"0": bytes(400_000)})


def _slow_key() -> bytes:
    """Return a pickle of a mapping whose key is a tuple of tuples of tuples, whose hash takes 2 ** 60 steps."""
    return b"\x80\2}(" + b")" + b"2\x86" * 60 + b"K\1u."


def _wide(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value] * 100
    return value


def _deep(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _info(name: str, mode: int = 0o100600) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = mode << 16
    return info


def _link(name: str) -> zipfile.ZipInfo:
    return _info(name, 0o120777)


def malformed(content: bytes) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return, by name, what a message must mention and a function that makes the zip, given one that SB3 saved."""
    parts = members(content)
    plain = zipped(parts)
    data = json.loads(parts["data"])

    def extra(name: str | zipfile.ZipInfo, value: bytes = b"x") -> Callable[[], bytes]:
        return lambda: zipped({**parts, name: value})

    def with_data(value: bytes) -> Callable[[], bytes]:
        return lambda: zipped({**parts, "data": value})

    def with_json(**values) -> Callable[[], bytes]:
        return lambda: zipped({**parts, "data": json.dumps({**data, **values}).encode()})

    def policy(make: Callable[[], bytes], member: str = "policy.pth") -> Callable[[], bytes]:
        return lambda: zipped({**parts, member: make()})

    def flipped(name: str) -> Callable[[], bytes]:
        def make() -> bytes:
            start = plain.index(parts[name]) + len(parts[name]) // 2
            return plain[:start] + bytes([plain[start] ^ 1]) + plain[start + 1 :]

        return make

    def without(name: str) -> Callable[[], bytes]:
        return lambda: zipped({key: value for key, value in parts.items() if key != name})

    def renamed_inside() -> bytes:
        start = plain.index(b"policy.pth")
        return plain[:start] + b"pilocy.pth" + plain[start + 10 :]

    def twice() -> bytes:
        # A name of the same length written over another: zipfile warns of names that come twice.
        return zipped({**parts, "pilocy.pth": parts["policy.pth"]}).replace(b"pilocy.pth", b"policy.pth")

    def with_inside(name: str) -> bytes:
        return zipped({**members(parts["policy.pth"]), name: b"}."})

    def bit_inside() -> bytes:
        content, weight = parts["policy.pth"], weights[first].numpy().tobytes()
        start = content.index(weight)
        return content[:start] + bytes([weight[0] ^ 1]) + content[start + 1 :]

    def long_directory() -> bytes:
        infos = {}
        for number in range(140):
            infos[info := _info(f"x{number}")] = b""
            info.comment = b"c" * 65000
        return zipped({**parts, **infos})

    many = {f"{number}.bin": bytes(10**6) for number in range(90)}
    three = {f"{number}.bin": bytes(30_000_000) for number in range(3)}
    weights = torch.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
    first = next(iter(weights))

    table: dict[str, tuple[str, Callable[[], bytes]]] = {
        "empty file": ("empty", lambda: b""),
        "one byte": ("zip", lambda: b"P"),
        "text": ("zip", lambda: b"a model\n" * 40),
        "signature only": ("zip", lambda: b"PK\5\6"),
        "zip of nothing": ("data", lambda: zipped({})),
        "first half": ("zip", lambda: plain[: len(plain) // 2]),
        "last byte lost": ("zip", lambda: plain[:-1]),
        "first bytes lost": ("", lambda: plain[100:]),
        "directory only": ("", lambda: plain[plain.index(b"PK\1\2") :]),
        "bit of data": ("data", flipped("data")),
        "bit of policy.pth": ("policy.pth", flipped("policy.pth")),
        "bit of optimizer": ("policy.optimizer.pth", flipped("policy.optimizer.pth")),
        "no data": ("data", without("data")),
        "no policy": ("policy.pth", without("policy.pth")),
        "data empty": ("data", with_data(b"")),
        "data not UTF-8": ("UTF-8", with_data(b'{"a": "\xff"}')),
        "data not JSON": ("JSON", with_data(b"{'a': 1}")),
        "data cut off": ("JSON", with_data(parts["data"][:-5])),
        "data a list": ("data", with_data(b"[1, 2]")),
        "data a text": ("data", with_data(b'"policy"')),
        "data null": ("data", with_data(b"null")),
        "data very deep": ("data", with_data(b"[" * 200_000)),
        "data rather deep": ("data", with_data(b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}")),
        "data huge whole number": ("huge", with_data(b'{"seed": ' + b"9" * 5000 + b"}")),
        "data long whole number": ("huge", with_json(seed=2**70)),
        "data huge real number": ("huge", with_data(b'{"gamma": 1e999}')),
        "data key twice": ("gamma", with_data(b'{"gamma": 1, "gamma": 2}')),
        "data too long": ("data", with_data(b'{"a": "' + b"a" * 17 * 2**20 + b'"}')),
        "absolute name": ("/etc/x", extra(_info("/etc/x"))),
        "name that climbs": ("../x", extra(_info("../x"))),
        "name that climbs later": ("a/../../x", extra(_info("a/../../x"))),
        "drive": ("C:x", extra(_info("C:x"))),
        "backslash": ("a", extra(_info("a\\..\\x"))),
        "NUL in a name": ("policy", extra(_info("policy.opt\0.pth"))),
        "escape in a name": ("x1b", extra(_info("\x1b[2Jx"))),
        "line break in a name": ("a", extra(_info("a\nb"))),
        "link": ("link", extra(_link("policy.link"), b"/etc/passwd")),
        "link as data": ("data", lambda: zipped({_link("data") if k == "data" else k: v for k, v in parts.items()})),
        "pipe": ("device", extra(_info("pipe", 0o010600))),
        "folder": ("folder", extra(_info("folder/", 0o040700), b"")),
        "member twice": ("policy.pth", twice),
        "encrypted": ("encrypted", lambda: patched(plain, "policy.pth", "flags", 1)),
        "bzip2": ("method", lambda: zipped(parts, zipfile.ZIP_BZIP2)),
        "LZMA": ("method", lambda: zipped(parts, zipfile.ZIP_LZMA)),
        "unknown compression": ("method", lambda: patched(plain, "policy.pth", "method", 77)),
        "stored but said deflated": ("policy.pth", lambda: patched(plain, "policy.pth", "method", 8)),
        "bomb": ("expands", lambda: zipped({**parts, "policy.pth": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)),
        "bomb beside": ("expands", lambda: zipped({**parts, **three}, zipfile.ZIP_DEFLATED)),
        "bomb in parts": ("it expands", lambda: zipped({**parts, **many}, zipfile.ZIP_DEFLATED)),
        "size too small": ("policy.pth", lambda: patched(plain, "policy.pth", "size", 10)),
        "size too large": ("policy.pth", lambda: patched(plain, "policy.pth", "size", 2**20)),
        "size a little too large": ("declares", lambda: patched(plain, "policy.pth", "size", 5000)),
        "size of GiB": ("policy.pth", lambda: patched(plain, "policy.pth", "size", 2**31)),
        "start elsewhere": ("policy.pth", lambda: patched(plain, "policy.pth", "start", 2**30)),
        "start of another": ("overlap", lambda: patched(plain, "policy.pth", "start", 0)),
        "other name inside": ("policy.pth", renamed_inside),
        "many members": ("members", lambda: zipped({**parts, **{f"{n}.txt": b"" for n in range(3000)}})),
        "long directory": ("contents", long_directory),
        "policy empty": ("policy.pth", policy(lambda: b"")),
        "policy text": ("policy.pth", policy(lambda: b"weights")),
        "policy legacy": ("policy.pth", policy(lambda: saved(weights, _use_new_zipfile_serialization=False))),
        "policy pickle": ("policy.pth", policy(lambda: pickle.dumps({"a": 1}))),
        "policy list": ("policy.pth", policy(lambda: saved([torch.ones(2)]))),
        "policy tensor": ("policy.pth", policy(lambda: saved(torch.ones(2)))),
        "policy None": ("policy.pth", policy(lambda: saved(None))),
        "policy number": ("policy.pth", policy(lambda: saved({"a": 1.0}))),
        "policy numbered": ("policy.pth", policy(lambda: saved({1: torch.ones(2)}))),
        "policy nested": ("policy.pth", policy(lambda: saved({"a": {"b": torch.ones(2)}}))),
        "policy names code": ("print", policy(lambda: inner({"a": Made(print, "run")}))),
        "policy is code": ("print", policy(lambda: inner(Made(print, "run")))),
        "policy global": ("print", policy(lambda: inner({"a": print}))),
        "optimizer names code": ("policy.optimizer.pth", policy(lambda: inner(Made(print)), "policy.optimizer.pth")),
        "variables name code": ("pytorch_variables.pth", policy(lambda: inner(Made(print)), "pytorch_variables.pth")),
        "optimizer list": ("policy.optimizer.pth", policy(lambda: saved([1]), "policy.optimizer.pth")),
        "sparse": ("_sparse", policy(lambda: saved({"a": torch.eye(2).to_sparse()}))),
        "complex": ("Complex", policy(lambda: saved({"a": torch.ones(2, dtype=torch.complex64)}))),
        "meta": ("policy.pth", policy(lambda: saved({"a": torch.ones(2, device="meta")}))),
        "not a number": (first, policy(lambda: saved({**weights, first: weights[first] * float("nan")}))),
        "infinite": (first, policy(lambda: saved({**weights, first: weights[first] / 0}))),
        "beyond its storage": ("beyond", policy(lambda: inner({"a": tensor((5,))}))),
        "far beyond its storage": ("beyond", policy(lambda: inner({"a": tensor((2**40,))}))),
        "offset beyond": ("beyond", policy(lambda: inner({"a": tensor((4,), offset=1)}))),
        "negative size": ("described", policy(lambda: inner({"a": tensor((-4,))}))),
        "negative stride": ("described", policy(lambda: inner({"a": tensor((4,), (-1,))}))),
        "size of reals": ("described", policy(lambda: inner({"a": tensor((4.0,))}))),
        "no stride": ("described", policy(lambda: inner({"a": tensor((4,), ())}))),
        "many axes": ("described", policy(lambda: inner({"a": tensor((1,) * 1000, (1,) * 1000)}))),
        "one number for many": ("overlaps", policy(lambda: inner({"a": tensor((2**30,), (0,))}))),
        "overlap": ("overlaps", policy(lambda: inner({"a": tensor((2, 2), (1, 1))}))),
        "storage that is short": ("storage", policy(lambda: inner({"a": tensor()}, {"0": bytes(12)}))),
        "storage of GiB": ("storage", policy(lambda: inner({"a": tensor((2**31,), stored=Stored(numel=2**31))}))),
        "no storage": ("storage", policy(lambda: inner({"a": tensor()}, {}))),
        "storage by path": ("storage", policy(lambda: inner({"a": tensor(stored=Stored(key="../version"))}))),
        "same weights often": ("times", policy(_often)),
        "bytes of TiB": ("bytearray", policy(lambda: inner({"a": Made(bytearray, 2**40)}))),
        "deep": ("deep", policy(lambda: inner({"a": _deep(200)}))),
        "wide": ("values", policy(lambda: inner({"a": _wide(7)}))),
        "key that takes for ever": ("key", policy(lambda: raw_inner(_slow_key()))),
        "pickle cut off": ("policy.pth", policy(lambda: raw_inner(b"\x80\2}q\0X"))),
        "pickle of opcodes": ("opcodes", policy(lambda: raw_inner(b"\x80\2" + b"N0" * 600_000 + b"}."))),
        "pickle of noise": ("policy.pth", policy(lambda: raw_inner(bytes(range(256))))),
        "pickle of nothing": ("policy.pth", policy(lambda: raw_inner(b""))),
        "no data.pkl": ("data.pkl", policy(lambda: zipped({"archive/version": b"3"}))),
        "deflated inside": ("compressed", policy(lambda: inner({"a": tensor()}, None, zipfile.ZIP_DEFLATED))),
        "bomb inside": ("compressed", policy(lambda: inner({}, {"0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED))),
        "half inside": ("policy.pth", policy(lambda: parts["policy.pth"][: len(parts["policy.pth"]) // 2])),
        "tail inside": ("policy.pth", policy(lambda: parts["policy.pth"] + b"tail")),
        "head inside": ("policy.pth", policy(lambda: b"PK\3\4" + parts["policy.pth"])),
        "TorchScript": ("constants", policy(lambda: with_inside("archive/constants.pkl"))),
        "quantised": ("_rebuild_qtensor", policy(lambda: inner({"a": Made(torch._utils._rebuild_qtensor, 1)}))),
        "twice inside": ("twice", policy(lambda: with_inside("data.pkl"))),
        "folders inside": ("policy.pth", policy(lambda: zipped({"archive/data.pkl": b"N.", "archive/../x": b""}))),
        "bit inside": ("policy.pth", policy(bit_inside)),
    }  # fmt: skip
    return table


def corpus(folder: Path, content: bytes) -> dict[str, Path]:
    """Write the malformed zips into a folder, each into one of its own, and return their paths by name."""
    paths = {}
    for number, (name, (_, make)) in enumerate(malformed(content).items()):
        paths[name] = folder / f"{number:03}" / "model.zip"
        paths[name].parent.mkdir(parents=True)
        paths[name].write_bytes(make())
    return paths
