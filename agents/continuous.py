"""What SAC and TD3 share: actors that follow the symmetry, critics that do not see it, and policies of both.

Actors obey pi(g s) = g pi(s) and critics q(g s, g a) = q(s, a). Both work in SB3's scaled units, where every action
lies between -1 and 1 and mirrors about a centre are mirrors about 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic as SB3Critic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from equirl.agents.making import movable_shape, symmetrizer_of
from equirl.agents.symmetric import Measured, SymmetricNet, SymmetricPolicy, scaled
from equirl.errors import UserError
from equirl.representations import PerKey, Representation, SignedPermutation, Trivial
from equirl.symmetrizers import SCORES, Equitune, Equizero
from equirl.symmetry import Symmetry

_SCORE = "score"  # beside an actor's outputs: what the critic expects of each view


class SymmetricActor(SymmetricNet):
    """An actor seen through a symmetrizer: pi_G(s) = sum_g w_g(s) rho_A(g)^-1 pi(rho_S(g) s); before SB3's own class.

    Equizero takes the view of which the critics, as they are, expect most: g* = argmax_g min_i q_i(g s, pi(g s)). They
    are asked without gradients. A `score` of one's own, from the dictionary of outputs (G, B, ...) to scores (G, B),
    replaces them. An actor that has neither averages its views. The critics are no part of the actor: to trace or to
    export it, take the policy, as a module that calls ``self.policy.actor(obs)``.

    Args:
        symmetry: how the group moves observations and actions.
        method: a name from `equirl.METHODS`.
        symmetrizer_kwargs: further arguments of the method.
        critic: the critic that chooses equizero's views.
        kwargs: the arguments of SB3's actor.

    Raises:
        UserError: a named score, all of which read the logits of discrete actions.
    """

    def __init__(
        self,
        *args: Any,
        symmetry: Symmetry,
        method: str,
        symmetrizer_kwargs: Mapping[str, Any],
        critic: SymmetricCritic | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.symmetry, self.method, self.symmetrizer_kwargs = symmetry, method, dict(symmetrizer_kwargs)
        self.output = PerKey(symmetry.group, self.output_parts(scaled(symmetry.action)))
        self.asks_critic = method == Equizero.method and _SCORE not in symmetrizer_kwargs
        output, options = self.output, dict(symmetrizer_kwargs)
        if self.asks_critic:
            output = PerKey(symmetry.group, {**output.keys, _SCORE: Trivial(symmetry.group)})
            options[_SCORE] = itemgetter(_SCORE)
        elif method == Equizero.method:
            _check_score(options[_SCORE], output)
        width = self.net_arch[-1] if self.net_arch else self.features_dim
        shape = movable_shape(self.observation_space)
        self.symmetrizer = symmetrizer_of(method, symmetry.observation, output, width, shape, options)
        self._critic: tuple[SymmetricCritic, ...] = ()  # a tuple, so that torch does not take it for a part of this
        if critic is not None:
            self.ask(critic)

    net_arch: list[int]
    features_dim: int

    def output_parts(self, action: Representation) -> dict[str, Representation]:
        """Return how the group moves each of the outputs, where it moves scaled actions so."""
        raise NotImplementedError

    def outputs_and_features(self, movable: PyTorchObs) -> tuple[dict[str, Tensor], Tensor]:
        """Return plain outputs, each of shape (B, actions), and the activations before the last layer, (B, D)."""
        raise NotImplementedError

    def greedy(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Return the deterministic action that outputs mean, between -1 and 1."""
        raise NotImplementedError

    def symmetrized(self, movable: PyTorchObs) -> dict[str, Tensor]:
        """Return equivariant outputs of what `movable` returned, which the group moves by `output`."""
        outputs: dict[str, Tensor] = self.symmetrizer(self._scored, movable)
        outputs.pop(_SCORE, None)
        return outputs

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        """Return the weight of each element's view, shape (G, B)."""
        return self.symmetrizer.weights(self.symmetrizer.branches(self._scored, self.movable(obs)))

    def plain(self, movable: PyTorchObs) -> dict[str, Tensor]:
        """Return the outputs of the network as it is, without its symmetrizer."""
        return self.outputs_and_features(movable)[0]

    def ask(self, critic: SymmetricCritic) -> None:
        """Let a critic choose equizero's views, unless a score of one's own does; other methods have no use for it."""
        if self.asks_critic:
            self._critic = (critic,)

    def _scored(self, movable: PyTorchObs) -> tuple[dict[str, Tensor], Tensor]:
        outputs, features = self.outputs_and_features(movable)
        if self.asks_critic:
            with torch.no_grad():
                actions = self.greedy(outputs)
                values = [critic.plain(movable, actions).amin(-1) for critic in self._critic]
                outputs[_SCORE] = values[0] if values else torch.zeros_like(actions[:, 0])
        return outputs, features

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        data.update(critic=self._critic[0] if self._critic else None)
        return data


class SymmetricCritic(SymmetricNet, SB3Critic):
    """SB3's critics seen through a symmetrizer: q_G(s, a) = sum_g w_g(s, a) q(rho_S(g) s, rho_A(g) a).

    Under equizero the critics average: their largest view would over-estimate as often as there are elements. Under
    lambda all of them share one small net, which reads the activations before their last layers side by side.

    Args:
        symmetry: how the group moves observations and actions.
        method: a name from `equirl.METHODS`.
        symmetrizer_kwargs: further arguments of the method.
        kwargs: the arguments of SB3's critic.
    """

    def __init__(
        self,
        *,
        net_arch: list[int],
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        symmetry: Symmetry,
        method: str,
        symmetrizer_kwargs: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(net_arch=net_arch, features_dim=features_dim, activation_fn=activation_fn, **kwargs)
        self.net_arch, self.features_dim, self.activation_fn = net_arch, features_dim, activation_fn
        self.symmetry, self.method, self.symmetrizer_kwargs = symmetry, method, dict(symmetrizer_kwargs)
        group, seen = symmetry.group, symmetry.observation
        parts = self._named(seen.keys if isinstance(seen, PerKey) else seen)
        if isinstance(seen, Trivial) and isinstance(self.observation_space, spaces.Dict):
            parts = self._named(dict.fromkeys(self.observation_space.spaces, seen))
        self.input = PerKey(group, {**parts, "action": scaled(symmetry.action)})
        width = net_arch[-1] if net_arch else features_dim + get_action_dim(self.action_space)
        averages = method == Equizero.method
        chosen, options = (Equitune.method, {}) if averages else (method, self.symmetrizer_kwargs)
        shapes = self._named(movable_shape(self.observation_space))  # observations alone choose poses
        self.symmetrizer = symmetrizer_of(chosen, self.input, Trivial(group), width * self.n_critics, shapes, options)

    def forward(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, ...]:
        """Return invariant values of scaled actions, a tensor of shape (B, 1) a network, as SB3 does."""
        x = self.joined(self.movable(obs), actions)
        return tuple(self.symmetrizer(self._values_and_features, x).values())

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        """Return what the first network makes of them, shape (B, 1); no gradient reaches the features."""
        x = self.joined(self.movable(obs), actions)
        (value,) = self.symmetrizer(lambda views: self._values_and_features(views, count=1, learn=False), x).values()
        return cast("Tensor", value)

    def joined(self, movable: PyTorchObs, actions: Tensor) -> dict[str, Tensor]:
        """Return movable observations and scaled actions as one dictionary, which the group moves by `input`."""
        return {**self._named(movable), "action": actions}

    def symmetrized(self, x: Mapping[str, Tensor]) -> Tensor:
        """Return invariant values of what `joined` returned, shape (B, critics)."""
        return torch.cat(list(self.symmetrizer(self._values_and_features, x).values()), dim=1)

    def plain(self, movable: PyTorchObs, actions: Tensor) -> Tensor:
        """Return the values of the networks as they are, without their symmetrizer, shape (B, critics)."""
        values, _ = self._values_and_features(self.joined(movable, actions))
        return torch.cat(list(values.values()), dim=1)

    @staticmethod
    def _named(parts: Any) -> dict[str, Any]:
        """Return the parts of an observation under names that none of the keys can share with the action."""
        if isinstance(parts, Mapping):
            return {f"observation/{key}": part for key, part in parts.items()}
        return {"observation": parts}

    def _values_and_features(
        self, x: Mapping[str, Tensor], count: int | None = None, learn: bool | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return values by network, of the first `count` or of all, and what lambda's net reads.

        The values stay apart, so that losses sum as SB3's do, bit for bit. Its rule for gradients is kept too: the
        actor alone teaches features that it shares.
        """
        movable: Any = x.get("observation")
        if movable is None:
            movable = {key.removeprefix("observation/"): part for key, part in x.items() if key != "action"}
        learn = not self.share_features_extractor if learn is None else learn
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            features = self.features(movable)
        read = torch.cat([features, x["action"]], dim=1)
        if not self.symmetrizer.reads_features:
            return {f"qf{i}": network(read) for i, network in enumerate(self.q_networks[:count])}, read
        latents = []
        for network in self.q_networks:
            latent = read
            for layer in list(network.children())[:-1]:
                latent = layer(latent)
            latents.append(latent)
        last = zip(self.q_networks[:count], latents, strict=False)
        values = {f"qf{i}": list(network.children())[-1](latent) for i, (network, latent) in enumerate(last)}
        return values, torch.cat(latents, dim=1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(net_arch=self.net_arch, features_dim=self.features_dim, activation_fn=self.activation_fn)
        data.update(features_extractor=self.features_extractor, n_critics=self.n_critics)
        data.update(share_features_extractor=self.share_features_extractor)
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        return data


class SymmetricActorCriticPolicy(SymmetricPolicy):
    """A policy of actors and critics for continuous actions; stands before SB3's own class.

    Args:
        observation_space: as SB3 passes it.
        action_space: as SB3 passes it.
        kwargs: those of `SymmetricPolicy`, and the arguments of SB3's policy.

    Raises:
        UserError: actions that move by matrices.
    """

    scores_are = "action"

    actor_class: Callable[..., SymmetricActor]
    actor: Any
    critic: Any
    actor_kwargs: dict[str, Any]
    critic_kwargs: dict[str, Any]

    @property
    def acting(self) -> SymmetricActor:
        return cast("SymmetricActor", self.actor)

    def measured(self, obs: PyTorchObs) -> dict[str, Measured]:
        actor, critic, seen = self.acting, self.critic, self.symmetry.observation
        movable = actor.movable(obs)
        first = next(iter(movable.values())) if isinstance(movable, dict) else movable
        drawn = torch.rand(len(first), get_action_dim(self.action_space), generator=torch.Generator().manual_seed(0))
        x = critic.joined(movable, (2 * drawn - 1).to(self.device))
        return {
            "action": Measured(actor.symmetrized, seen, actor.output, movable),
            "critic": Measured(critic.symmetrized, critic.input, Trivial(self.symmetry.group), x),
        }

    def actions(self, movable: PyTorchObs, plain: bool = False) -> Tensor:
        actor = self.acting
        return actor.greedy(actor.plain(movable) if plain else actor.symmetrized(movable))

    def scores(self, movable: PyTorchObs) -> Tensor:
        return self.actions(movable)

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        return self.acting.element_weights(obs)

    def make_actor(self, features_extractor: Any = None) -> Any:
        return self._make(self.actor_class, self._update_features_extractor(self.actor_kwargs, features_extractor))

    def make_critic(self, features_extractor: Any = None) -> Any:
        return self._make(SymmetricCritic, self._update_features_extractor(self.critic_kwargs, features_extractor))

    def _build(self, lr_schedule: Schedule) -> None:
        _check_action(self.symmetry.action)
        super()._build(lr_schedule)  # type: ignore[misc]
        self.acting.ask(self.critic)


def _check_action(rep: Representation) -> None:
    if not isinstance(rep, SignedPermutation | Trivial):
        raise UserError(f"actions that move by {rep!r}: expected (signed) permutations, which commute with tanh")


def _check_score(score: Any, output: PerKey) -> None:
    if isinstance(score, str) or score in SCORES.values():
        name = score if isinstance(score, str) else next(name for name, one in SCORES.items() if one is score)
        raise UserError(
            f"score {name!r} reads logits of discrete actions: expected none, so that the critics choose, or a "
            f"function of a dictionary of {', '.join(map(repr, output.keys))}"
        )
