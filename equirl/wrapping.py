"""`symmetrize`: one verb for torch modules and for trained SB3 agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import nn

from equirl.errors import UserError
from equirl.methods import Symmetrized, symmetrize_module
from equirl.representations import Representation
from equirl.scores import Shape

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

Model = TypeVar("Model", bound="BaseAlgorithm")


@overload
def symmetrize(
    target: nn.Module,
    *,
    method: str,
    input: Representation,
    output: Representation,
    features_dim: int | None = None,
    shape: Shape | None = None,
    **options: Any,
) -> Symmetrized: ...


@overload
def symmetrize(target: Model, symmetry: str | Mapping[str, Any], method: str, **options: Any) -> Model: ...


def symmetrize(
    target: Any, symmetry: str | Mapping[str, Any] | None = None, method: str | None = None, **options: Any
) -> Any:
    """Return a torch module or a trained SB3 agent made equivariant, without retraining.

    A module takes `input` and `output`, representations of one group, and becomes f_G(x) = sum_g w_g(x) g^-1 f(g x);
    its weights are shared. An agent takes a `symmetry` and becomes an agent of the same algorithm, with copies of its
    weights behind a symmetric policy: it predicts, learns and is saved as before.

    Args:
        target: any module from (B, ...) to (B, ...) or (y, features); or a DQN, QR-DQN, PPO, A2C, SAC or TD3 agent.
        symmetry: for agents: a registered name such as ``"CartPole-v1"``, a `Symmetry`, or its plain JSON data.
        method: one of `equirl.METHODS` (Basu et al. 2023, arXiv 2210.06475 and 2305.09900).
        options: for modules `input`, `output` and, where the method needs them, `features_dim` (lambda, soft) or
            `shape` (canonical, product), as `make_symmetrizer` says; further arguments of the method, such as
            ``score="entropy"`` for equizero.

    Raises:
        UserError: anything else, or a symmetry that does not fit.

    >>> import torch
    >>> from equirl import Grid, Trivial, cyclic, equivariance_error
    >>> turn, still = Grid(cyclic(4)), Trivial(cyclic(4))
    >>> net = symmetrize(nn.Conv2d(3, 8, 3), method="equitune", input=turn, output=turn)
    >>> equivariance_error(net, turn, turn, torch.rand(2, 3, 9, 9)) < 1e-5
    True
    >>> from stable_baselines3 import DQN
    >>> agent = symmetrize(DQN("MlpPolicy", "CartPole-v1"), symmetry="CartPole-v1", method="equizero")
    >>> state = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    >>> torch.allclose(agent.q_net(-state), agent.q_net(state).flip(-1))
    True
    """
    if method is None:
        raise UserError("symmetrize without method: expected method=, one of equirl.METHODS")
    if isinstance(target, nn.Module):
        if symmetry is not None or not {"input", "output"} <= options.keys():
            raise UserError("symmetrize of a module: expected input= and output=, two representations of one group")
        return symmetrize_module(target, method=method, **options)
    from stable_baselines3.common.base_class import BaseAlgorithm

    from equirl.agents.wrapping import symmetrize_model

    if not isinstance(target, BaseAlgorithm):
        raise UserError(f"symmetrize({type(target).__name__}): expected a torch module or an SB3 agent")
    if symmetry is None:
        raise UserError(f"symmetrize({type(target).__name__}) without symmetry: expected a name or a Symmetry")
    return symmetrize_model(target, symmetry, method, **options)
