"""Equivariant policies for SB3's own DQN, under SB3's own names.

    from stable_baselines3 import DQN  # or from equirl.agents.dqn, which learns the same in less time
    from equirl.agents.dqn import MlpPolicy
    model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))

The action values obey Q(g s, g a) = Q(s, a) for every element g of the symmetry's group. Greedy actions are SB3's: the
lowest index among equal action values, a choice that no symmetry can make where g s = s.
The state dict keeps SB3's keys (lambda-equitune adds its own small net), so weights of a plain agent load as they are.
"""

from __future__ import annotations

from stable_baselines3.dqn import policies as sb3

from equirl.agents.rounds import DQN as DQN
from equirl.agents.symmetric import DictPolicy, PicturePolicy
from equirl.agents.values import SymmetricValuePolicy, SymmetricValues


class QNetwork(SymmetricValues, sb3.QNetwork):
    """SB3's Q-network seen through a symmetrizer: Q_G(s, .) = sum_g w_g(s) rho_A(g)^-1 Q(rho_S(g) s, .).

    Its outputs have shape (B, actions).
    """

    head_name = "q_net"


class DQNPolicy(SymmetricValuePolicy, sb3.DQNPolicy):
    """SB3's DQN policy with equivariant action values (Basu et al. 2023, arXiv 2210.06475 and 2305.09900).

    Keywords beside SB3's: `symmetry` and `method`, both required; `symmetrizer_kwargs`; `double_selection`, which lets
    the online net choose equizero's views for the target net. Under ``method="native"`` the networks are equivariant by
    construction (Cohen and Welling 2016, arXiv 1602.07576); ``symmetrizer_kwargs={"width": 2}`` doubles their widths.

    Raises:
        UserError: an unknown name, or a symmetry that does not act on the spaces.

    >>> import torch
    >>> from stable_baselines3 import DQN
    >>> model = DQN(MlpPolicy, "CartPole-v1", policy_kwargs=dict(symmetry="CartPole-v1", method="equitune"))
    >>> state = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    >>> torch.allclose(model.q_net(-state), model.q_net(state).flip(-1))
    True
    """

    @property
    def nets(self) -> tuple[QNetwork, QNetwork]:
        return self.q_net, self.q_net_target  # type: ignore[return-value]

    def make_q_net(self) -> QNetwork:
        net: QNetwork = self._make(QNetwork, self._update_features_extractor(self.net_args))
        return net


MlpPolicy = DQNPolicy


class CnnPolicy(PicturePolicy, DQNPolicy):
    """`DQNPolicy` for pictures: NatureCNN from 36 pixels a side, `SmallCNN` below, or the extractor that is given."""


class MultiInputPolicy(DictPolicy, DQNPolicy):
    """`DQNPolicy` for dictionaries of observations: a CNN for each picture, the rest flattened, all concatenated."""
