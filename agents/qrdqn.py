"""Equivariant policies for sb3-contrib's QR-DQN, under its own names.

    from sb3_contrib import QRDQN
    from equirl.agents.qrdqn import MlpPolicy
    model = QRDQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))

The whole distribution of returns is equivariant: each quantile obeys Z_i(g s, g a) = Z_i(s, a).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sb3_contrib.qrdqn import policies as sb3
from torch import Tensor

from equirl.agents.symmetric import DictPolicy, PicturePolicy
from equirl.agents.values import SymmetricValuePolicy, SymmetricValues
from equirl.errors import unknown
from equirl.symmetrizers import SCORES, Equizero


class _OfMeans:
    """A score of equizero that reads action values, the means over quantiles."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score = score

    def __call__(self, quantiles: Tensor) -> Tensor:
        return self.score(quantiles.mean(-2))


class QuantileNetwork(SymmetricValues, sb3.QuantileNetwork):
    """sb3-contrib's quantile network seen through a symmetrizer: Z_G(s, .) = sum_g w_g(s) rho_A(g)^-1 Z(rho_S(g) s, .).

    Its outputs have shape (B, quantiles, actions) (Dabney et al. 2018, arXiv 1710.10044). Equizero's scores read the
    action values, which are means over quantiles; a score of one's own reads outputs (G, B, quantiles, actions).
    """

    head_name = "quantile_net"

    @property
    def copies(self) -> int:
        return self.n_quantiles

    def _options(self, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        score = given.get("score", "max")
        if method != Equizero.method or not isinstance(score, str):
            return dict(given)
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        return {**given, "score": _OfMeans(SCORES[score])}

    def _shaped(self, values: Tensor) -> Tensor:
        return values.view(len(values), self.n_quantiles, -1)

    def action_values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(-2)


class QRDQNPolicy(SymmetricValuePolicy, sb3.QRDQNPolicy):
    """sb3-contrib's QR-DQN policy with equivariant quantiles.

    Keywords beside sb3-contrib's: `symmetry` and `method`, both required; `symmetrizer_kwargs`; `double_selection`.
    Under ``method="native"`` the networks are equivariant by construction, as those of DQN are.

    Raises:
        UserError: an unknown name, or a symmetry that does not act on the spaces.

    >>> import torch
    >>> from sb3_contrib import QRDQN
    >>> model = QRDQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))
    >>> state = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    >>> torch.allclose(model.quantile_net(-state), model.quantile_net(state).flip(-1))
    True
    """

    @property
    def nets(self) -> tuple[QuantileNetwork, QuantileNetwork]:
        return self.quantile_net, self.quantile_net_target  # type: ignore[return-value]

    def make_quantile_net(self) -> QuantileNetwork:
        net: QuantileNetwork = self._make(
            QuantileNetwork, self._update_features_extractor(self.net_args, features_extractor=None)
        )
        return net


MlpPolicy = QRDQNPolicy


class CnnPolicy(PicturePolicy, QRDQNPolicy):
    """`QRDQNPolicy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor that is given."""


class MultiInputPolicy(DictPolicy, QRDQNPolicy):
    """`QRDQNPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""
