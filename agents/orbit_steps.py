"""Gradient steps of averaged orbits of plain layers, without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor
from torch.optim import Optimizer

from equirl._chains import Chain, Step, backward, forward, hooked
from equirl.agents.values import SymmetricValues
from equirl.representations import Permutation
from equirl.symmetrizers import Equitune

_OF_VALUES = ("forward", "symmetrized", "values_and_features", "movable", "readable")
"""What a network computes by; one that overrides any of them computes something else."""


class OrbitSteps:
    """Gradient steps of equitune's loss where the network is a chain of plain layers, whose gradient is known.

    Q(s, a) = 1/n sum_g f(g s)[g a],    d loss / d f(g s)[g a] = huber'(Q(s, a) - y) / (n B)
    """

    def __init__(
        self, net: SymmetricValues, chain: Chain, views: Tensor, actions: Tensor, optimizer: Optimizer, most: float
    ) -> None:
        self.net, self.chain, self.views, self.actions = net, chain, views, actions
        self.weights = chain.weights()
        self.needed = [False, *(each is not None and each.requires_grad for each in self.weights)]
        self.learning = [
            each for each, needed in zip(self.weights, self.needed[1:], strict=True) if each is not None and needed
        ]
        self.optimizer, self.most = optimizer, most
        optimizer.zero_grad()  # of what was frozen since the last step, for instance

    @classmethod
    def of(
        cls, net: SymmetricValues, obs: PyTorchObs, actions: Tensor, batches: int, optimizer: Optimizer, most: float
    ) -> OrbitSteps | None:
        """Return the steps of these batches, None where autograd has to find their gradients.

        Args:
            net: the network that learns.
            obs: of all batches, shape (batches * B, ...).
            actions: likewise, shape (batches * B, 1).
            batches: how many there are.
            optimizer: of the network.
            most: the largest norm of a gradient, which is clipped to it.
        """
        own = (getattr(type(net), name) is getattr(SymmetricValues, name) for name in _OF_VALUES)
        if hooked(net) or not all(own):
            return None
        symmetrizer, chain = net.symmetrizer, net.chain()
        if type(symmetrizer) is not Equitune or chain is None or isinstance(obs, dict):
            return None
        if any(w is not None and (w._backward_hooks or w._post_accumulate_grad_hooks) for w in chain.weights()):
            return None
        movable, output = cast("Tensor", net.movable(obs)), symmetrizer.output
        if not isinstance(output, Permutation) or not chain.serves(cast("Tensor", net.readable(movable[:1]))):
            return None
        moved, k = torch.as_tensor(output.indices), symmetrizer.orbit_samples
        if k is None:
            views, actions = symmetrizer.input.orbit(movable), moved[:, actions]
        else:
            elements = symmetrizer.drawn(len(movable), k, movable.device)
            views = torch.stack([symmetrizer.input(row, movable) for row in elements])
            actions = moved[elements].gather(2, actions.expand(k, -1, 1))
        return cls(net, chain, _in_batches(views, batches), _in_batches(actions, batches), optimizer, most)

    @torch.no_grad()
    def step(self, i: int, targets: Tensor) -> Tensor:
        """Take the gradient step of batch i, and return the errors before it, shape (B, 1)."""
        x, actions = self.batch(i)
        errors, gradients = gradients_of(self.chain.steps, self.weights, self.needed, x, actions, targets)
        self._descend(gradients)
        return errors

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        """Return views of batch i as the layers read them, shape (n * B, ...), and actions (n, B, 1)."""
        return cast("Tensor", self.net.readable(self.views[:, i].flatten(0, 1))), self.actions[:, i].contiguous()

    def _descend(self, gradients: list[Tensor]) -> None:
        """Clip gradients as `torch.nn.utils.clip_grad_norm_` does, and let the optimizer step."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = self.most / (norm.item() + 1e-6)
        if not scale >= 1:
            torch._foreach_mul_(gradients, scale)
        for weight, gradient in zip(self.learning, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()


def gradients_of(
    steps: Sequence[Step],
    weights: Sequence[Tensor | None],
    needed: Sequence[bool],
    x: Tensor,
    actions: Tensor,
    targets: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Return the errors of a batch, shape (B, 1), and the gradients of the loss, of those weights that learn."""
    y, inputs, shapes = forward(steps, x, weights)
    values = y.view(*actions.shape[:2], -1)
    errors = values.gather(2, actions).mean(0) - targets
    slopes = errors.clamp(-1, 1) * (1 / (len(actions) * len(errors)))
    g = torch.zeros_like(values).scatter_(2, actions, slopes.expand(actions.shape))
    found = backward(steps, shapes, inputs, weights, needed, g.view(y.shape))
    return errors, [each for each in found if each is not None]


def _in_batches(each: Tensor, batches: int) -> Tensor:
    """Return (n, batches * B, ...) as (n, batches, B, ...)."""
    return each.view(len(each), batches, -1, *each.shape[2:])
