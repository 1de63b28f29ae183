"""Equivariant policies for SB3's own PPO and A2C, under SB3's own names.

    from stable_baselines3 import PPO
    from equirl.agents.actor_critic import MlpPolicy
    model = PPO(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))

The distribution of actions obeys pi(g a | g s) = pi(a | s) and the value V(g s) = V(s) for every element g of the
symmetry's group. Greedy actions are SB3's: the lowest index among equally likely ones, a choice that no symmetry can
make where g s = s. The state dict keeps SB3's keys (lambda-equitune adds its own small net), so weights of a plain
agent load as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar, cast

import torch
from gymnasium import spaces
from stable_baselines3.common import policies as sb3
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from equirl.agents.making import movable_shape, symmetrizer_of
from equirl.agents.symmetric import DictPolicy, Measured, PicturePolicy, SymmetricNet, SymmetricPolicy, magnitudes
from equirl.errors import UserError, unknown
from equirl.representations import PerKey, Trivial
from equirl.symmetrizers import SCORES, Equizero, Identity

Outputs = dict[str, Tensor]
"""What a network returns: "action", logits or means of shape (B, actions), and "value", of shape (B, 1)."""


class ActorCriticPolicy(SymmetricPolicy, SymmetricNet, sb3.ActorCriticPolicy):
    """SB3's actor-critic policy, its actor and critic seen through one symmetrizer (Basu et al., arXiv 2305.09900).

        logits or means  sum_g w_g(s) rho_A(g)^-1 f(rho_S(g) s),    V_G(s) = sum_g w_g(s) V(rho_S(g) s)

    The standard deviations of continuous actions are tied: log std_G = 1/n sum_g g log std, where g permutes entries.

    Keywords beside SB3's: `symmetry` and `method`, both required, and `symmetrizer_kwargs`. Unless told otherwise,
    equizero keeps the view of which the actor is surest, by the largest probability (the mean of these over several
    choices); of continuous actions, the view that the critic values most. A score by its name reads logits or means; a
    function reads the dictionary {"action": (G, B, actions), "value": (G, B, 1)}.

    Raises:
        UserError: an unknown name, a symmetry that does not act on the spaces, one that mixes continuous actions by a
            matrix, gSDE or `squash_output`.

    >>> from stable_baselines3 import PPO
    >>> model = PPO(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))
    >>> state = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    >>> torch.allclose(model.policy.scores(-state), model.policy.scores(state).flip(-1))
    True
    >>> torch.allclose(model.policy.predict_values(-state), model.policy.predict_values(state))
    True
    """

    adam_kwargs: ClassVar[dict[str, Any]] = {"eps": 1e-5}

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        signature = inspect.signature(sb3.ActorCriticPolicy)
        named = signature.bind_partial(observation_space, action_space, lr_schedule, *args).arguments
        given = dict(**named, **kwargs)
        if given.get("squash_output"):
            raise UserError("squash_output True: expected False, since SB3 squashes the actions of gSDE alone")
        match given.get("net_arch"):
            case [dict() as layers]:  # as zips of SB3 before 1.8 say it
                given["net_arch"] = layers
        self.scores_are = "action" if isinstance(action_space, spaces.Box) else "log-probability"
        super().__init__(**given)

    def _build(self, lr_schedule: Schedule) -> None:
        own = self._build_mlp_extractor  # perhaps of a subclass, as SB3's documentation shows

        def build() -> None:
            own()
            self._build_symmetrizer()  # before SB3 hands all parameters to the optimizer

        self._build_mlp_extractor = build  # type: ignore[method-assign]
        super()._build(lr_schedule)
        del self._build_mlp_extractor

    def _build_symmetrizer(self) -> None:
        action, group = self.symmetry.action, self.symmetry.group
        self._spread = magnitudes(action) if isinstance(self.action_space, spaces.Box) else None
        output = PerKey(group, {"action": action, "value": Trivial(group)})
        width = self.mlp_extractor.latent_dim_pi + self.mlp_extractor.latent_dim_vf
        shape = movable_shape(self.observation_space)
        self.symmetrizer = symmetrizer_of(self.method, self.symmetry.observation, output, width, shape, self._options())

    def _options(self) -> dict[str, Any]:
        """Return the symmetrizer's options, with a score that reads dictionaries."""
        options = dict(self.symmetrizer_kwargs)
        if self.method != Equizero.method:
            return options
        score = options.get("score")
        if isinstance(score, str):
            if score not in SCORES:
                raise unknown("score", score, SCORES)
            options["score"] = _OfAction(SCORES[score])
        elif score is None:
            options["score"] = _of_value if self._spread is not None else _OfAction(_Certainty(self.action_space))
        return options

    @property
    def acting(self) -> ActorCriticPolicy:
        return self

    # The network

    def outputs_and_features(self, movable: PyTorchObs) -> tuple[Outputs, Tensor]:
        """Return plain outputs and the activations before the last layers, the actor's and the critic's in a row."""
        if self.share_features_extractor:
            latent_pi, latent_vf = self.mlp_extractor(self.features(movable))
        else:
            latent_pi = self.mlp_extractor.forward_actor(self.features(movable, self.pi_features_extractor))
            latent_vf = self.mlp_extractor.forward_critic(self.features(movable, self.vf_features_extractor))
        outputs = {"action": self.action_net(latent_pi), "value": self.value_net(latent_vf)}
        return outputs, torch.cat([latent_pi, latent_vf], -1)

    def symmetrized(self, movable: PyTorchObs) -> Outputs:
        """Return equivariant outputs of what `movable` returned."""
        return cast("Outputs", self.symmetrizer(self.outputs_and_features, movable))

    def plain(self, obs: PyTorchObs) -> Outputs:
        """Return the outputs of the network as it is, without its symmetrizer."""
        return self.outputs_and_features(self.movable(obs))[0]

    def tied_log_std(self) -> Tensor:
        """Return the logarithms of the standard deviations in use, shape (actions,): the mean over the group."""
        if self._spread is None:
            raise UserError(f"log_std of {self.action_space}: expected continuous actions")
        if self.method == Identity.method:
            return self.log_std
        return self._spread.orbit(self.log_std[None]).mean((0, 1))  # type: ignore[no-any-return]

    def _distribution(self, action: Tensor) -> Distribution:
        """Return SB3's distribution from logits or means, a new one, so that the policy keeps nothing of a call."""
        parameters = (action,) if self._spread is None else (action, self.tied_log_std())
        return copy(self.action_dist).proba_distribution(*parameters)

    def _distribution_and_values(self, obs: PyTorchObs) -> tuple[Distribution, Tensor]:
        outputs = self.symmetrized(self.movable(obs))
        return self._distribution(outputs["action"]), outputs["value"]

    # What SB3 calls

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        distribution, values = self._distribution_and_values(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape((-1, *(self.action_space.shape or ()))), values, log_prob

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        distribution, values = self._distribution_and_values(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        return self._distribution_and_values(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        return self.symmetrized(self.movable(obs))["value"]

    # What is measured and shown

    def measured(self, obs: PyTorchObs) -> dict[str, Measured]:
        seen, done, x = self.symmetry.observation, self.symmetry.action, self.movable(obs)
        still = Trivial(self.symmetry.group)
        moves = done if self._spread is None else PerKey(still.group, {"mean": done, "log_std": self._spread})
        return {
            "action distribution": Measured(self._parameters_of_actions, seen, moves, x),
            "value": Measured(lambda movable: self.symmetrized(movable)["value"], seen, still, x),
        }

    def _parameters_of_actions(self, movable: PyTorchObs) -> Any:
        """Return what tells two distributions of actions apart; logits alone do not, up to a constant."""
        scores = self.scores(movable)
        return scores if self._spread is None else {"mean": scores, "log_std": self.tied_log_std().expand_as(scores)}

    def scores(self, movable: PyTorchObs) -> Tensor:
        """Return log-probabilities of discrete actions, logits of binary and means of continuous ones."""
        action, sizes = self.symmetrized(movable)["action"], _sizes(self.action_space)
        return torch.cat([part.log_softmax(-1) for part in torch.split(action, sizes, -1)], -1) if sizes else action

    def actions(self, movable: PyTorchObs, plain: bool = False) -> Tensor:
        outputs = self.outputs_and_features(movable)[0] if plain else self.symmetrized(movable)
        greedy = self._distribution(outputs["action"]).mode()
        return cast("Tensor", preprocess_obs(greedy, self.action_space, normalize_images=False))

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        return self.symmetrizer.weights(self.symmetrizer.branches(self.outputs_and_features, self.movable(obs)))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(share_features_extractor=self.share_features_extractor)  # which SB3 leaves out
        return data


MlpPolicy = ActorCriticPolicy


class CnnPolicy(PicturePolicy, ActorCriticPolicy):
    """`ActorCriticPolicy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor given."""


class MultiInputPolicy(DictPolicy, ActorCriticPolicy):
    """`ActorCriticPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, in a row."""


class _OfAction:
    """A score of equizero that reads logits or means."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score = score

    def __call__(self, outputs: Outputs) -> Tensor:
        return self.score(outputs["action"])


class _Certainty:
    """How likely the likeliest action is, from logits (G, B, actions) to (G, B): the mean over choices."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.sizes = _sizes(space)

    def __call__(self, logits: Tensor) -> Tensor:
        if not self.sizes:
            return logits.abs().sigmoid().mean(-1)  # of each yes or no
        return torch.stack([part.softmax(-1).amax(-1) for part in torch.split(logits, self.sizes, -1)]).mean(0)


def _of_value(outputs: Outputs) -> Tensor:
    return outputs["value"].squeeze(-1)


def _sizes(space: spaces.Space[Any]) -> list[int]:
    """Return the number of values of each choice; none where entries are no choices among values."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []
