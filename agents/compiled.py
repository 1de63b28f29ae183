"""Gradient steps as one program that torch.compile builds: forward, loss, gradient, clipping and Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Adam

from equirl._chains import Step
from equirl.agents.orbit_steps import OrbitSteps, gradients_of
from equirl.errors import UserError, first_line

Programs = dict[Any, Callable[..., Tensor]]
"""Programs by what is constant in them: layers, the largest norm and Adam's constants."""


def compiled(taken: OrbitSteps, programs: Programs) -> OrbitSteps:
    """Return the same steps by a program, or as they are where there is none: before Adam's first one, for instance.

    Args:
        taken: the steps.
        programs: those that are built; a new one is added.
    """
    optimizer = taken.optimizer
    [group] = optimizer.param_groups if len(optimizer.param_groups) == 1 else [{}]
    plain = type(optimizer) is Adam and group and not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
    learning = all(needed for weight, needed in zip(taken.weights, taken.needed[1:], strict=True) if weight is not None)
    if not plain or not learning or any(weight not in optimizer.state for weight in taken.learning):
        return taken
    key = (taken.chain.steps, tuple(taken.needed), taken.most, *group["betas"], group["eps"])
    if key not in programs:
        programs[key] = _program(*key)
    return _CompiledSteps(taken, programs[key], group)


class _CompiledSteps(OrbitSteps):
    """Steps of Adam (Kingma and Ba 2015) by a program that takes its moments beside the weights."""

    def __init__(self, taken: OrbitSteps, program: Callable[..., Tensor], group: dict[str, Any]) -> None:
        super().__init__(taken.net, taken.chain, taken.views, taken.actions, taken.optimizer, taken.most)
        self.program = program
        states = [self.optimizer.state[weight] for weight in self.learning]
        self.counters = [state["step"] for state in states]
        self.moments = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        count = self.views.shape[1]
        t = self.counters[0].double() + torch.arange(1, count + 1, dtype=torch.float64)
        beta, beta_sq = group["betas"]
        # lr / (1 - beta^t) and 1 / sqrt(1 - beta_sq^t) for each step t
        rates = torch.stack([group["lr"] / (1 - beta**t), (1 - beta_sq**t).rsqrt()], 1)
        self.rates = rates.to(self.learning[0].dtype).unbind()

    @torch.no_grad()
    def step(self, i: int, targets: Tensor) -> Tensor:
        try:
            errors = self.program(self.weights, *self.moments, *self.batch(i), targets, self.rates[i])
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = first_line(error)
            raise UserError(f"torch.compile failed: {reason}: expected a C++ compiler, or no compile()") from error
        torch._foreach_add_(self.counters, 1)
        return errors


def _program(
    steps: Sequence[Step], needed: Sequence[bool], most: float, beta: float, beta_sq: float, eps: float
) -> Callable[..., Tensor]:
    def whole(
        weights: list[Tensor | None],
        averages: list[Tensor],
        squares: list[Tensor],
        x: Tensor,
        actions: Tensor,
        targets: Tensor,
        rates: Tensor,
    ) -> Tensor:
        errors, gradients = gradients_of(steps, weights, needed, x, actions, targets)
        norm = torch.stack([each.square().sum() for each in gradients]).sum().sqrt()
        scale = (most / (norm + 1e-6)).clamp(max=1)
        learning = [each for each in weights if each is not None]
        for weight, average, square, gradient in zip(learning, averages, squares, gradients, strict=True):
            g = gradient * scale
            average.lerp_(g, 1 - beta)
            square.mul_(beta_sq).addcmul_(g, g, value=1 - beta_sq)
            weight.sub_(rates[0] * average / (square.sqrt() * rates[1] + eps))
        return errors

    whole.__code__ = whole.__code__.replace(co_name="whole_step")  # of its own: how often one is compiled has a limit
    return cast("Callable[..., Tensor]", torch.compile(whole, fullgraph=True, dynamic=False))
