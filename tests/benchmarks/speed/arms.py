"""What is compared: SB3's DQN with one network after another, the algorithm, its settings and its replay the same."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor

from equirl import Symmetry, UserError
from equirl.agents.dqn import DQN as Ours
from tests.benchmarks.speed.cases import Case


class UnavailableError(Exception):
    """An arm that cannot run here; its text is the reason in the table."""


class LoopedQNetwork(QNetwork):
    """Equitune as it was published (arXiv 2210.06475): one forward an element, then the mean."""

    def __init__(self, *args: Any, symmetry: Symmetry, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.symmetry = symmetry

    def forward(self, obs: Any) -> Tensor:
        group, seen, done = self.symmetry.group, self.symmetry.observation, self.symmetry.action
        outputs = [done(group.inverse(g), super(LoopedQNetwork, self).forward(seen(g, obs))) for g in range(len(group))]
        return torch.stack(outputs).mean(0)


class LoopedPolicy(DQNPolicy):
    """SB3's policy with looped networks; stands before `MlpPolicy` or `CnnPolicy` in `looped`."""

    def __init__(self, *args: Any, symmetry: Symmetry, **kwargs: Any) -> None:
        self.symmetry = symmetry
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> QNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return LoopedQNetwork(symmetry=self.symmetry, **arguments).to(self.device)


def looped(policy: type[DQNPolicy]) -> type[DQNPolicy]:
    """Return one of SB3's policies with looped networks."""
    return type(f"Looped{policy.__name__}", (LoopedPolicy, policy), {})


@dataclass
class Agent:
    """A model with the calls that are timed; SB3's verbs, which SBX has as well."""

    model: Any
    observe: Callable[[Any], Any]  # from a batch of arrays to what `net` reads
    net: Callable[[Any], Any]
    in_torch: ClassVar[bool] = True  # whether torch sees its memory and its operations

    def learn(self, steps: int) -> None:
        """Learn for so many more steps of the environment."""
        self.model.learn(steps, reset_num_timesteps=False)

    def update(self, gradient_steps: int, batch: int) -> None:
        """Take so many gradient steps."""
        self.model.train(gradient_steps=gradient_steps, batch_size=batch)

    @property
    def parameters(self) -> int:
        """How many numbers the online network learns."""
        return sum(p.numel() for p in self.model.q_net.parameters() if p.requires_grad)


def sb3_agent(
    case: Case,
    policy: type[DQNPolicy],
    options: dict[str, Any],
    device: str,
    quick: bool,
    algorithm: type[DQN] = DQN,
) -> Agent:
    """Return SB3's DQN, or a subclass, with this policy and further `policy_kwargs`."""
    kwargs = case.algorithm(quick)
    kwargs["policy_kwargs"] |= options
    model = algorithm(policy, case.make_env(), seed=0, device=device, **kwargs)
    model.set_logger(Logger(folder=None, output_formats=[]))

    def net(obs: Any) -> Any:
        with torch.no_grad():
            return model.q_net(obs)

    return Agent(model, lambda arrays: obs_as_tensor(arrays, model.device), net)


@dataclass(frozen=True)
class Arm:
    """A column of the comparison: how its agent is made, and whether there is one for each group."""

    name: str
    make: Callable[[Case, Symmetry | None, str, bool], Agent]
    grouped: bool = True
    alone: bool = False  # whether it is measured for the group of one element as well
    only: tuple[tuple[str, str], ...] = ()  # pairs of case and group; empty: all


def _plain(**options: Any) -> Callable[[Case, Symmetry | None, str, bool], Agent]:
    return lambda case, symmetry, device, quick: sb3_agent(case, case.plain, case.plain_kwargs | options, device, quick)


def _ours(
    method: str, algorithm: type[DQN] = Ours, compiled: bool = False, **symmetrizer_kwargs: Any
) -> Callable[[Case, Symmetry | None, str, bool], Agent]:
    def make(case: Case, symmetry: Symmetry | None, device: str, quick: bool) -> Agent:
        options = {"symmetry": symmetry, "method": method, "symmetrizer_kwargs": symmetrizer_kwargs}
        if compiled and device == "cpu" and shutil.which("c++") is None:
            raise UnavailableError("torch.compile needs a C++ compiler")
        try:
            agent = sb3_agent(case, case.ours, options, device, quick, algorithm)
        except UserError as error:
            raise UnavailableError(str(error)) from error
        if compiled:
            agent.model.compile()
        return agent

    return make


def _loop(case: Case, symmetry: Symmetry | None, device: str, quick: bool) -> Agent:
    return sb3_agent(case, looped(case.plain), case.plain_kwargs | {"symmetry": symmetry}, device, quick)


def _sbx(case: Case, symmetry: Symmetry | None, device: str, quick: bool) -> Agent:
    from tests.benchmarks.speed.others import sbx_agent

    return sbx_agent(case, device, quick)


def _escnn(case: Case, symmetry: Symmetry | None, device: str, quick: bool) -> Agent:
    from tests.benchmarks.speed.others import escnn_agent

    return escnn_agent(case, device, quick)


def _equiadapt(case: Case, symmetry: Symmetry | None, device: str, quick: bool) -> Agent:
    from tests.benchmarks.speed.others import equiadapt_agent

    return equiadapt_agent(case, device, quick)


PLAIN = "plain"
ARMS = {
    arm.name: arm
    for arm in (
        Arm(PLAIN, _plain(), grouped=False),
        Arm("plain, fused Adam", _plain(optimizer_kwargs={"fused": True}), grouped=False),
        Arm("SBX", _sbx, grouped=False),
        Arm("escnn", _escnn, only=(("GridWorld", "C4"),)),
        Arm("loop", _loop, alone=True),
        Arm("equitune", _ours("equitune"), alone=True),
        Arm("equitune, SB3's DQN", _ours("equitune", algorithm=DQN)),
        Arm("compiled", _ours("equitune", compiled=True), only=(("CartPole", "C2"), ("GridWorld", "C4"))),
        Arm("orbit_samples=1", _ours("equitune", orbit_samples=1)),
        Arm("equizero", _ours("equizero")),
        Arm("lambda", _ours("lambda")),
        Arm("native", _ours("native"), alone=True),
        Arm("canonical", _ours("canonical")),
        Arm("equiadapt", _equiadapt, only=(("GridWorld", "C4"),)),
    )
}
"""The arms by name, plain first, which all others are divided by."""
