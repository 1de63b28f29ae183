"""Chains of plain layers as one function: a node of autograd in place of one a layer, and the fastest kernel of each.

What is computed is what the layers compute, to rounding:

    y = A_L r(... r(A_1 x)),    A_i linear or a convolution, r the rectifier or nothing.

Three things make it faster on the CPU. Large products of float32 go to oneDNN, which uses wider instructions than MKL
does on some processors; pictures are held channels last, as oneDNN's convolutions read them; the rectifier writes over
its input. A chain holds no weights: it reads those of the layers at each call, and gives way to the layers themselves
wherever something could tell the difference (hooks, other devices, autocast, torch.func, torch.compile).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as modules

from equirl._representation import eager

LARGE_PRODUCT = 2**21
"""From so many multiplications on oneDNN is faster, as measured: below, finding its kernel costs more."""
FEW_INPUTS = 16
"""Up to so many inputs of a layer, the gradient of its weight is computed transposed."""
FEW_PICTURES = 4
"""Up to so many pictures stay channels first: turning the weights costs more than it saves."""

_aten = torch.ops.aten
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


class Step(NamedTuple):
    """What one layer with weights does, between flattening and the rectifier."""

    places: tuple[Any, ...] | None = None  # stride, padding, dilation and groups of a convolution
    rectified: bool = False
    flattens: bool = False  # its input, first


class Chain:
    """Linear layers, convolutions, rectifiers and flattening in a row, computed together.

    Args:
        layers: in order; `Chain.of` tells whether they are of the kinds that it knows.

    >>> layers = [nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)]
    >>> x, chain = torch.randn(3, 2, 2), Chain.of(layers)
    >>> y, features = chain(x)
    >>> torch.allclose(y, nn.Sequential(*layers)(x)), features.shape
    (True, torch.Size([3, 8]))
    """

    def __init__(self, layers: Sequence[nn.Module], steps: Sequence[Step]) -> None:
        self.layers, self.steps = list(layers), tuple(steps)
        self.weighted = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Chain | None:
        """Return a chain of these layers, None where one is of another kind or the last one is not linear."""
        steps: list[Step] = []
        flattens = False
        for layer in layers:
            if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
                flattens = True
            elif type(layer) is nn.ReLU and steps and not flattens:
                steps[-1] = steps[-1]._replace(rectified=True)
            elif type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros"):
                places = None
                if isinstance(layer, nn.Conv2d):
                    places = (layer.stride, layer.padding, layer.dilation, layer.groups)
                    if flattens or isinstance(layer.padding, str):
                        return None
                steps.append(Step(places, False, flattens))
                flattens = False
            else:
                return None
        whole = steps and not flattens and steps[-1].places is None and not steps[-1].rectified
        return cls(layers, steps) if whole else None

    def serves(self, x: Tensor) -> bool:
        """Return whether the chain may stand for its layers on this input."""
        first = self.steps[0]
        fits = x.ndim == (4 if first.places else 2) or (first.flattens and x.ndim > 1)
        return (
            fits
            and x.is_cpu
            and x.dtype == self.weighted[0].weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and eager("cpu")
            and not modules._has_any_global_hook()  # type: ignore[no-untyped-call]
            and not any(map(hooked, self.layers))
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layers make of x, and the input of the last one."""
        if not self.serves(x):
            return self.in_steps(x)
        weights = self.weights()
        if torch.is_grad_enabled() and (x.requires_grad or any(w is not None and w.requires_grad for w in weights)):
            return cast("tuple[Tensor, Tensor]", _Chained.apply(self, x, *weights))  # type: ignore[no-untyped-call]
        y, inputs, _ = forward(self.steps, x, weights)
        return y, inputs[-1]

    def in_steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same, layer by layer."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x)
        return last(x), x

    def weights(self) -> list[Tensor | None]:
        """Return weight and bias of each step."""
        return [each for layer in self.weighted for each in (layer.weight, layer.bias)]


class _Chained(torch.autograd.Function):
    """The chain as one node of autograd; who differentiates its gradient again gets that of the layers themselves."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, *weights: Tensor | None) -> tuple[Tensor, Tensor]:
        y, inputs, ctx.shapes = forward(chain.steps, x, weights)
        ctx.steps = chain.steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *inputs, *weights)
        return y, inputs[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_features: Tensor | None) -> tuple[Any, ...]:
        steps, needed = ctx.steps, ctx.needs_input_grad[1:]
        x, *saved = ctx.saved_tensors
        inputs, weights = saved[: len(steps)], saved[len(steps) :]
        if torch.is_grad_enabled():
            made = differentiable(steps, x, weights)
            outputs = [each for each in zip(made, (g, g_features), strict=True) if each[1] is not None]
            wanted = [each for each, needs in zip((x, *weights), needed, strict=True) if needs]
            ys, gs = zip(*outputs, strict=True)
            found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=True, allow_unused=True))
            return None, *(next(found) if needs else None for needs in needed)
        if g is None:
            assert g_features is not None
            g = g_features.new_zeros(len(g_features), len(weights[-2]))
        return None, *backward(steps, ctx.shapes, inputs, weights, needed, g, g_features)


def forward(
    steps: Sequence[Step], x: Tensor, weights: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor], list[torch.Size]]:
    """Return the output of a chain, the input of each step, and the shape that this had before it was flattened."""
    inputs, shapes = [], []
    for step, weight, bias in zip(steps, weights[::2], weights[1::2], strict=True):
        shapes.append(x.shape)
        if step.flattens:
            x = x.flatten(1)
        if step.places:
            x = x.contiguous(memory_format=torch.channels_last) if len(x) > FEW_PICTURES else x
            inputs.append(x)
            x = functional.conv2d(x, cast("Tensor", weight), bias, *step.places)
        else:
            inputs.append(x)
            x = _product(x, cast("Tensor", weight).t(), bias)
        x = x.relu_() if step.rectified else x
    return x, inputs, shapes


def differentiable(steps: Sequence[Step], x: Tensor, weights: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return the output of a chain and the input of its last step, of operations that autograd knows."""
    features = x
    for step, weight, bias in zip(steps, cast("Sequence[Tensor]", weights[::2]), weights[1::2], strict=True):
        features = x.flatten(1) if step.flattens else x
        if step.places:
            x = functional.conv2d(features, weight, bias, *step.places)
        else:
            x = functional.linear(features, weight, bias)
        x = x.relu() if step.rectified else x
    return x, features


def backward(
    steps: Sequence[Step],
    shapes: Sequence[torch.Size],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    needed: Sequence[bool],
    g: Tensor,
    g_features: Tensor | None = None,
) -> list[Tensor | None]:
    """Return the gradients of x, weight 1, bias 1, weight 2, ..., None where one is not needed.

    Args:
        steps: of the chain.
        shapes: as `forward` returned them.
        inputs: likewise.
        weights: as `forward` took them.
        needed: whether the gradient is needed, of x and of each of the weights.
        g: the gradient of the output.
        g_features: the gradient of the last step's input, where that was used for something else.
    """
    found: list[Tensor | None] = [None] * len(needed)
    for i in reversed(range(len(steps))):
        step, x, weight = steps[i], inputs[i], cast("Tensor", weights[2 * i])
        on, wanted, wanted_bias = any(needed[: 2 * i + 1]), needed[2 * i + 1], needed[2 * i + 2]
        before: Tensor | None
        if step.places:
            if x.is_contiguous(memory_format=torch.channels_last):
                g = g.contiguous(memory_format=torch.channels_last)
            stride, padding, dilation, groups = step.places
            places = (stride, padding, dilation, False, [0, 0], groups)
            sizes = [len(weight)] if wanted_bias else None
            before, moved, found[2 * i + 2] = _aten.convolution_backward(
                g, x, weight, sizes, *places, (on, wanted, wanted_bias)
            )
            found[2 * i + 1] = moved.contiguous() if wanted else None  # else in another order than the weight
        else:
            before = _product(g, weight) if on else None
            found[2 * i + 1] = _outer(g, x) if wanted else None
            found[2 * i + 2] = g.sum(0) if wanted_bias else None
        if before is None:
            return found
        if g_features is not None:
            before, g_features = before.add_(g_features), None
        rectified = i > 0 and steps[i - 1].rectified
        g = (_aten.threshold_backward(before, x, 0) if rectified else before).reshape(shapes[i])
    found[0] = g
    return found


def _product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ y + bias of matrices."""
    if _ONEDNN and x.dtype == torch.float32 and x.shape[0] * x.shape[1] * y.shape[1] >= LARGE_PRODUCT:
        by_onednn = torch.ops.equirl.product if torch.compiler.is_compiling() else _onednn_product
        return cast("Tensor", by_onednn(x, y, bias))
    return x @ y if bias is None else torch.addmm(bias, x, y)


def _onednn_product(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    return cast("Tensor", torch.ops.mkldnn._linear_pointwise(x, y.t(), bias, "none", [], ""))


def _of_its_shape(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[1])


# What torch.compile calls as it is: its own way to this kernel is for weights that never change.
if not hasattr(torch.ops.equirl, "product"):  # as it has when this module is reloaded
    _LIBRARY = torch.library.Library("equirl", "DEF")  # type: ignore[no-untyped-call]
    _LIBRARY.define("product(Tensor x, Tensor y, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
    _LIBRARY.impl("product", _onednn_product, "CPU")  # type: ignore[no-untyped-call]
    _LIBRARY.impl("product", _of_its_shape, "Meta")  # type: ignore[no-untyped-call]


def _outer(g: Tensor, x: Tensor) -> Tensor:
    """Return g^T x, shape (outputs, inputs); MKL is slow where there are few columns, not where there are few rows."""
    return (x.t() @ g).t().contiguous() if x.shape[1] <= FEW_INPUTS else _product(g.t(), x)


def hooked(layer: nn.Module) -> bool:
    """Return whether something listens to a module."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
