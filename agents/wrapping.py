"""A trained SB3 agent made equivariant: the same algorithm and weights behind a symmetric policy."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr

from equirl.agents.symmetric import SymmetricPolicy
from equirl.errors import UserError
from equirl.representations import PerKey, Representation, SignedPermutation, Trivial
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
            statistics which the group does not keep.
    """
    policy = symmetric_policy_of(model)
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


def symmetric_policy_of(model: BaseAlgorithm) -> type[SymmetricPolicy]:
    """Return our policy class in place of the one that a model has.

    Raises:
        UserError: the model's policy is neither one of SB3's own nor one of ours.
    """
    policy = type(model.policy)
    if issubclass(policy, SymmetricPolicy):
        return policy
    ours = MODULES.get(policy.__module__)
    name = _NAMES.get(policy.__name__, policy.__name__)
    found = getattr(import_module(ours), name, None) if ours else None
    if found is None or not issubclass(found, policy):
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
    copy.policy_class, copy.policy_kwargs = policy, policy_kwargs
    copy.seed = None  # setting up would seed everything random
    if getattr(model, "replay_buffer", None) is not None:
        copy.replay_buffer = model.replay_buffer  # type: ignore[attr-defined]
    copy._setup_model()
    copy.seed, copy.env, copy._vec_normalize_env = model.seed, model.env, model._vec_normalize_env
    copy_parameters(model, copy)
    copy.policy.set_training_mode(model.policy.training)
    return copy  # type: ignore[no-any-return]


def copy_parameters(source: BaseAlgorithm, target: BaseAlgorithm) -> None:
    """Give a model the weights, the optimizers' states and the loose tensors of another with the same networks.

    Where the two differ in what their symmetrizers learn, the target's symmetrizers stay fresh, and so do the states of
    the optimizers that count their parameters.
    """
    parameters, fresh = source.get_parameters(), target.get_parameters()
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
    target.set_parameters(parameters)  # type: ignore[arg-type]
    for name in source._get_torch_save_params()[1]:
        recursive_setattr(target, f"{name}.data", recursive_getattr(source, name).data.clone())


def _networks(model: BaseAlgorithm) -> list[str]:
    names = model._get_torch_save_params()[0]
    return [name for name in names if isinstance(recursive_getattr(model, name), torch.nn.Module)]


def _is_symmetrizers(key: str) -> bool:
    return "symmetrizer" in key.split(".")


def check_normalization(model: BaseAlgorithm, symmetry: Symmetry, method: str) -> None:
    """Raise a `UserError` where an agent reads normalised observations whose statistics the group does not keep.

    (x - mean) / deviation commutes with an element where that leaves the mean as it is, signs included, and permutes
    equal deviations.
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs or method == Identity.method:
        return
    rms: Any = normalizer.obs_rms
    rep = symmetry.observation
    if isinstance(rms, dict):
        parts = rep.keys if isinstance(rep, PerKey) else {}
        checked = [(parts.get(key, Trivial(symmetry.group)), statistics) for key, statistics in rms.items()]
    else:
        checked = [(rep, rms)]
    for part, statistics in checked:
        if not _keeps(part, statistics.mean, statistics.var):
            raise UserError(
                f"VecNormalize statistics with mean {np.round(statistics.mean, 3).tolist()} are not tied over orbits: "
                f"expected ones that {symmetry.group} keeps; train without normalisation, or with tied statistics"
            )


def _keeps(rep: Representation, mean: Any, var: Any) -> bool:
    if isinstance(rep, Trivial):
        return True
    spread = SignedPermutation(rep.group, rep.indices) if isinstance(rep, SignedPermutation) else rep
    centre, width = torch.as_tensor(mean)[None].double(), torch.as_tensor(var)[None].double()
    tolerance = 1e-6 * float(width.max()) ** 0.5
    return torch.allclose(rep.orbit(centre), centre, rtol=0, atol=tolerance) and torch.allclose(
        spread.orbit(width), width, rtol=1e-6, atol=0
    )
