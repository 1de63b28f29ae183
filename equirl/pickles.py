"""What a pickle would do, read without doing it: its opcodes are followed on paper, and nothing is ever called."""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class MalformedPickleError(ValueError):
    """Bytes that are no pickle, or one that uses what `outline` does not follow."""


@dataclass(frozen=True)
class Global:
    """Something that the pickle imports by its name, for instance ``collections.OrderedDict``."""

    name: str


@dataclass(frozen=True, eq=False)
class Persistent:
    """Something that the pickle expects its reader to provide, such as torch's storages, by its key."""

    key: Any


@dataclass(eq=False)
class Call:
    """An object that the pickle makes by calling something; what it puts into it afterwards is in the other fields."""

    function: Any
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Outline:
    """What a pickle describes: the object, with every call as a `Call`, and the names that it imports."""

    value: Any
    names: tuple[str, ...]


def outline(pickle: bytes, most_opcodes: int = 1_000_000) -> Outline:
    """Return what a pickle describes, without importing or calling anything.

    Time and memory grow with the number of opcodes: a value that the pickle names twice is one object here. A key of a
    mapping that is neither a text nor a number becomes a `Persistent`, since it may take exponential time to hash.

    Raises:
        MalformedPickleError: no pickle, one that is cut off, too long, or has opcodes that no pickler writes any more.

    >>> import collections, pickle
    >>> outline(pickle.dumps([1, collections.OrderedDict])).names
    ('collections.OrderedDict',)
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if count >= most_opcodes:
                    raise MalformedPickleError(f"a pickle of more than {most_opcodes} opcodes")
                machine.step(opcode.name, argument)
        return Outline(machine.stack.pop(), tuple(dict.fromkeys(machine.names)))
    except MalformedPickleError:
        raise
    except Exception as error:  # whatever bytes can provoke in pickletools and in the stack
        raise MalformedPickleError(f"no readable pickle ({type(error).__name__})") from error


_PUSHED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONSTANTS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_CONSTANTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANTS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
_IGNORED = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}


class _Machine:
    """The stack machine that a pickle is written for. Sets are lists here, since their members may be unhashable."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: list[str] = []

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _PUSHED:
            stack.append(_PUSHED[opcode])
        elif opcode in _CONSTANTS:
            stack.append(argument)
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in {"PUT", "BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in {"GET", "BINGET", "LONG_BINGET"}:
            stack.append(self.memo[argument])
        elif opcode not in _IGNORED:
            handler = getattr(self, f"_{opcode.lower()}", None)
            if handler is None:
                raise MalformedPickleError(f"opcode {opcode}, which is not followed")
            handler(argument)

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _take(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count:
            raise MalformedPickleError("a stack that runs empty")
        del self.stack[-count:]
        return values

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()  # as the unpickler does, which keeps marks elsewhere than values
        else:
            self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        known = isinstance(module, str) and isinstance(name, str)
        self._name(*(module, name) if known else ("something", "computed"))

    def _name(self, module: str, name: str) -> None:
        # An attribute of an attribute, such as utils:os.system, must not look like a member of a submodule.
        whole = f"{module}{':' if '.' in name else '.'}{name}"
        self.names.append(whole)
        self.stack.append(Global(whole))

    def _inst(self, argument: str) -> None:
        arguments = tuple(self._since_mark())
        self._global(argument)
        self.stack.append(Call(self.stack.pop(), arguments))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._since_mark()
        self.stack.append(Call(function, tuple(arguments)))

    def _reduce(self, _: Any) -> None:
        call = Call(*self._take(2))
        if call.function == Global("cloudpickle.cloudpickle.subimport") and isinstance(call.arguments, tuple):
            self.names.extend(name for name in call.arguments if isinstance(name, str))
        self.stack.append(call)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        function, arguments, keywords = self._take(3)
        self.stack.append(Call(function, (arguments, keywords)))

    def _ext(self, argument: int) -> None:
        self._name("copyreg", f"extension {argument}")

    _ext1 = _ext2 = _ext4 = _ext

    def _persid(self, argument: str) -> None:
        self.stack.append(Persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Persistent(self.stack.pop()))

    def _next_buffer(self, _: Any) -> None:
        self.stack.append(Persistent("buffer"))

    def _build(self, _: Any) -> None:
        target, state = self._take(2)
        if isinstance(target, Call):
            target.states.append(state)
        self.stack.append(target)

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._take(3)))

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        self.stack.append(self._since_mark())
        pairs, self.stack[-1] = self.stack[-1], {}
        self._fill(pairs)

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.members if isinstance(target, Call) else target).extend(values)

    def _setitem(self, _: Any) -> None:
        self._fill(self._take(2))

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        for key, value in _pairs(pairs):
            items[key if isinstance(key, str | int | float | bytes | None) else Persistent(key)] = value


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise MalformedPickleError("a key without a value")
    return zip(values[::2], values[1::2], strict=True)
