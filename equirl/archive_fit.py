"""Weights from a file put into a model, after all of them have been compared with what the model holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equirl.archive_tensors import shown
from equirl.errors import UserError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from equirl.archives import Archive

MOST_NAMED = 3


def check_fit(parameters: Mapping[str, Any], model: BaseAlgorithm, fresh: Sequence[str] = ()) -> None:
    """Check that state dicts have the names, keys, shapes and kinds of numbers that the model has.

    Args:
        parameters: as `Archive.parameters`; the optimizers' are compared where they are given.
        model: what they are meant for; it stays as it is.
        fresh: names of modules that the file may lack, wherever they are in the policy.

    Raises:
        UserError: naming the first few keys that are missing, unexpected or of another shape.
    """
    _fitted(parameters, model, fresh)


def load_parameters(model: BaseAlgorithm, archive: Archive, optimizers: bool = True, fresh: Sequence[str] = ()) -> None:
    """Give a model the weights of a file, and its optimizers theirs; a file that does not fit leaves it as it was.

    Args:
        model: any model of SB3, whose policy has been set up.
        archive: what `read_archive` returned.
        optimizers: also take the optimizers' states and the loose variables, such as SAC's entropy coefficient.
        fresh: names of modules that the file may lack, such as "symmetrizer"; where it lacks any, the optimizers start
            anew, since their states count parameters by place.

    Raises:
        UserError: as `check_fit`; a file for another algorithm.
    """
    modules, states = _fitted(archive.parameters, model, fresh, optimizers)
    variables = _variables(archive.variables, model) if optimizers else []
    for module, state in modules:
        module.load_state_dict(state)
    for optimizer, state in states:
        optimizer.load_state_dict(state)
    with torch.no_grad():
        for own, tensor in variables:
            own.copy_(tensor)


_Modules = list[tuple[nn.Module, dict[str, torch.Tensor]]]
_States = list[tuple[torch.optim.Optimizer, dict[str, Any]]]


def _fitted(
    parameters: Mapping[str, Any], model: BaseAlgorithm, fresh: Sequence[str], optimizers: bool = True
) -> tuple[_Modules, _States]:
    """Return the model's parts, each with what it is to load."""
    parts = {name: _part(model, name) for name in model._get_torch_save_params()[0]}
    for name in parameters:
        if name not in parts:
            raise UserError(
                f"{shown(f'{name}.pth')} is nothing that {type(model).__name__} has: expected {_list(parts)}"
            )
    modules: _Modules = []
    kept = False
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            if name not in parameters:
                raise UserError(f"{name}.pth is missing: {type(model).__name__} needs it")
            state, some_kept = _fitted_module(part, parameters[name], name, fresh)
            modules.append((part, state))
            kept |= some_kept
    states: _States = []
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer) and optimizers and not kept:
            if name not in parameters:
                raise UserError(f"{name}.pth is missing: {type(model).__name__} needs it")
            states.append((part, _fitted_optimizer(part, parameters[name], name)))
    return modules, states


def _part(model: BaseAlgorithm, name: str) -> Any:
    part: Any = model
    for step in name.split("."):
        part = getattr(part, step)
    return part


def _list(names: Any) -> str:
    shorter = [shown(name) for name in names]
    more = f" and {len(shorter) - MOST_NAMED} more" if len(shorter) > MOST_NAMED else ""
    return ", ".join(shorter[:MOST_NAMED]) + more


def _fitted_module(
    module: nn.Module, state: Any, name: str, fresh: Sequence[str]
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return what the module is to load, and whether some of it is the module's own."""
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{name}.pth is no mapping from names to tensors, as a network has")
    own: dict[str, torch.Tensor] = module.state_dict()
    filled = dict(state)
    missing, kept = [], False
    for key, tensor in own.items():
        if key in filled:
            continue
        # Before SB3 1.7 one shared features extractor had one name; it now has three.
        shared = [other for other in state if other in own and own[other].data_ptr() == tensor.data_ptr() != 0]
        if shared:
            filled[key] = state[shared[0]]
        elif any(step in fresh for step in key.split(".")):
            filled[key], kept = tensor, True
        else:
            missing.append(key)
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        lacks = f"lacks {_list(missing)}" if missing else ""
        has = f"has the unexpected {_list(unexpected)}" if unexpected else ""
        raise UserError(
            f"{name}.pth {' and '.join(filter(None, (lacks, has)))}: expected the keys of this model's policy"
        )
    for key, tensor in own.items():
        _check_alike(f"{name}.pth: {key}", filled[key], tensor)
    return filled, kept


def _check_alike(what: str, given: torch.Tensor, own: torch.Tensor) -> None:
    if given.shape != own.shape:
        raise UserError(f"{what} has shape {tuple(given.shape)}: expected {tuple(own.shape)}")
    if given.is_floating_point() != own.is_floating_point():
        raise UserError(f"{what} holds {given.dtype}: expected {own.dtype}")


def _fitted_optimizer(optimizer: torch.optim.Optimizer, given: Any, name: str) -> dict[str, Any]:
    """Return the state in today's form: settings that a file of an older torch lacks are the optimizer's own."""
    own = optimizer.state_dict()
    try:
        state, groups = dict(given["state"]), [dict(group) for group in given["param_groups"]]
        places = [list(group["params"]) for group in groups]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{name}.pth is no state of an optimizer: expected 'state' and 'param_groups'") from None
    if len(groups) != len(own["param_groups"]):
        raise UserError(f"{name}.pth has {len(groups)} groups of parameters: expected {len(own['param_groups'])}")
    parameters: dict[Any, torch.Tensor] = {}
    for group, place, mine, real in zip(groups, places, own["param_groups"], optimizer.param_groups, strict=True):
        # Before SB3 2.4 DQN's optimizer also listed the target network, which it never changed.
        count = len(mine["params"])
        if len(place) not in (count, 2 * count) or place != list(range(len(parameters), len(parameters) + len(place))):
            raise UserError(f"{name}.pth is for {len(place)} parameters: expected {count}, counted from 0")
        for key, value in group.items():
            if key != "params" and (key not in mine or not _is_alike(value, mine[key])):
                like = f"like {mine[key]}" if key in mine else f"of {_list(mine)}"
                raise UserError(f"{name}.pth has the setting {shown(key)} = {shown(value)}: expected one {like}")
        # How to compute is this machine's affair; settings that an older torch did not have are the optimizer's own.
        group |= {key: value for key, value in mine.items() if key not in group or key in _HOW_TO_COMPUTE}
        group["params"] = mine["params"]
        parameters |= dict(zip(mine["params"], real["params"], strict=True))
    entries = _entries(optimizer, groups[0])
    for place, values in state.items():
        if place not in parameters or not isinstance(values, Mapping):
            raise UserError(f"{name}.pth has a state for parameter {shown(place)}: expected 0 to {len(parameters) - 1}")
        if entries is not None and set(values) != entries:
            raise UserError(f"{name}.pth has {_list(values)} for parameter {place}: expected {_list(sorted(entries))}")
        for key, value in values.items():
            _check_state(f"{name}.pth: {shown(key)} of parameter {place}", key, value, parameters[place])
    return {"state": copy.deepcopy(state), "param_groups": groups}  # training changes the state in place


_HOW_TO_COMPUTE = {"foreach", "fused", "capturable", "differentiable"}
_SCALARS = {"step", "mu_product", "eta", "mu"}  # of torch's optimizers: one number whatever the parameter's shape


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_alike(value: Any, own: Any) -> bool:
    if isinstance(own, tuple | list):
        return isinstance(value, tuple | list) and len(value) == len(own) and all(map(_is_alike, value, own))
    return value is None or isinstance(value, bool) if own is None or isinstance(own, bool) else _is_number(value)


def _entries(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str] | None:
    """Return what the optimizer keeps for a parameter, found by a step of its like; None where that cannot be made."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        like = type(optimizer)([{**group, "params": [parameter]}])  # type: ignore[call-arg]
        like.step()
    except Exception:  # an optimizer of the user's own may want anything
        return None
    return set(like.state[parameter])


def _check_state(what: str, key: Any, value: Any, parameter: torch.Tensor) -> None:
    if isinstance(value, torch.Tensor):
        if key not in _SCALARS or value.numel() != 1:
            _check_alike(what, value, parameter)
    elif value is not None and not _is_number(value):
        raise UserError(f"{what} is {shown(value)}: expected a number or a tensor of shape {tuple(parameter.shape)}")


def _variables(given: Mapping[str, torch.Tensor], model: BaseAlgorithm) -> list[tuple[torch.Tensor, torch.Tensor]]:
    names = model._get_torch_save_params()[1]
    for name in given:
        if name not in names:
            raise UserError(f"pytorch_variables.pth has {shown(name)}: expected {_list(names) or 'nothing'}")
    pairs = []
    for name in names:
        if name not in given:
            raise UserError(f"pytorch_variables.pth lacks {name!r}: {type(model).__name__} needs it")
        own = _part(model, name)
        _check_alike(f"pytorch_variables.pth: {name}", given[name], own)
        pairs.append((own, given[name]))
    return pairs
