"""Equivariant policies for SB3's own TD3 and DDPG, under SB3's own names.

    from stable_baselines3 import TD3
    from equirl.agents.td3 import MlpPolicy
    model = TD3(MlpPolicy, "Pendulum-v1", policy_kwargs=dict(symmetry="Pendulum-v1", method="equitune"))

The actor is equivariant, pi(g s) = g pi(s), and the critics are invariant, q(g s, g a) = q(s, a); so are their targets.
The state dict keeps SB3's keys (lambda-equitune adds its own small nets), so weights of a plain agent load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.td3 import policies as sb3
from torch import Tensor

from equirl.agents.continuous import SymmetricActor, SymmetricActorCriticPolicy
from equirl.agents.symmetric import DictPolicy, PicturePolicy
from equirl.representations import Representation


class Actor(SymmetricActor, sb3.Actor):
    """SB3's actor seen through a symmetrizer, which averages squashed actions; averages lie between -1 and 1 too."""

    def output_parts(self, action: Representation) -> dict[str, Representation]:
        return {"action": action}

    def outputs_and_features(self, movable: PyTorchObs) -> tuple[dict[str, Tensor], Tensor]:
        latent = self.features(movable)
        *layers, last, squash = self.mu
        for layer in layers:
            latent = layer(latent)
        return {"action": squash(last(latent))}, latent

    def greedy(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["action"]

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Return equivariant actions between -1 and 1, shape (B, actions)."""
        return self.symmetrized(self.movable(obs))["action"]


class TD3Policy(SymmetricActorCriticPolicy, sb3.TD3Policy):
    """SB3's TD3 policy with an equivariant actor and invariant critics (van der Pol et al. 2020, arXiv 2006.16908).

    Keywords beside SB3's: `symmetry` and `method`, both required; `symmetrizer_kwargs`. Equizero's views are chosen by
    the critics, those of the target actor by the target critics, or by a `score` of one's own, a function of
    ``{"action": (G, B, n)}``.

    Raises:
        UserError: an unknown name, or a symmetry that does not act on the spaces.

    >>> import torch
    >>> from stable_baselines3 import TD3
    >>> model = TD3(MlpPolicy, "Pendulum-v1", policy_kwargs=dict(symmetry="Pendulum-v1", method="equitune"))
    >>> state, mirrored = torch.tensor([[0.6, 0.8, 2.0]]), torch.tensor([[0.6, -0.8, -2.0]])
    >>> torch.allclose(model.actor(mirrored), -model.actor(state))
    True
    """

    actor_class = Actor
    actor_target: Any

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.actor_target.ask(self.critic_target)


MlpPolicy = TD3Policy


class CnnPolicy(PicturePolicy, TD3Policy):
    """`TD3Policy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor that is given."""

    cnn_arch: ClassVar[list[int] | None] = [256, 256]


class MultiInputPolicy(DictPolicy, TD3Policy):
    """`TD3Policy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""
