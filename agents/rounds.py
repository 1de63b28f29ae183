"""SB3's DQN with the gradient steps of a round taken together, which changes what they cost and not what they do.

Between two rounds of acting SB3 takes its gradient steps one by one: each draws a batch, asks the target network, and
walks every operation through autograd. The target network stays as it is for the whole round, so that all batches can
be drawn and all targets computed at once; and the gradient of an averaged orbit of plain layers is known, so that it
needs no graph. In a loop of small networks this is most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from equirl.agents.compiled import Programs, compiled
from equirl.agents.orbit_steps import OrbitSteps
from equirl.agents.recorded import Recordings
from equirl.agents.values import SymmetricValuePolicy, SymmetricValues
from equirl.symmetrizers import Identity

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

    programs: Programs | None = None

    def compile(self) -> DQN:
        """Let the gradient step be one program, and on a GPU acting another one; return the model.

        On the CPU torch.compile builds the steps of averaged orbits, which takes a C++ compiler, and seconds before the
        first one. On a GPU fused Adam's steps, targets and actions are recorded as CUDA graphs. The rest is as before.
        """
        self.programs = {}
        policy = getattr(self, "policy", None)
        if isinstance(policy, SymmetricValuePolicy):
            policy.recordings = Recordings(policy)
        return self

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "programs"]

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        policy = self.policy
        if not isinstance(policy, SymmetricValuePolicy) or policy.double_selection or policy.method == Identity.method:
            super().train(gradient_steps, batch_size)
            return
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        step: Callable[..., Tensor] = self._step
        if policy.recordings is not None and policy.recordings.learns():
            step = partial(policy.recordings.step, self._step, constants=self.max_grad_norm)
        errors: list[Tensor] = []
        for count in _rounds(gradient_steps, batch_size, self.observation_space):
            assert self.replay_buffer is not None
            data = self.replay_buffer.sample(count * batch_size, self._vec_normalize_env)
            targets, actions = self._targets(data), data.actions.long()
            net, obs = cast("SymmetricValues", self.q_net), data.observations
            optimizer, most = policy.optimizer, self.max_grad_norm
            taken = OrbitSteps.of(net, obs, actions, count, optimizer, most) if step == self._step else None
            if taken is not None and self.programs is not None:
                taken = compiled(taken, self.programs)
            for i, y in enumerate(targets.view(count, batch_size, 1)):
                rows = slice(i * batch_size, (i + 1) * batch_size)
                errors.append(taken.step(i, y) if taken else step(_rows(obs, rows), actions[rows], y))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        together = torch.cat(errors)
        self.logger.record("train/loss", smooth_l1_loss(together, torch.zeros_like(together)).item())

    def _targets(self, data: ReplayBufferSamples) -> Tensor:
        """Return what each sample's action value should be, shape (N, 1)."""
        with torch.no_grad():
            starts = range(0, len(data.rewards), TARGET_ROWS)
            parts = (_rows(data.next_observations, slice(start, start + TARGET_ROWS)) for start in starts)
            recordings = cast("SymmetricValuePolicy", self.policy).recordings
            best = torch.cat([recordings(self._best, part) if recordings else self._best(part) for part in parts])
            discounts = self.gamma if data.discounts is None else data.discounts
            return data.rewards + (1 - data.dones) * discounts * best

    def _best(self, obs: PyTorchObs) -> Tensor:
        """Return the target network's value of the best action, shape (B, 1)."""
        return self.q_net_target(obs).amax(1, keepdim=True)  # type: ignore[no-any-return]

    def _step(self, obs: PyTorchObs, actions: Tensor, targets: Tensor) -> Tensor:
        """Take a gradient step as SB3 does, and return the errors before it, shape (B, 1)."""
        values: Tensor = self.q_net(obs).gather(1, actions)
        self.policy.optimizer.zero_grad()
        smooth_l1_loss(values, targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return (values - targets).detach()


def _rounds(gradient_steps: int, batch_size: int, space: spaces.Space[Any]) -> Iterator[int]:
    """Yield how many batches to draw at once, so that they take no more than `MOST_BYTES`."""
    shapes = [each.shape or () for each in (space.values() if isinstance(space, spaces.Dict) else [space])]
    at_once = max(1, MOST_BYTES // (4 * batch_size * sum(map(math.prod, shapes))))
    for start in range(0, gradient_steps, at_once):
        yield min(at_once, gradient_steps - start)


def _rows(obs: PyTorchObs, rows: slice) -> PyTorchObs:
    return {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]
