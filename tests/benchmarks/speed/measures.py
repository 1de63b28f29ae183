"""What is measured of an agent, and how samples are taken: the arms take turns within each repetition."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.speed.arms import Agent
from tests.benchmarks.speed.cases import Case

LEARN, PREDICT, NET = "learn", "predict", "net 1"
WALL, CPU = "wall", "cpu"
SHORTEST = 8  # steps of the environment, which the shortest sample of learn() takes: two updates in the tests


@dataclass(frozen=True)
class Settings:
    """How much of everything."""

    repeat: int = 5
    seconds: float = 0.1  # that one sample of a call takes, or a single call where that is longer
    batches: tuple[int, ...] = (32, 64, 128, 512)
    steps: float = 1.0  # of learn(), as a factor of the case's
    memory_batch: int = 128
    quick: bool = False

    @classmethod
    def for_tests(cls) -> "Settings":
        """Return settings that run everything and measure nothing."""
        return cls(repeat=1, seconds=0.0, batches=(2,), steps=0.0, memory_batch=2, quick=True)


def measure_names(batches: Iterable[int]) -> list[str]:
    """Return the names of all measures: what a step costs, what a gradient step, a forward and an action cost."""
    sizes = list(batches)
    return [LEARN, *(f"update {b}" for b in sizes), *(f"forward {b}" for b in sizes), PREDICT, NET]


def observations(space: spaces.Space[Any], batches: Iterable[int]) -> dict[int, NDArray[Any]]:
    """Return a batch of each size and one of a single observation, the same for all arms."""
    space.seed(0)
    return {batch: np.stack([space.sample() for _ in range(batch)]) for batch in (1, *batches)}


def calls_of(
    agent: Agent, case: Case, settings: Settings, seen: dict[int, NDArray[Any]]
) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Return a function of a number of repeats for each measure, and that number where it is not to be found out."""
    steps = max(int(case.steps * settings.steps), SHORTEST)
    calls: dict[str, tuple[Callable[[int], Any], int]] = {LEARN: (agent.learn, steps)}
    for batch in settings.batches:
        ready = agent.observe(seen[batch])
        calls[f"update {batch}"] = partial(agent.update, batch=batch), 0
        calls[f"forward {batch}"] = _acting(agent, partial(agent.net, ready)), 0
    one = agent.observe(seen[1])
    calls[PREDICT] = _repeated(partial(agent.model.policy.predict, seen[1], deterministic=True)), 0
    calls[NET] = _acting(agent, partial(agent.net, one)), 0
    return calls


def _repeated(call: Callable[[], Any]) -> Callable[[int], Any]:
    def repeat(n: int) -> Any:
        result = None
        for _ in range(n):
            result = call()
        return result

    return repeat


def _acting(agent: Agent, call: Callable[[], Any]) -> Callable[[int], Any]:
    """Repeat a forward as it is when acting, in evaluation mode."""
    repeat = _repeated(call)

    def forward(n: int) -> Any:
        agent.model.policy.set_training_mode(False)
        return repeat(n)

    return forward


def timed(call: Callable[[int], Any], n: int, wait: Callable[[Any], None]) -> tuple[float, float]:
    """Return seconds of wall clock and of this process's CPU time that one of n calls takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    wait(call(n))
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n


def repeats(call: Callable[[int], Any], seconds: float, wait: Callable[[Any], None]) -> int:
    """Return how many calls fill so many seconds, after a call that warms up."""
    wait(call(1))
    if not seconds:
        return 1
    return max(1, int(seconds / max(timed(call, 1, wait)[0], 1e-9)))


def interleaved(
    arms: dict[Any, tuple[Callable[[int], Any], int]],
    settings: Settings,
    wait: Callable[[Any], None],
    advance: Callable[[], None] = lambda: None,
) -> dict[Any, dict[str, list[float]]]:
    """Return samples of each arm; those of one repetition are taken one after another, from another arm each time."""
    counts = {}
    for key, (call, n) in arms.items():
        counts[key] = n or repeats(call, settings.seconds, wait)
        if n or counts[key] > 1:  # one call has warmed up already, but JAX compiles a loop of n anew for each n
            wait(call(counts[key]))
        advance()
    found: dict[Any, dict[str, list[float]]] = {key: {WALL: [], CPU: []} for key in arms}
    keys = list(arms)
    for i in range(settings.repeat):
        start = i * len(keys) // settings.repeat
        for key in keys[start:] + keys[:start]:
            torch.manual_seed(i)
            np.random.seed(i)  # SB3 draws batches and explores by it
            wall, cpu = timed(arms[key][0], counts[key], wait)
            found[key][WALL].append(wall)
            found[key][CPU].append(cpu)
            advance()
    return found


def waiter(device: str) -> Callable[[Any], None]:
    """Return what waits until a result is there."""

    def wait(result: Any) -> None:
        if hasattr(result, "block_until_ready"):
            result.block_until_ready()
        if device == "cuda":
            torch.cuda.synchronize()

    return wait


def filled_buffer(agent: Agent) -> Any:
    """Return the agent's replay buffer, full of random steps of its environment."""
    buffer, env = agent.model.replay_buffer, agent.model.get_env()
    env.seed(0)
    obs = env.reset()
    agent.model.action_space.seed(0)
    for _ in range(buffer.buffer_size):
        actions = np.array([agent.model.action_space.sample()])
        after, rewards, dones, infos = env.step(actions)
        buffer.add(obs, after, actions, rewards, dones, infos)
        obs = after
    return buffer


def peak_bytes(agent: Agent, batch: int, device: str) -> int:
    """Return the most that the tensors of one update occupy at a time, above what is there before it.

    Both devices count what torch's allocators hand out: the gradients, activations and copies of the batch. The process
    as a whole holds more (oneDNN's scratch space, what the system's allocator keeps), which no tensor shows.
    """
    agent.update(2, batch)  # the optimizer's state and the gradients exist from now on
    agent.model.policy.optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        agent.update(1, batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        agent.update(1, batch)
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return highest([size for _, size in sorted(changes, key=lambda each: each[0])])


def highest(changes: Iterable[int]) -> int:
    """Return the highest sum of leading changes, at least 0.

    >>> highest([5, -5, 3, 4, -7])
    7
    """
    return max([0, *np.cumsum(list(changes)).tolist()])


def flops(agent: Agent) -> int:
    """Return the floating-point operations of a forward of one observation, as torch counts them."""
    agent.model.policy.set_training_mode(False)
    seen = agent.observe(np.stack([agent.model.observation_space.sample()]))
    agent.net(seen)  # networks that expand their weights have done so
    with FlopCounterMode(display=False) as counter:
        agent.net(seen)
    return counter.get_total_flops()
