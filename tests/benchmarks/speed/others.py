"""Other people's libraries, where they are installed: escnn and equiadapt in SB3's DQN, and SBX's DQN in JAX."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import CnnPolicy, QNetwork
from torch import Tensor, nn

from tests.benchmarks.speed.arms import Agent, UnavailableError, sb3_agent
from tests.benchmarks.speed.cases import Case
from tests.conftest import import_torchvision_beside_cpu_torch

INSTALL = {
    "escnn": "pip install escnn; its py3nj takes a Fortran compiler (gfortran), its lie_learn a build for NumPy 2",
    "sbx": "pip install sbx-rl",
    "equiadapt": "pip install equiadapt",
}


def library(name: str) -> Any:
    """Return a module of another library.

    Raises:
        UnavailableError: it is not installed, or does not import, whatever the reason.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.split(".")[0]:
            raise UnavailableError(f"not installed: {INSTALL[error.name]}") from error
        raise UnavailableError(f"does not import: {error}") from error
    except Exception as error:  # a library built for other versions fails with whatever it meets first
        raise UnavailableError(f"does not import: {type(error).__name__}: {str(error).splitlines()[0]}") from error


class SteerableCNN(BaseFeaturesExtractor):
    """Three 3x3 convolutions between regular fields of C4 by escnn, collapsed by an equivariant 9x9 one.

    Args:
        observation_space: a Box of shape (C, H, W).
        width: regular fields of each convolution.
        features: regular fields of the last one; there are four times as many features. By default, escnn 1.0.11 has
            0.98 times the parameters of `SmallCNN` on three channels.
    """

    def __init__(self, observation_space: Any, width: int = 34, features: int = 68) -> None:
        super().__init__(observation_space, 4 * features)
        channels, side, _ = observation_space.shape
        gspaces, enn = library("escnn.gspaces"), library("escnn.nn")
        turns = gspaces.rot2dOnR2(4)
        hidden, last = (enn.FieldType(turns, n * [turns.regular_repr]) for n in (width, features))
        self.seen = enn.FieldType(turns, channels * [turns.trivial_repr])
        layers, before = [], self.seen
        for _ in range(3):
            layers += [enn.R2Conv(before, hidden, 3, padding=1), enn.ReLU(hidden)]
            before = hidden
        layers += [enn.R2Conv(before, last, side), enn.ReLU(last)]
        self.cnn, self.wrap = enn.SequentialModule(*layers), enn.GeometricTensor

    def forward(self, observations: Tensor) -> Tensor:
        return self.cnn(self.wrap(observations, self.seen)).tensor.flatten(1)


class Turned(nn.Module):
    """A linear map from regular features (B, 4 C) of C4 to four action values that a quarter turn shifts by one."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fields = x.unflatten(1, (-1, 4)).transpose(1, 2)
        return self.linear(fields).squeeze(-1)


class SteerableNetwork(QNetwork):
    """SB3's Q-network with an equivariant last layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_net = nn.Sequential(Turned(self.features_dim))


class SteerablePolicy(CnnPolicy):
    """SB3's policy of pictures with such networks."""

    def make_q_net(self) -> QNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return SteerableNetwork(**arguments).to(self.device)


def escnn_agent(case: Case, device: str, quick: bool) -> Agent:
    """Return SB3's DQN with escnn's network of about as many parameters as the plain one."""
    library("escnn")
    kwargs = case.plain_kwargs | {"features_extractor_class": SteerableCNN, "optimizer_kwargs": {"fused": True}}
    return sb3_agent(case, SteerablePolicy, kwargs, device, quick)


class CanonicalizedNetwork(QNetwork):
    """SB3's Q-network behind equiadapt's canonicalizer of quarter turns, its group convolutions the scores."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        images, config = library("equiadapt.images"), library("omegaconf").OmegaConf
        shape = self.observation_space.shape
        scores = images.CustomEquivariantNetwork(shape, out_channels=16, kernel_size=3, num_layers=3, device="cpu")
        scores.group_type, scores.num_rotations = "rotation", 4
        options = config.create({"beta": 1.0, "input_crop_ratio": 1.0, "resize_shape": shape[-1]})
        self.canonicalizer = images.GroupEquivariantImageCanonicalization(scores, options, shape)

    def forward(self, obs: Any) -> Tensor:
        pose = self.canonicalizer.canonicalize(obs.float() / 255)
        values = self.q_net(self.features_extractor(pose))
        return self.canonicalizer.invert_canonicalization(values[:, :, None, None]).flatten(1)


class CanonicalizedPolicy(CnnPolicy):
    """SB3's policy of pictures with such networks."""

    def make_q_net(self) -> QNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return CanonicalizedNetwork(**arguments).to(self.device)


def equiadapt_agent(case: Case, device: str, quick: bool) -> Agent:
    """Return SB3's DQN with equiadapt's canonicalizer before the plain network."""
    if find_spec("torchvision"):
        import_torchvision_beside_cpu_torch()
    library("equiadapt")
    return sb3_agent(
        case, CanonicalizedPolicy, case.plain_kwargs | {"optimizer_kwargs": {"fused": True}}, device, quick
    )


def sbx_agent(case: Case, device: str, quick: bool) -> Agent:
    """Return SBX's DQN with the same settings; what its network has else is SBX's own.

    Raises:
        UnavailableError: SBX is missing, or has no network for such observations.
    """
    if torch.get_num_threads() == 1:  # XLA reads this when it starts; torch's own number says nothing to it
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    sbx = library("sbx")
    if device != "cpu":
        raise UnavailableError("measured on the CPU alone")
    if case.plain_kwargs:
        raise UnavailableError(f"SBX has no {case.network}")
    kwargs = case.algorithm(quick)
    kwargs.pop("n_steps", None)  # SBX knows returns over one step alone, whose samples cost it less
    policy = "MlpPolicy" if "net_arch" in kwargs["policy_kwargs"] else "CnnPolicy"
    model = sbx.DQN(policy, case.make_env(), seed=0, **kwargs)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return SbxAgent(model, np.asarray, lambda obs: model.policy.select_action(model.policy.qf_state, obs))


class SbxAgent(Agent):
    """Waits for what JAX has only promised to compute."""

    in_torch = False

    def update(self, gradient_steps: int, batch: int) -> None:
        super().update(gradient_steps, batch)
        self._wait(self.model.policy.qf_state.params)

    def _wait(self, values: Any) -> None:
        library("jax").block_until_ready(values)

    @property
    def parameters(self) -> int:
        leaves = library("jax").tree_util.tree_leaves(self.model.policy.qf_state.params)
        return sum(int(leaf.size) for leaf in leaves)
