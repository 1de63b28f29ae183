"""Acting and gradient steps as CUDA graphs: recorded once, then replayed whole.

On a GPU a small network costs what it takes to launch its operations one by one. A graph launches them together: it
does again, on the same memory, what was done while it was recorded. Weights and optimizer states stay where they are,
so that what else is written to them is seen; inputs are copied to where the graph reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Adam, Optimizer

from equirl._chains import hooked
from equirl._representation import Tree, eager
from equirl.errors import UserError
from equirl.methods import NATIVE
from equirl.symmetrizers import Equitune, Equizero, LambdaEquitune, tree_map

BEFORE = 3
"""Calls of a function that are taken as they are: libraries choose their kernels, tables are made."""
DEVICE = "cuda"
METHODS = (Equitune.method, Equizero.method, LambdaEquitune.method, NATIVE)
"""Those that do the same operations whatever the numbers are."""


class Recording(NamedTuple):
    """One function of inputs of one shape."""

    held: list[Any]  # where what it reads and writes beside its inputs lies
    inputs: tuple[Tree, ...]
    replay: Callable[[], Tensor]

    def __call__(self, *inputs: Tree) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            tree_map(mine, lambda there, here: there.copy_(here), given)
        return self.replay()


class Recordings:
    """What agents of action values do again and again, as graphs: one for each function and shape of its inputs.

    A function must do the same operations whatever the numbers are. Its first `BEFORE` calls are taken as they are; a
    graph whose weights or optimizer states lie elsewhere by now is made anew. Copies of an agent start without graphs.

    Args:
        nets: the networks whose weights the functions read.
        method: of their symmetrizers.
        optimizer: of the first of them.
    """

    def __init__(self, nets: Sequence[nn.Module], method: str, optimizer: Optimizer) -> None:
        self.nets, self.method, self.optimizer = tuple(nets), method, optimizer
        self.made: dict[Hashable, int | Recording] = {}
        self.rate = torch.zeros((), device=next(nets[0].parameters()).device)
        self.rate_is: float | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # graphs are of these tensors

    def acts(self) -> bool:
        """Return whether what the networks compute can be recorded: on a GPU, heard by nobody, not under autocast."""
        device = next(self.nets[0].parameters()).device.type
        return (
            device == DEVICE
            and self.method in METHODS
            and eager(device)
            and not modules._has_any_global_hook()  # type: ignore[no-untyped-call]
            and not any(hooked(part) for net in self.nets for part in net.modules())
        )

    def learns(self) -> bool:
        """Return whether gradient steps can be recorded too: those of fused Adam, whose counters are on the device."""
        groups = self.optimizer.param_groups
        fused = type(self.optimizer) is Adam and len(groups) == 1 and bool(groups[0]["fused"])
        listened = (p._backward_hooks or p._post_accumulate_grad_hooks for p in self.nets[0].parameters())
        return fused and self.acts() and not any(listened)

    def __call__(self, function: Callable[..., Tensor], *inputs: Tree, constants: Hashable = None) -> Tensor:
        """Return what a function of tensors returns, as it is or by its graph.

        Args:
            function: of the inputs, which it leaves as they are.
            inputs: tensors, or dictionaries of them.
            constants: what else the function depends on.

        Raises:
            UserError: the function cannot be recorded.
        """
        if not self.acts():
            return function(*inputs)
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *(net.training for net in self.nets))
        key = (function.__name__, *map(_shapes, inputs), constants, modes)
        known = self.made.get(key, 0)
        if isinstance(known, Recording) and known.held == self._held():
            return known(*inputs)
        if isinstance(known, int) and known < BEFORE:
            self.made[key] = known + 1
            return beside(lambda: function(*inputs))
        with torch.inference_mode(False):  # they are written to in all modes
            own = tuple(tree_map(each, torch.clone) for each in inputs)
        try:
            made = self.made[key] = Recording(self._held(), own, record(lambda: function(*own)))
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"recording a CUDA graph failed: {reason}: expected layers that read no number back, or no compile()"
            ) from error
        return made(*inputs)

    def step(self, function: Callable[..., Tensor], *inputs: Tree, constants: Hashable = None) -> Tensor:
        """Return the same of a function that takes a gradient step."""
        if not self.learns():
            return function(*inputs)
        (group,) = self.optimizer.param_groups
        settings = tuple((name, each) for name, each in group.items() if name not in ("params", "lr"))
        if group["lr"] != self.rate_is:  # SB3 sets a number; graphs read it from the device
            self.rate_is = group["lr"]
            self.rate.fill_(self.rate_is)
        with _capturable(group, self.rate):
            return self(function, *inputs, constants=(constants, settings))

    def _held(self) -> list[Any]:
        states = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [each for net in self.nets for each in (*net.parameters(), *net.buffers())]
        return [(each.data_ptr(), each.requires_grad) for each in (*tensors, *states)]


def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return what does again what a function does, without doing it yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output.clone()  # the graph writes there again

    return replay


def beside(function: Callable[[], Tensor]) -> Tensor:
    """Return what a function returns, done on a stream of its own, as what is recorded later will be."""
    here, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        output = function()
    here.wait_stream(stream)
    output.record_stream(here)  # its memory belongs to the other stream
    return output


@contextmanager
def _capturable(group: dict[str, Any], rate: Tensor) -> Iterator[None]:
    """Let Adam take its learning rate from the device, as graphs need it; a file that said so would need a GPU."""
    kept = {name: group[name] for name in ("capturable", "lr")}
    group.update(capturable=True, lr=rate)
    try:
        yield
    finally:
        group.update(kept)


def _shapes(tree: Tree) -> Hashable:
    parts = tree.items() if isinstance(tree, dict) else [("", tree)]
    return tuple((key, part.shape, part.dtype) for key, part in parts)
