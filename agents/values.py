"""What DQN and QR-DQN share: networks of action values, online and target, seen through a symmetrizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.nn.functional import one_hot

from equirl._chains import Chain, hooked
from equirl.agents.extractors import layers_of
from equirl.agents.making import movable_shape, symmetrizer_of
from equirl.agents.native import Native, NativeExtractor, native_head, width_in
from equirl.agents.recorded import Recordings
from equirl.agents.symmetric import Measured, SymmetricNet, SymmetricPolicy
from equirl.errors import UserError
from equirl.methods import NATIVE
from equirl.symmetrizers import Equizero, Identity, Symmetrizer
from equirl.symmetry import Symmetry


class SymmetricValues(SymmetricNet):
    """A network of action values seen through a symmetrizer: Q_G(s, .) = sum_g w_g(s) rho_A(g)^-1 Q(rho_S(g) s, .).

    It stands before SB3's own class, whose `head` it calls.

    Args:
        symmetry: how the group moves observations and actions.
        method: a name from `equirl.METHODS`, or "native", layers that are equivariant by construction.
        symmetrizer_kwargs: further arguments of the method.
        kwargs: the arguments of SB3's network.
    """

    def __init__(
        self, *args: Any, symmetry: Symmetry, method: str, symmetrizer_kwargs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.symmetry, self.method, self.symmetrizer_kwargs = symmetry, method, dict(symmetrizer_kwargs)
        width = self.net_arch[-1] if self.net_arch else self.features_dim
        moves, options = (symmetry.observation, symmetry.action), self._options(method, symmetrizer_kwargs)
        self.symmetrizer: Symmetrizer = (
            self._native(**options)
            if method == NATIVE
            else symmetrizer_of(method, *moves, width, movable_shape(self.observation_space), options)
        )
        self._chained: tuple[list[nn.Module], Chain | None] = ([], None)
        self._selector: tuple[SymmetricValues, ...] = ()  # a tuple, so that torch does not take it for a part of this

    head_name: ClassVar[str]  # what SB3 calls the layers behind the features extractor
    action_space: spaces.Discrete
    activation_fn: type[nn.Module]
    features_dim: int
    net_arch: list[int]

    @property
    def head(self) -> nn.Sequential:
        """The layers behind the features extractor."""
        return cast("nn.Sequential", getattr(self, self.head_name))

    @property
    def copies(self) -> int:
        """How many numbers the network returns for each action."""
        return 1

    def _native(self, **options: Any) -> Native:
        """Put native layers in place of SB3's, and return the symmetrizer that leaves them as they are."""
        made = Native(self.symmetry.observation, self.symmetry.action, **options)
        arch, actions = (self.net_arch, self.activation_fn), int(self.action_space.n)
        inputs = (cast("nn.Module", self.features_extractor), self.observation_space, self.symmetry)
        setattr(self, self.head_name, native_head(*inputs, *arch, actions, self.copies, made.width))
        return made

    def _options(self, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(given)

    def _shaped(self, values: Tensor) -> Tensor:
        """Return the outputs of the last layer with the actions along the last axis."""
        return values

    def action_values(self, outputs: Tensor) -> Tensor:
        """Return action values, shape (..., actions), from the network's outputs."""
        return outputs

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Return equivariant outputs, the actions along the last axis."""
        return self.symmetrized(self.movable(obs))

    def symmetrized(self, movable: PyTorchObs) -> Tensor:
        """Return equivariant outputs of what `movable` returned: the function whose equivariance can be measured.

        It equals `forward` but for discrete observations, which the symmetry moves as one-hot vectors.
        """
        selector = (self._selector[0].values_and_features,) if self._selector else ()
        values: Tensor = self.symmetrizer(self.values_and_features, movable, *selector)
        return values

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        """Return the weight of each element's view, shape (G, B)."""
        return self.symmetrizer.weights(self.symmetrizer.branches(self.values_and_features, self.movable(obs)))

    def plain(self, obs: PyTorchObs) -> Tensor:
        """Return the outputs of the network as it is, without its symmetrizer."""
        return self.values_and_features(self.movable(obs))[0]

    def values_and_features(self, movable: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Return plain outputs and the activations before the last layer, shape (B, D)."""
        chain = self.chain()
        if chain is not None:
            values, features = chain(cast("Tensor", self.readable(movable)))
            return self._shaped(values), features
        features = self.features(movable)
        *hidden, last = self.head
        for layer in hidden:
            features = layer(features)
        return self._shaped(last(features)), features

    def chain(self) -> Chain | None:
        """Return all layers as one function where they are plain ones in a row, but for the identity, which is SB3."""
        extractor = cast("nn.Module", self.features_extractor)
        if self.method == Identity.method or any(map(hooked, (extractor, *extractor.children()))):
            return None
        layers = [*(layers_of(extractor) or [extractor]), *self.head]
        if self._chained[0] != layers:  # this is the first call, or some were exchanged
            self._chained = layers, Chain.of(layers)
        return self._chained[1]

    def select_by(self, other: SymmetricValues) -> None:
        """Let another network choose equizero's views while this one fills them (as double Q-learning does)."""
        self._selector = (other,)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        return data


class SymmetricValuePolicy(SymmetricPolicy):
    """A policy of two networks of action values, online and target; stands before SB3's own class.

    Args:
        observation_space: as SB3 passes it.
        action_space: as SB3 passes it.
        lr_schedule: as SB3 passes it.
        method: as `SymmetricPolicy` says; or "native", networks that are equivariant by construction, at one forward
            and about 1/G of the weights, all layers twice as wide by ``symmetrizer_kwargs={"width": 2}``.
        double_selection: let the online net choose equizero's views for the target net, against over-estimation.
        kwargs: those of `SymmetricPolicy`, and the arguments of SB3's policy.
    """

    native: ClassVar[type[BaseFeaturesExtractor]] = NativeExtractor
    recordings: Recordings | None = None  # of a compiled agent on a GPU

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        method: str,
        double_selection: bool = False,
        **kwargs: Any,
    ) -> None:
        self.double_selection = double_selection
        if double_selection and method != Equizero.method:
            raise UserError(f"double_selection with method {method!r}: expected 'equizero', whose choice it splits")
        super().__init__(observation_space, action_space, lr_schedule, *args, method=method, **kwargs)

    @property
    def nets(self) -> tuple[SymmetricValues, SymmetricValues]:
        """The online and the target network."""
        raise NotImplementedError

    @property
    def acting(self) -> SymmetricValues:
        return self.nets[0]

    def measured(self, obs: PyTorchObs) -> dict[str, Measured]:
        seen, done, net = self.symmetry.observation, self.symmetry.action, self.acting
        return {"action values": Measured(net.symmetrized, seen, done, net.movable(obs))}

    def scores(self, movable: PyTorchObs) -> Tensor:
        return self.acting.action_values(self.acting.symmetrized(movable))

    def actions(self, movable: PyTorchObs, plain: bool = False) -> Tensor:
        net = self.acting
        values = net.action_values(net.values_and_features(movable)[0] if plain else net.symmetrized(movable))
        return one_hot(values.argmax(-1), values.shape[-1])

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        return self.acting.element_weights(obs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> Tensor:
        return self._greedy(observation) if self.recordings is None else self.recordings(self._greedy, observation)

    def _greedy(self, observation: PyTorchObs) -> Tensor:
        net = self.nets[0]
        outputs = net(observation) if hooked(net) else net.forward(observation)
        return net.action_values(outputs).argmax(1)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Return a new features extractor."""
        chosen = self.features_extractor_class
        if chosen is not NativeExtractor:
            return super().make_features_extractor()
        filled: dict[str, Any] = {
            "width": width_in(self.symmetrizer_kwargs),
            "normalized_image": not self.normalize_images,
        }
        for name in filled.keys() & self.features_extractor_kwargs.keys():
            raise UserError(f"{name} in features_extractor_kwargs with method 'native': expected features_dim alone")
        return NativeExtractor(self.observation_space, self.symmetry, **filled, **self.features_extractor_kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        _check_extractor(self.method, self.features_extractor_class)
        super()._build(lr_schedule)  # type: ignore[misc]
        if self.double_selection:
            online, target = self.nets
            target.select_by(online)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(double_selection=self.double_selection)
        return data


def _check_extractor(method: str, chosen: type[BaseFeaturesExtractor]) -> None:
    """Raise a `UserError` for a features extractor that is not equivariant under "native", or is so elsewhere."""
    if method == NATIVE and chosen not in (FlattenExtractor, NativeExtractor):
        raise UserError(
            f"features_extractor_class {chosen.__name__} with method 'native': expected none, since native has its own"
        )
    if method != NATIVE and chosen is NativeExtractor:
        raise UserError(f"features_extractor_class NativeExtractor with method {method!r}: expected 'native'")
