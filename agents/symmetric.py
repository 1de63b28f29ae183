"""What all symmetric policies share: their keywords, how their networks read observations, what is measured of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from equirl.agents.extractors import SizedCombinedExtractor, SmallCNN, default_cnn
from equirl.agents.native import PARTS, NativeExtractor
from equirl.checks import equivariance_error, greedy_disagreement
from equirl.errors import UserError
from equirl.methods import NATIVE
from equirl.representations import Grid, PerKey, Permutation, Representation, SignedPermutation, Trivial
from equirl.symmetrizers import Function, Identity, Symmetrizer
from equirl.symmetry import resolve_symmetry

SAME_ACTION = 0.01
"""Two continuous actions count as the same within this share of the action space's width."""


class Measured(NamedTuple):
    """One map of an agent that commutes with the group, and a batch to measure it on."""

    f: Function  # of inputs as the group moves them
    input: Representation
    output: Representation
    x: Any


class SymmetricNet(BaseModel):
    """Reads observations in two steps, between which the group moves them: `movable`, then `features`."""

    def movable(self, obs: PyTorchObs) -> PyTorchObs:
        """Return observations as the symmetry moves them: pictures as they are (uint8), the rest as SB3 encodes it."""
        return self._preprocessed(obs, pictures=False)

    def features(self, movable: PyTorchObs, extractor: nn.Module | None = None) -> Tensor:
        """Return what the features extractor, or another one, makes of movable observations, shape (B, D)."""
        chosen = self.features_extractor if extractor is None else extractor
        return cast("Tensor", cast("nn.Module", chosen)(self.readable(movable)))

    def readable(self, movable: PyTorchObs) -> PyTorchObs:
        """Return movable observations as features extractors read them."""
        return self._preprocessed(movable, pictures=True)

    def set_training_mode(self, mode: bool) -> None:
        """Set training mode where something in the network depends on it; SB3 asks for it in every step."""
        readers = self.__dict__.get("_mode_readers")
        if readers is None:
            readers = self.__dict__["_mode_readers"] = [self.get_submodule(name) for name in mode_readers(self)]
        if any(part.training != mode for part in readers):
            self.train(mode)
        else:
            self.__dict__["training"] = mode

    def _preprocessed(self, obs: PyTorchObs, pictures: bool) -> PyTorchObs:
        """Return observations with their pictures, or all but these, as SB3 hands them to features extractors."""
        space = self.observation_space
        if isinstance(obs, dict) and isinstance(space, spaces.Dict):
            return {key: self._read(x, space[key], key, pictures) for key, x in obs.items()}
        return self._read(cast("Tensor", obs), space, "", pictures)

    def _read(self, x: Tensor, space: spaces.Space[Any], key: str, pictures: bool) -> Tensor:
        known: dict[str, bool] = self.__dict__.setdefault("_pictures", {})
        if key not in known:  # what SB3 finds out anew for every batch
            known[key] = is_image_space(space)
        if known[key] != pictures:
            return x
        if not isinstance(space, spaces.Box):
            return cast("Tensor", preprocess_obs(x, space, self.normalize_images))
        return x.float() / 255.0 if pictures and self.normalize_images else x.float()


class SymmetricPolicy(BasePolicy):
    """An SB3 policy with the keywords `symmetry`, `method` and `symmetrizer_kwargs`; stands before SB3's own class.

    Args:
        observation_space: as SB3 passes it.
        action_space: as SB3 passes it.
        lr_schedule: as SB3 passes it.
        symmetry: a registered name such as ``"CartPole-v1"``, a `Symmetry`, or its plain JSON data.
        method: a name from `equirl.METHODS`: identity, equitune, equizero, lambda, canonical, product, soft.
        symmetrizer_kwargs: further arguments of the method, for instance ``{"score": "max_probability"}``.
        kwargs: the arguments of SB3's policy.

    Raises:
        UserError: an unknown name, a symmetry that does not act on the spaces, or gSDE.
    """

    scores_are = "action value"  # what `scores` returns
    adam_kwargs: ClassVar[dict[str, Any]] = {}  # what SB3 gives Adam where a user gives nothing
    native: ClassVar[type[BaseFeaturesExtractor] | None] = None  # of pictures and dictionaries, where "native" is built

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        symmetry: str | Mapping[str, Any],
        method: str,
        symmetrizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.symmetry = resolve_symmetry(symmetry)
        self.symmetry.check_spaces(observation_space, action_space)
        _check_layout(self.symmetry.observation, observation_space)
        if isinstance(action_space, spaces.Box) and len(action_space.shape) != 1:
            raise UserError(f"action space Box{action_space.shape}: expected a vector of actions")
        self.method, self.symmetrizer_kwargs = method, dict(symmetrizer_kwargs or {})
        if kwargs.get("use_sde"):
            raise UserError("use_sde True: expected False, since gSDE draws its noise in features that no group moves")
        _keep_freed_memory()
        super().__init__(observation_space, action_space, lr_schedule, *args, **self._with_fused_adam(method, kwargs))

    @classmethod
    def _with_fused_adam(cls, method: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Let Adam update all parameters in one kernel; the identity, which is the plain agent, keeps SB3's steps."""
        chosen = kwargs.get("optimizer_class", torch.optim.Adam)
        if method == Identity.method or chosen is not torch.optim.Adam:
            return kwargs
        given = kwargs.get("optimizer_kwargs")
        given = cls.adam_kwargs if given is None else given
        fused = {} if given.get("foreach") or given.get("differentiable") else {"fused": True}
        return {**kwargs, "optimizer_kwargs": {**fused, **given}}

    @property
    def acting(self) -> SymmetricNet:
        """The network that chooses actions."""
        raise NotImplementedError

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions as SB3 does, by a shorter way for a batch of arrays whose shape is the space's."""
        seen, done = self.observation_space, self.action_space
        if type(observation) is not np.ndarray or not isinstance(seen, spaces.Box):
            return super().predict(observation, state, episode_start, deterministic)
        if observation.shape[1:] != seen.shape or observation.ndim == len(seen.shape):
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        with torch.inference_mode():
            somewhere = self.__dict__.get("_somewhere")
            if somewhere is None:  # SB3 walks all parameters to find a device
                somewhere = self.__dict__["_somewhere"] = next(self.parameters())
            seen_here = torch.as_tensor(observation, device=somewhere.device)
            chosen = self._predict(seen_here, deterministic=deterministic)
        actions: NDArray[Any] = chosen.cpu().numpy().reshape((-1, *(done.shape or ())))
        if isinstance(done, spaces.Box):
            actions = self.unscale_action(actions) if self.squash_output else np.clip(actions, done.low, done.high)
        return actions, state

    def measured(self, obs: PyTorchObs) -> dict[str, Measured]:
        """Return every map of the agent that commutes with the group, by what it is, on these observations."""
        raise NotImplementedError

    def actions(self, movable: PyTorchObs, plain: bool = False) -> Tensor:
        """Return greedy actions of movable observations, of the agent or of the network as it is, shape (B, actions).

        In the form that the symmetry moves: one-hot vectors of discrete actions, continuous ones as they are.
        """
        raise NotImplementedError

    def scores(self, movable: PyTorchObs) -> Tensor:
        """Return what a picture shows for each action: action values, logits or actions, shape (B, actions)."""
        raise NotImplementedError

    def element_weights(self, obs: PyTorchObs) -> Tensor:
        """Return the weight of each element's view, shape (G, B)."""
        raise NotImplementedError

    def equivariance_error(self, obs: PyTorchObs) -> float:
        """Return the largest `equirl.equivariance_error` of all maps of the agent."""
        errors = [equivariance_error(*each) for each in self.measured(obs).values()]
        return float(torch.tensor(errors, dtype=torch.float64).max())  # nan where one is, unlike Python's

    def greedy_disagreement(self, obs: PyTorchObs, plain: bool = False) -> float:
        """Return `equirl.greedy_disagreement` of the agent, or of the network without its symmetrizer."""
        seen, done = self.symmetry.observation, self.action_representation()
        tolerance = same_within(self.action_space, self.squash_output).to(self.device)
        return greedy_disagreement(lambda x: self.actions(x, plain), seen, done, self.acting.movable(obs), tolerance)

    def action_representation(self) -> Representation:
        """Return how the group moves `actions`: for squashed ones, in SB3's units from -1 to 1."""
        return scaled(self.symmetry.action) if self.squash_output else self.symmetry.action

    def _make(self, network: Callable[..., SymmetricNet], arguments: Mapping[str, Any]) -> Any:
        """Return a new network with a symmetrizer of its own."""
        return network(
            symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs, **arguments
        ).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(symmetry=self.symmetry, method=self.method, symmetrizer_kwargs=self.symmetrizer_kwargs)
        return data


class PicturePolicy(SymmetricPolicy):
    """Chooses NatureCNN from 36 pixels a side and `SmallCNN` below, unless an extractor is given."""

    cnn_arch: ClassVar[list[int] | None] = []  # of the layers behind a CNN; None: SB3's for all policies

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self.native is not None and kwargs.get("method") == NATIVE:
            kwargs.setdefault("features_extractor_class", self.native)
        if "features_extractor_class" not in kwargs:
            normalized = not kwargs.get("normalize_images", True)
            kwargs["features_extractor_class"] = default_cnn(observation_space, normalized)
        chosen = kwargs["features_extractor_class"]
        # Heirs of NatureCNN have the layers that SB3 gives them.
        ours = chosen in (NatureCNN, SmallCNN) or issubclass(chosen, NativeExtractor)
        if ours and not args and self.cnn_arch is not None:
            kwargs.setdefault("net_arch", list(self.cnn_arch))
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)


class DictPolicy(SymmetricPolicy):
    """Reads dictionaries: a CNN for each picture, the rest flattened, all concatenated."""

    def __init__(self, observation_space: spaces.Space[Any], *args: Any, **kwargs: Any) -> None:
        native = self.native if kwargs.get("method") == NATIVE else None
        kwargs.setdefault("features_extractor_class", native or SizedCombinedExtractor)
        super().__init__(observation_space, *args, **kwargs)


def _keep_freed_memory() -> None:
    """Let the C library keep what updates free, instead of asking the system anew for every page of the next one.

    glibc raises the size that it hands back to the system to twice that of the largest block it has seen freed, up to
    32 MiB; elsewhere this does nothing. Orbits are larger than what it starts from: it took a seventh of an update.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


# What computes the same in training and in evaluation mode.
_MODELESS: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv2d, nn.Flatten, nn.Sequential, nn.ModuleDict, nn.ModuleList),
    *(nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid),
    *(FlattenExtractor, NatureCNN, CombinedExtractor, MlpExtractor, SmallCNN, SizedCombinedExtractor),
    *PARTS,
)


def mode_readers(net: nn.Module) -> list[str]:
    """Return the names of those parts of a network that may compute something else in training than in evaluation.

    >>> mode_readers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    ['1']
    """

    def reads(part: nn.Module) -> bool:
        return part.reads_mode if isinstance(part, Symmetrizer) else type(part) not in _MODELESS

    return [name for name, part in net.named_modules() if part is not net and reads(part)]


def scaled(rep: Representation) -> Representation:
    """Return how the group moves actions that are scaled to [-1, 1]: mirrors are about 0 there.

    >>> from equirl import cyclic
    >>> scaled(SignedPermutation(cyclic(2), [[0], [0]], [[1], [-1]], centre=[5])).centre is None
    True
    """
    if isinstance(rep, SignedPermutation) and not isinstance(rep, Permutation):
        return SignedPermutation(rep.group, rep.indices, rep.signs)
    return rep


def magnitudes(rep: Representation) -> Representation:
    """Return how the group moves positive numbers, one an entry of an action, such as standard deviations.

    Raises:
        UserError: a matrix, which mixes entries, so that a diagonal Gaussian would not stay one.
    """
    if isinstance(rep, SignedPermutation):
        return Permutation(rep.group, rep.indices)
    if isinstance(rep, Trivial):
        return rep
    raise UserError(f"actions that move by {rep!r}: expected (signed) permutations, which keep a diagonal Gaussian one")


def same_within(space: spaces.Space[Any], squashed: bool) -> Tensor:
    """Return by how much each entry of two greedy actions may differ while they count as the same."""
    if not isinstance(space, spaces.Box):
        return torch.tensor(0.5)
    width = torch.as_tensor(space.high).double() - torch.as_tensor(space.low).double()
    width = torch.where(width.isfinite(), width, torch.ones_like(width))
    return SAME_ACTION * (2 * torch.ones_like(width) if squashed else width)


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
