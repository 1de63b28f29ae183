"""Equivariant policies for SB3's own DQN, under SB3's own names.

    from stable_baselines3 import DQN
    from equirl.agents.dqn import MlpPolicy
    model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))

The action values obey Q(g s, g a) = Q(s, a) for every element g of the symmetry's group. Greedy actions are SB3's: the
lowest index among equal action values, a choice that no symmetry can make where g s = s.
The state dict keeps SB3's keys (lambda-equitune adds its own small net), so weights of a plain agent load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn import policies as sb3

from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN, default_cnn
from equirl.errors import UserError
from equirl.representations import Grid, PerKey, Representation
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
        self._selector: tuple[QNetwork, ...] = ()  # a tuple, so that torch does not take it for a part of this net

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Return equivariant action values, shape (B, actions)."""
        return self.symmetrized(self.movable(obs))

    def symmetrized(self, movable: PyTorchObs) -> torch.Tensor:
        """Return equivariant action values of what `movable` returned: the function whose equivariance can be measured.

        It equals `forward` but for discrete observations, which the symmetry moves as one-hot vectors.
        """
        selector = (self._selector[0].values_and_features,) if self._selector else ()
        values: torch.Tensor = self.symmetrizer(self.values_and_features, movable, *selector)
        return values

    def movable(self, obs: PyTorchObs) -> PyTorchObs:
        """Return observations as the symmetry moves them: pictures as they are (uint8), the rest as SB3 encodes it."""
        return self._preprocessed(obs, pictures=False)

    def element_weights(self, obs: PyTorchObs) -> torch.Tensor:
        """Return the weight of each element's view, shape (G, B)."""
        return self.symmetrizer.weights(self.symmetrizer.branches(self.values_and_features, self.movable(obs)))

    def plain(self, obs: PyTorchObs) -> torch.Tensor:
        """Return the action values of the network as it is, without its symmetrizer."""
        return super().forward(obs)

    def values_and_features(self, movable: PyTorchObs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return plain action values and the activations before the last layer, shape (B, D)."""
        features = self.features_extractor(self._preprocessed(movable, pictures=True))
        *hidden, last = self.q_net
        for layer in hidden:
            features = layer(features)
        return last(features), features

    def _preprocessed(self, obs: PyTorchObs, pictures: bool) -> PyTorchObs:
        """Return observations with their pictures, or all but these, as SB3 hands them to features extractors."""

        def part(x: Any, space: spaces.Space[Any]) -> Any:
            return preprocess_obs(x, space, self.normalize_images) if is_image_space(space) == pictures else x

        space = self.observation_space
        if isinstance(obs, dict) and isinstance(space, spaces.Dict):
            return {key: part(x, space[key]) for key, x in obs.items()}
        return part(obs, space)  # type: ignore[no-any-return]

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
        _check_layout(self.symmetry.observation, observation_space)
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
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if "features_extractor_class" not in kwargs:
            normalized = not kwargs.get("normalize_images", True)
            kwargs["features_extractor_class"] = default_cnn(observation_space, normalized)
        if not args and issubclass(kwargs["features_extractor_class"], NatureCNN | SmallCNN):
            kwargs.setdefault("net_arch", [])
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)


class MultiInputPolicy(DQNPolicy):
    """`DQNPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Discrete, *args: Any, **kwargs: Any
    ) -> None:
        kwargs.setdefault("features_extractor_class", SizedCombinedExtractor)
        super().__init__(observation_space, action_space, *args, **kwargs)


def _check_layout(rep: Representation, space: spaces.Space[Any]) -> None:
    """Raise a `UserError` for channels-last symmetries of pictures, which SB3 has turned channels-first by now."""
    if isinstance(rep, PerKey) and isinstance(space, spaces.Dict):
        for key, part in rep.keys.items():
            _check_layout(part, space[key])
    elif isinstance(rep, Grid) and rep.layout == "HWC" and is_image_space(space):
        channels, *sides = space.shape or ()
        if channels < min(sides):
            raise UserError(
                f"layout 'HWC' on pictures {space.shape}: expected 'CHW', as SB3 hands pictures to policies"
            )
