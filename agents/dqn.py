"""Equivariant policies for SB3's own DQN, under SB3's own names.

    from stable_baselines3 import DQN
    from equirl.agents.dqn import MlpPolicy
    model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))

The action values obey Q(g s, g a) = Q(s, a) for every element g of the symmetry's group. Greedy actions are SB3's: the
lowest index among equal action values, which is the one choice that no symmetry can make where g s = s.
The state dict keeps SB3's keys (lambda-equitune adds its own small net), so weights of a plain agent load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn import policies as sb3

from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN, default_cnn
from equirl.errors import UserError
from equirl.symmetrizers import Equizero, make_symmetrizer
from equirl.symmetry import Symmetry, resolve_symmetry


class QNetwork(sb3.QNetwork):
    """SB3's Q-network seen through a symmetrizer: Q_G(s, .) = sum_g w_g(s) rho_A(g)^-1 Q(rho_S(g) s, .).

    Args:
        symmetry: how the group moves observations and actions.
        method: a name from `equirl.METHODS`.
        symmetrizer_kwargs: further arguments of the method.
        kwargs: the arguments of SB3's QNetwork.
    """

    def __init__(
        self, *args: Any, symmetry: Symmetry, method: str, symmetrizer_kwargs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.symmetry, self.method, self.symmetrizer_kwargs = symmetry, method, dict(symmetrizer_kwargs)
        width = self.net_arch[-1] if self.net_arch else self.features_dim
        self.symmetrizer = make_symmetrizer(
            method, symmetry.observation, symmetry.action, features_dim=width, **symmetrizer_kwargs
        )
        # Boxes are moved raw (uint8 pictures before the cast); the rest as the one-hot vectors that SB3 makes of them.
        self._moves_raw = all(isinstance(space, spaces.Box) for space in _leaves(self.observation_space))
        self._selector: tuple[QNetwork, ...] = ()  # a tuple, so that torch does not take it for a part of this net

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Return equivariant action values, shape (B, actions)."""
        selector = (self._selector[0].values_and_features,) if self._selector else ()
        values: torch.Tensor = self.symmetrizer(self.values_and_features, self._movable(obs), *selector)
        return values

    def element_weights(self, obs: PyTorchObs) -> torch.Tensor:
        """Return the weight of each element's view, shape (G, B)."""
        return self.symmetrizer.weights(self.symmetrizer.branches(self.values_and_features, self._movable(obs)))

    def plain(self, obs: PyTorchObs) -> torch.Tensor:
        """Return the action values of the network as it is, without its symmetrizer."""
        return super().forward(obs)

    def values_and_features(self, obs: PyTorchObs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return plain action values and the activations before the last layer, shape (B, D)."""
        features = (
            self.extract_features(obs, self.features_extractor) if self._moves_raw else self.features_extractor(obs)
        )
        *hidden, last = self.q_net
        for layer in hidden:
            features = layer(features)
        return last(features), features

    def _movable(self, obs: PyTorchObs) -> PyTorchObs:
        """Return observations in the form that the representation moves."""
        if self._moves_raw:
            return obs
        return preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)

    def select_by(self, other: QNetwork) -> None:
        """Let another network choose equizero's views while this one fills them (as double Q-learning does)."""
        self._selector = (other,)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        return data


class DQNPolicy(sb3.DQNPolicy):
    """SB3's DQN policy with equivariant action values.

    Args:
        observation_space: as SB3 passes it.
        action_space: as SB3 passes it.
        lr_schedule: as SB3 passes it.
        symmetry: a registered name such as ``"CartPole-v1"``, a `Symmetry`, or its plain JSON data.
        method: a name from `equirl.METHODS`: identity, equitune, equizero, lambda.
        symmetrizer_kwargs: further arguments of the method, for instance ``{"score": "max_probability"}``.
        double_selection: let the online net choose equizero's views for the target net, against over-estimation.
        kwargs: the arguments of SB3's policy.

    Raises:
        UserError: an unknown name, or a symmetry that does not act on the spaces.

    >>> from stable_baselines3 import DQN
    >>> model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))
    >>> state = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    >>> torch.allclose(model.q_net(-state), model.q_net(state).flip(-1))
    True
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *args: Any,
        symmetry: str | Mapping[str, Any],
        method: str,
        symmetrizer_kwargs: Mapping[str, Any] | None = None,
        double_selection: bool = False,
        **kwargs: Any,
    ) -> None:
        self.symmetry = resolve_symmetry(symmetry)
        self.symmetry.check_spaces(observation_space, action_space)
        self.method, self.symmetrizer_kwargs = method, dict(symmetrizer_kwargs or {})
        self.double_selection = double_selection
        if double_selection and method != Equizero.method:
            raise UserError(f"double_selection with method {method!r}: expected 'equizero', whose choice it splits")
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def make_q_net(self) -> QNetwork:
        """Return a new network with its own features extractor and symmetrizer."""
        return QNetwork(
            symmetry=self.symmetry,
            method=self.method,
            symmetrizer_kwargs=self.symmetrizer_kwargs,
            **self._update_features_extractor(self.net_args),
        ).to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.double_selection:
            assert isinstance(self.q_net, QNetwork)
            assert isinstance(self.q_net_target, QNetwork)
            self.q_net_target.select_by(self.q_net)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        data.update(double_selection=self.double_selection)
        return data


MlpPolicy = DQNPolicy


class CnnPolicy(DQNPolicy):
    """`DQNPolicy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor that is given."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Discrete, *args: Any, **kwargs: Any
    ) -> None:
        extractor = kwargs.setdefault("features_extractor_class", default_cnn(observation_space))
        if issubclass(extractor, NatureCNN | SmallCNN) and len(args) < 2:
            kwargs.setdefault("net_arch", [])
        super().__init__(observation_space, action_space, *args, **kwargs)


class MultiInputPolicy(DQNPolicy):
    """`DQNPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Discrete, *args: Any, **kwargs: Any
    ) -> None:
        kwargs.setdefault("features_extractor_class", SizedCombinedExtractor)
        super().__init__(observation_space, action_space, *args, **kwargs)


def _leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    return list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
