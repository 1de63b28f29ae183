"""A trained SB3 agent made equivariant: the same algorithm and weights behind a symmetric policy."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr

from equirl.agents.symmetric import SymmetricPolicy
from equirl.errors import UserError
from equirl.methods import NATIVE, unknown_method
from equirl.representations import PerKey, Representation, Trivial
from equirl.symmetrizers import Identity
from equirl.symmetry import Symmetry, resolve_symmetry

Model = TypeVar("Model", bound=BaseAlgorithm)

# SB3's modules of policies, and ours, which have the same names.
MODULES = {
    "stable_baselines3.dqn.policies": "equirl.agents.dqn",
    "sb3_contrib.qrdqn.policies": "equirl.agents.qrdqn",
    "stable_baselines3.common.policies": "equirl.agents.actor_critic",
    "stable_baselines3.sac.policies": "equirl.agents.sac",
    "stable_baselines3.td3.policies": "equirl.agents.td3",
}
_NAMES = {  # of SB3's classes, where these are not the aliases themselves
    "DQNPolicy": "MlpPolicy",
    "QRDQNPolicy": "MlpPolicy",
    "SACPolicy": "MlpPolicy",
    "TD3Policy": "MlpPolicy",
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "MultiInputActorCriticPolicy": "MultiInputPolicy",
}
# What learning and setting up change in place.
_LIVELY = ("ep_info_buffer", "ep_success_buffer", "action_noise", "replay_buffer_kwargs")
OURS = frozenset({"symmetry", "method", "symmetrizer_kwargs", "double_selection"})
"""The keywords of symmetric policies that SB3's own lack."""


def symmetrize_model(model: Model, symmetry: str | Mapping[str, Any], method: str, **options: Any) -> Model:
    """Return a trained SB3 agent made equivariant, without retraining; the agent that is given stays as it is.

    The weights, the optimizers' states and the counters are copied; environment and replay buffer are the same objects,
    so that the new agent can go on training in place of the old one.

    Args:
        model: a DQN, QR-DQN, PPO, A2C, SAC or TD3 agent with one of SB3's own policies, or one that is symmetric.
        symmetry: a registered name, a `Symmetry`, or its plain JSON data; stacked frames and layouts are adapted to.
        method: one of `equirl.METHODS`.
        options: further arguments of the method, such as ``score="entropy"`` for equizero.

    Raises:
        UserError: another policy, a symmetry that does not act on the spaces, or observations that are normalised by
            statistics which the group does not keep; native networks on either side, whose weights fit no others.
    """
    policy = symmetric_policy_of(model)
    if method == NATIVE:
        raise unknown_method(method)
    check_weights(getattr(model.policy, "method", Identity.method), method)
    resolved = resolve_symmetry(symmetry)
    fitted = resolved.fitted(model.observation_space)
    fitted.check_spaces(model.observation_space, model.action_space)
    check_normalization(model, fitted, method)
    kwargs = {key: value for key, value in model.policy_kwargs.items() if key not in OURS}
    named = isinstance(symmetry, str) and fitted == resolved
    kwargs |= {"symmetry": symmetry if named else fitted, "method": method}
    if options:
        kwargs["symmetrizer_kwargs"] = options
    return _rebuilt(model, policy, kwargs)


def check_weights(trained: str, method: str) -> None:
    """Raise a `UserError` where one of two methods is native and the other is not: neither fits the other's weights."""
    if (trained == NATIVE) != (method == NATIVE):
        raise UserError(
            f"method {method!r} for an agent trained under {trained!r}: native weights fit no other network"
        )


def symmetric_policy_of(model: BaseAlgorithm) -> type[SymmetricPolicy]:
    """Return our policy class in place of the one that a model has.

    Raises:
        UserError: the model's policy is neither one of SB3's own nor one of ours.
    """
    policy = type(model.policy)
    if issubclass(policy, SymmetricPolicy):
        return policy
    ours, name = MODULES.get(policy.__module__), policy.__name__
    own = ours is not None and getattr(import_module(policy.__module__), name, None) is policy
    found = getattr(import_module(ours), _NAMES.get(name, name), None) if ours and own else None
    if found is None:
        raise UserError(
            f"a {type(model).__name__} agent with {policy.__module__}.{policy.__name__}: expected DQN, QRDQN, PPO, "
            "A2C, SAC or TD3 with SB3's own MlpPolicy, CnnPolicy or MultiInputPolicy; derive a policy of your own from "
            "equirl's instead"
        )
    return found  # type: ignore[no-any-return]


def _rebuilt(model: Model, policy: type[SymmetricPolicy], policy_kwargs: dict[str, Any]) -> Model:
    """Return a model like the given one but for its policy, by the steps of SB3's own `save` and `load`."""
    modules, variables = model._get_torch_save_params()
    left_out = {*model._excluded_save_params(), *(name.split(".")[0] for name in (*modules, *variables))}
    copy: Any = type(model)(policy, env=None, device=model.device, _init_setup_model=False)  # type: ignore[call-arg]
    copy.__dict__.update({key: value for key, value in vars(model).items() if key not in left_out})
    copy.__dict__.update({key: deepcopy(vars(model)[key]) for key in _LIVELY if key in vars(model)})
    copy.policy_class, copy.policy_kwargs = policy, policy_kwargs
    copy.seed = None  # setting up would seed everything random
    if getattr(model, "replay_buffer", None) is not None:
        copy.replay_buffer = model.replay_buffer  # type: ignore[attr-defined]
    buffers = getattr(model, "replay_buffer_class", None)
    if buffers is NStepReplayBuffer:
        copy.replay_buffer_class = None  # SB3's own choice, of which it would warn as if it were the user's
    copy._setup_model()
    if hasattr(copy, "replay_buffer_class"):
        copy.replay_buffer_class = buffers
    copy.seed, copy.env, copy._vec_normalize_env = model.seed, model.env, model._vec_normalize_env
    copy_parameters(model, copy)
    copy.policy.set_training_mode(model.policy.training)
    return copy  # type: ignore[no-any-return]


def copy_parameters(source: BaseAlgorithm, target: BaseAlgorithm) -> None:
    """Give a model the weights, the optimizers' states and the loose tensors of another with the same networks.

    Where the two differ in what their symmetrizers learn, the target's symmetrizers stay fresh, and so do the states of
    the optimizers that count their parameters.
    """
    parameters, fresh = deepcopy(source.get_parameters()), target.get_parameters()  # optimizers keep what they load
    anew = False
    for name in _networks(target):
        own = {key: value for key, value in fresh[name].items() if _is_symmetrizers(key)}
        given = {key: value for key, value in parameters[name].items() if not _is_symmetrizers(key)}
        if own.keys() != parameters[name].keys() - given.keys():
            anew = True
            parameters[name] = {**given, **own}
    if anew:
        states = {name: state for name, state in fresh.items() if name.endswith("optimizer")}
        parameters |= {name: state for name, state in states.items() if name != "ent_coef_optimizer"}
    kernels = [[group.get("fused") for group in optimizer.param_groups] for optimizer in _optimizers(target)]
    target.set_parameters(parameters)  # type: ignore[arg-type]
    for optimizer, fused in zip(_optimizers(target), kernels, strict=True):
        for group, kernel in zip(optimizer.param_groups, fused, strict=True):
            if "fused" in group:  # RMSpropTFLike knows no such setting
                group["fused"] = kernel  # how it steps is the target's own
    for name in source._get_torch_save_params()[1]:
        recursive_setattr(target, f"{name}.data", recursive_getattr(source, name).data.clone())


def _optimizers(model: BaseAlgorithm) -> list[torch.optim.Optimizer]:
    parts = [recursive_getattr(model, name) for name in model._get_torch_save_params()[0]]
    return [part for part in parts if isinstance(part, torch.optim.Optimizer)]


def without_symmetrizers(model: BaseAlgorithm) -> dict[str, Any]:
    """Return a model's parameters, as SB3 names them, but for what its symmetrizers learn."""
    parameters = model.get_parameters()
    for name in _networks(model):
        parameters[name] = {key: value for key, value in parameters[name].items() if not _is_symmetrizers(key)}
    return parameters


def _networks(model: BaseAlgorithm) -> list[str]:
    names = model._get_torch_save_params()[0]
    return [name for name in names if isinstance(recursive_getattr(model, name), torch.nn.Module)]


def _is_symmetrizers(key: str) -> bool:
    return "symmetrizer" in key.split(".")


def check_normalization(model: BaseAlgorithm, symmetry: Symmetry, method: str) -> None:
    """Raise a `UserError` where an agent reads normalised observations whose statistics the group does not keep.

    That is where (g x - mean) / deviation = g ((x - mean) / deviation) for every element g and every x.
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs or method == Identity.method:
        return
    rep, space = symmetry.observation, model.observation_space
    rms: Any = normalizer.obs_rms
    if isinstance(rms, dict):
        parts = rep.keys if isinstance(rep, PerKey) else {}
        checked = [(parts.get(key, Trivial(symmetry.group)), each, space[key].shape) for key, each in rms.items()]  # type: ignore[index]
    else:
        checked = [(rep, rms, space.shape)]
    for part, statistics, shape in checked:
        if not _keeps(part, statistics.mean, np.sqrt(statistics.var + normalizer.epsilon), shape):
            raise UserError(
                f"VecNormalize statistics that {symmetry.group} does not keep, of mean "
                f"{np.round(statistics.mean, 3).ravel()[:8].tolist()}, with method {method!r}: expected method "
                "'identity', statistics tied over orbits, or an agent trained without normalisation"
            )


def _keeps(rep: Representation, mean: Any, deviation: Any, shape: tuple[int, ...]) -> bool:
    if isinstance(rep, Trivial):
        return True
    for axis, (more, once) in enumerate(zip(shape, mean.shape, strict=True)):  # frames stacked after normalisation
        mean, deviation = (np.concatenate([each] * (more // once), axis) for each in (mean, deviation))
    centre, width = torch.as_tensor(mean), torch.as_tensor(deviation)
    z = torch.randn(8, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.allclose((rep.orbit(centre + width * z) - centre) / width, rep.orbit(z), rtol=0, atol=1e-5)
