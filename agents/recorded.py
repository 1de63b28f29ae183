"""Acting and gradient steps as CUDA graphs: recorded once, then replayed whole.

On a GPU a small network costs what it takes to launch its operations one by one. A graph launches them together: it
does again, on the same memory, what was done while it was recorded. Weights and optimizer states stay where they are,
so that what else is written to them is seen; inputs are copied to where the graph reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import Adam, Optimizer
from torch.optim import optimizer as optimizers

from equirl._chains import hooked
from equirl._representation import Tree, eager
from equirl.errors import UserError, first_line
from equirl.methods import NATIVE
from equirl.symmetrizers import Equitune, Equizero, LambdaEquitune, tree_map

if TYPE_CHECKING:
    from equirl.agents.values import SymmetricValuePolicy

BEFORE = 3
"""Calls of a function that are taken as they are: libraries choose their kernels, tables are made."""
MOST = 16
"""Graphs of one agent; functions of further shapes are done as they are."""
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

    A function must do the same operations whatever the numbers are. Its first `BEFORE` calls are taken as they are. A
    graph is made anew where the networks have other layers, or weights and optimizer states that lie elsewhere; what
    layers are set to (a rate of dropout, say) is not looked at again. Copies and files of an agent have no graphs.

    Args:
        policy: whose networks and optimizer the functions use.
    """

    def __init__(self, policy: SymmetricValuePolicy) -> None:
        self.policy = policy
        self.made: dict[Hashable, int | Recording] = {}
        self.place: torch.device | None = None  # of all graphs, with their stream and pool of memory
        self.on: Any = None
        self.rate: Tensor | None = None
        self.rate_is: float | None = None

    def __reduce__(self) -> Any:
        return type(None), ()  # graphs are of these tensors

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.policy.nets[0].parameters()).device

    def acts(self) -> bool:
        """Return whether what the networks compute can be recorded: on a GPU, heard by nobody, not under autocast."""
        device = self.device.type
        return (
            device == DEVICE
            and self.policy.method in METHODS
            and eager(device)
            and not modules._has_any_global_hook()  # type: ignore[no-untyped-call]
            and not any(hooked(part) for part in _parts(self.policy))
        )

    def learns(self) -> bool:
        """Return whether gradient steps can be recorded too: those of fused Adam, whose counters are on the device."""
        optimizer = self.policy.optimizer
        if type(optimizer) is not Adam or len(optimizer.param_groups) > 1 or not optimizer.param_groups[0]["fused"]:
            return False
        listened = (p._backward_hooks or p._post_accumulate_grad_hooks for p in self.policy.nets[0].parameters())
        return self.acts() and not _listened_to(optimizer) and not any(listened)

    def __call__(self, function: Callable[..., Tensor], *inputs: Tree) -> Tensor:
        """Return what a function of tensors returns, as it is or by its graph.

        Args:
            function: of the inputs, which it leaves as they are.
            inputs: tensors, or dictionaries of them.

        Raises:
            UserError: the function cannot be recorded.
        """
        if not self.acts():
            return function(*inputs)
        self._settle()
        return self._done(function, inputs, [], None)

    def step(self, function: Callable[..., Tensor], *inputs: Tree, constants: Hashable = None) -> Tensor:
        """Return the same of a function that takes a gradient step, where `learns` says that it can be recorded.

        Args:
            function: as above.
            inputs: likewise.
            constants: what else the function depends on.
        """
        optimizer = self.policy.optimizer
        (group,) = optimizer.param_groups
        settings = tuple((name, each) for name, each in group.items() if name not in ("params", "lr"))
        self._settle()
        if self.rate is None or group["lr"] != self.rate_is:  # SB3 sets a number; graphs read it from the device
            self.rate_is = group["lr"]
            self.rate = torch.zeros((), device=self.place) if self.rate is None else self.rate
            self.rate.fill_(self.rate_is)
        states = [each for state in optimizer.state.values() for each in state.values()]
        with _capturable(optimizer, self.rate):
            return self._done(function, inputs, states, (constants, settings))

    def _done(
        self, function: Callable[..., Tensor], inputs: tuple[Tree, ...], states: list[Tensor], constants: Hashable
    ) -> Tensor:
        """Return what the function returns; its graph holds the networks and these states where they are."""
        grads = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        modes = (*grads, *(net.training for net in self.policy.nets))
        key = (function.__name__, *map(_shapes, inputs), constants, modes)
        known, held = self.made.get(key, 0), self._held(states)
        if isinstance(known, Recording):
            if known.held == held:
                return known(*inputs)
            known = 0
        if known < BEFORE:
            self.made[key] = known + 1
            return beside(lambda: function(*inputs), self.on)
        if sum(isinstance(each, Recording) for each in self.made.values()) >= MOST:
            return function(*inputs)
        with torch.inference_mode(False):  # they are written to in all modes
            own = tuple(tree_map(each, torch.clone) for each in inputs)
        try:
            made = self.made[key] = Recording(held, own, record(lambda: function(*own), self.on))
        except RuntimeError as error:
            cause = error.__context__ or error  # else what follows from it: that the recording is void
            raise UserError(
                f"recording a CUDA graph failed: {first_line(cause)}: "
                "expected layers that read no number back, or no compile()"
            ) from error
        return made(*inputs)

    def _settle(self) -> None:
        """Begin anew where the networks have come to another device."""
        if self.place != self.device:
            self.place, self.made, self.rate = self.device, {}, None
            self.on = on(self.device)

    def _held(self, states: list[Tensor]) -> list[Any]:
        """Return what a graph depends on beside its inputs: layers, the symmetrizer's settings, where numbers lie."""
        parts, seen = _parts(self.policy), vars(self.policy.nets[0].symmetrizer)
        tensors = [each for part in parts for each in (*part._parameters.values(), *part._buffers.values())]
        lying = [(each.data_ptr(), each.requires_grad) for each in (*tensors, *states) if each is not None]
        return [parts, {name: each for name, each in seen.items() if name[0] != "_"}, lying]


def on(device: torch.device) -> Any:
    """Return a stream of a GPU and a pool of memory, on and in which graphs are recorded.

    They share it: one is replayed after the other, and what they return is copied at once.
    """
    with torch.cuda.device(device):
        return torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]


def record(function: Callable[[], Tensor], on: Any) -> Callable[[], Tensor]:
    """Return what does again what a function does, without doing it yet."""
    stream, pool = on
    graph = torch.cuda.CUDAGraph()
    recording = torch.cuda.graph(graph, pool=pool, stream=stream)
    # a recording that fails does not give back the stream that was current
    with torch.cuda.device(stream.device), torch.cuda.stream(torch.cuda.current_stream()), recording:
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output.clone()  # the graph writes there again

    return replay


def beside(function: Callable[[], Tensor], on: Any) -> Tensor:
    """Return what a function returns, done where it is recorded later."""
    stream, _ = on
    with torch.cuda.device(stream.device):
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            output = function()
        here.wait_stream(stream)
        output.record_stream(here)  # its memory belongs to the other stream
    return output


@contextmanager
def _capturable(optimizer: Optimizer, rate: Tensor) -> Iterator[None]:
    """Let Adam take its learning rate from the device, as graphs need it; a file that said so would need a GPU."""
    (group,) = optimizer.param_groups
    kept = {name: group[name] for name in ("capturable", "lr")}
    group.update(capturable=True, lr=rate)
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are
    try:
        yield
    finally:
        group.update(kept)


def _parts(policy: SymmetricValuePolicy) -> list[nn.Module]:
    return [part for net in policy.nets for part in net.modules()]


def _listened_to(optimizer: Optimizer) -> bool:
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or optimizers._global_optimizer_pre_hooks or optimizers._global_optimizer_post_hooks)


def _shapes(tree: Tree) -> Hashable:
    parts = tree.items() if isinstance(tree, dict) else [("", tree)]
    return tuple((key, part.shape, part.dtype) for key, part in parts)
