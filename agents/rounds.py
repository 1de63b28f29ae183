"""SB3's DQN with the gradient steps of a round taken together, which changes what they cost and not what they do.

Between two rounds of acting SB3 takes its gradient steps one by one: each draws a batch, asks the target network, and
walks every operation through autograd. The target network stays as it is for the whole round, so that all batches can
be drawn and all targets computed at once; and the gradient of an averaged orbit of plain layers is known, so that it
needs no graph. In a loop of small networks this is most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.optim import Optimizer

from equirl._chains import Chain, backward, forward
from equirl.agents.values import SymmetricValuePolicy, SymmetricValues
from equirl.representations import Permutation
from equirl.symmetrizers import Equitune, Identity

MOST_BYTES = 2**26
"""Of the samples that are drawn at once."""
TARGET_ROWS = 512
"""Rows of one call of the target network: enough to hide what a call costs, few enough for the processor's caches."""


class DQN(sb3.DQN):
    """SB3's DQN, whose gradient steps cost less: the same arguments, losses and updates, to rounding, and zip files.

    `train` takes the gradient steps of a round together (Mnih et al. 2015, with the Huber loss of SB3):

        y = r + gamma max_a' Q_target(s', a'),    loss = 1/B sum huber(Q(s, a) - y).

    Batches are drawn as SB3 draws them, from the same random numbers where there is one environment. Plain agents, and
    those whose targets depend on the network that learns (`double_selection`), take SB3's own steps.

    >>> from equirl.agents.dqn import MlpPolicy
    >>> model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))
    >>> model.learn(200).num_timesteps
    200
    """

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        policy = self.policy
        if not isinstance(policy, SymmetricValuePolicy) or policy.double_selection or policy.method == Identity.method:
            super().train(gradient_steps, batch_size)
            return
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        errors: list[Tensor] = []
        for count in _rounds(gradient_steps, batch_size, self.observation_space):
            assert self.replay_buffer is not None
            data = self.replay_buffer.sample(count * batch_size, self._vec_normalize_env)
            targets, actions = self._targets(data), data.actions.long()
            net, obs = cast("SymmetricValues", self.q_net), data.observations
            taken = OrbitSteps.of(net, obs, actions, count, policy.optimizer, self.max_grad_norm)
            for i, y in enumerate(targets.view(count, batch_size, 1)):
                rows = slice(i * batch_size, (i + 1) * batch_size)
                errors.append(taken.step(i, y) if taken else self._step(_rows(obs, rows), actions[rows], y))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        together = torch.cat(errors)
        self.logger.record("train/loss", smooth_l1_loss(together, torch.zeros_like(together)).item())

    def _targets(self, data: ReplayBufferSamples) -> Tensor:
        """Return what each sample's action value should be, shape (N, 1)."""
        with torch.no_grad():
            starts = range(0, len(data.rewards), TARGET_ROWS)
            parts = (_rows(data.next_observations, slice(start, start + TARGET_ROWS)) for start in starts)
            best = torch.cat([self.q_net_target(part).amax(1, keepdim=True) for part in parts])
            discounts = self.gamma if data.discounts is None else data.discounts
            return data.rewards + (1 - data.dones) * discounts * best

    def _step(self, obs: PyTorchObs, actions: Tensor, targets: Tensor) -> Tensor:
        """Take a gradient step as SB3 does, and return the errors before it, shape (B, 1)."""
        values: Tensor = self.q_net(obs).gather(1, actions)
        self.policy.optimizer.zero_grad()
        smooth_l1_loss(values, targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return (values - targets).detach()


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
        symmetrizer, chain = net.symmetrizer, net.chain()
        if type(symmetrizer) is not Equitune or chain is None or isinstance(obs, dict):
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
        actions, steps = self.actions[:, i], self.chain.steps
        x = cast("Tensor", self.net.readable(self.views[:, i].flatten(0, 1)))
        y, inputs, shapes = forward(steps, x, self.weights)
        values = y.view(*actions.shape[:2], -1)
        errors = values.gather(2, actions).mean(0) - targets
        slopes = errors.clamp(-1, 1).mul_(1 / (len(actions) * len(errors)))
        g = torch.zeros_like(values).scatter_(2, actions, slopes.expand(actions.shape))
        _, *found = backward(steps, shapes, inputs, self.weights, self.needed, g.view(y.shape))
        gradients = [each for each in found if each is not None]
        self._descend(gradients)
        return errors

    def _descend(self, gradients: list[Tensor]) -> None:
        """Clip gradients as `torch.nn.utils.clip_grad_norm_` does, and let the optimizer step."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = self.most / (norm.item() + 1e-6)
        if not scale >= 1:
            torch._foreach_mul_(gradients, scale)
        for weight, gradient in zip(self.learning, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()


def _rounds(gradient_steps: int, batch_size: int, space: spaces.Space[Any]) -> Iterator[int]:
    """Yield how many batches to draw at once, so that they take no more than `MOST_BYTES`."""
    shapes = [each.shape or () for each in (space.values() if isinstance(space, spaces.Dict) else [space])]
    at_once = max(1, MOST_BYTES // (4 * batch_size * sum(map(math.prod, shapes))))
    for start in range(0, gradient_steps, at_once):
        yield min(at_once, gradient_steps - start)


def _in_batches(each: Tensor, batches: int) -> Tensor:
    """Return (n, batches * B, ...) as (n, batches, B, ...)."""
    return each.view(len(each), batches, -1, *each.shape[2:])


def _rows(obs: PyTorchObs, rows: slice) -> PyTorchObs:
    return {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]
