"""Equivariant policies for SB3's own SAC, under SB3's own names.

    from stable_baselines3 import SAC
    from equirl.agents.sac import MlpPolicy
    model = SAC(MlpPolicy, "Pendulum-v1", policy_kwargs=dict(symmetry="Pendulum-v1", method="equitune"))

The distribution of actions is equivariant, pi(g a | g s) = pi(a | s), and the critics are invariant,
q(g s, g a) = q(s, a). The state dict keeps SB3's keys (lambda-equitune adds its own small nets), so weights of a plain
agent load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac import policies as sb3
from torch import Tensor

from equirl.agents.continuous import SymmetricActor, SymmetricActorCriticPolicy
from equirl.agents.symmetric import DictPolicy, PicturePolicy, magnitudes
from equirl.representations import Representation


class Actor(SymmetricActor, sb3.Actor):
    """SB3's actor seen through a symmetrizer, which averages means and logarithms of standard deviations.

    The group moves means as it moves scaled actions, and standard deviations alike but without signs. Logarithms are
    clamped as SB3 does, before they are averaged, so that averages lie within the same limits. Squashing by tanh, an
    odd function, keeps the symmetry.
    """

    def output_parts(self, action: Representation) -> dict[str, Representation]:
        return {"mean": action, "log_std": magnitudes(action)}

    def outputs_and_features(self, movable: PyTorchObs) -> tuple[dict[str, Tensor], Tensor]:
        latent = self.latent_pi(self.features(movable))
        log_std = self.log_std(latent).clamp(sb3.LOG_STD_MIN, sb3.LOG_STD_MAX)  # type: ignore[operator]
        return {"mean": self.mu(latent), "log_std": log_std}, latent

    def greedy(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["mean"].tanh()

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return means and logarithms of standard deviations, each of shape (B, actions), and nothing else."""
        outputs = self.symmetrized(self.movable(obs))
        return outputs["mean"], outputs["log_std"], {}


class SACPolicy(SymmetricActorCriticPolicy, sb3.SACPolicy):
    """SB3's SAC policy with an equivariant actor and invariant critics (van der Pol et al. 2020, arXiv 2006.16908).

    Keywords beside SB3's: `symmetry` and `method`, both required; `symmetrizer_kwargs`. Equizero's views are chosen by
    the critics, or by a `score` of one's own, a function of ``{"mean": (G, B, n), "log_std": (G, B, n)}``.

    Raises:
        UserError: an unknown name, a symmetry that does not act on the spaces, or gSDE.

    >>> import torch
    >>> from stable_baselines3 import SAC
    >>> model = SAC(MlpPolicy, "Pendulum-v1", policy_kwargs=dict(symmetry="Pendulum-v1", method="equitune"))
    >>> state, mirrored = torch.tensor([[0.6, 0.8, 2.0]]), torch.tensor([[0.6, -0.8, -2.0]])
    >>> torch.allclose(model.actor(mirrored, deterministic=True), -model.actor(state, deterministic=True))
    True
    """

    actor_class = Actor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(share_features_extractor=self.share_features_extractor)  # which SB3 forgets
        return data


MlpPolicy = SACPolicy


class CnnPolicy(PicturePolicy, SACPolicy):
    """`SACPolicy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor that is given."""

    cnn_arch = None


class MultiInputPolicy(DictPolicy, SACPolicy):
    """`SACPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""
