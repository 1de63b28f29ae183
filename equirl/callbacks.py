"""What happens during training beside learning: progress, symmetry in TensorBoard, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Image

from equirl.canonicalizers import Canonicalize
from equirl.checkpoints import save_checkpoint
from equirl.figures import orbit_picture
from equirl.multigroup import Product
from equirl.soft import SoftEquitune
from equirl.symmetrizers import Equizero, LambdaEquitune

TEXT_ONLY = ("stdout", "log", "json", "csv")


class EveryNSteps(BaseCallback):
    """Calls `act` each time another n environment steps have been taken, however many environments take them."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._due = 0

    def _on_training_start(self) -> None:
        self._due = (self.num_timesteps // self.every + 1) * self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._due:
            self._due = (self.num_timesteps // self.every + 1) * self.every
            self.act()
        return True

    def act(self) -> None:
        """Do what is due."""
        raise NotImplementedError


class ProgressCallback(BaseCallback):
    """A bar with steps per second, recent return and time left; where no terminal listens, a line every tenth.

    Args:
        total: the number of steps at which the run ends.
        console: where to draw, standard error by default.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        super().__init__()
        self.total = total
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def _on_training_start(self) -> None:
        self._started, self._first, self._said = time.monotonic(), self.num_timesteps, self.num_timesteps
        if self.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=14),  # narrow enough that the "^C" of an interruption breaks no line
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]:>7,.0f} steps/s"),
                TextColumn("return {task.fields[reward]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, speed=0.0, reward="-")
            self._draw(0.0)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if self._bar is not None and now - self._shown > 0.25:
            self._draw(now)
        elif self._bar is None and self._said < self.total and self.num_timesteps - self._said >= self.total / 10:
            self._said = self.num_timesteps
            left = max(self.total - self.num_timesteps, 0) / max(self._speed(now), 1e-9)
            self.console.print(
                f"{self.num_timesteps:,}/{self.total:,} steps  {self._speed(now):,.0f} steps/s  "
                f"return {self._reward()}  {left:.0f} s left",
                highlight=False,
            )
        return True

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal, also after an interruption."""
        if self._bar is not None:
            self._draw(time.monotonic())
            self._bar.stop()
            self._bar = None

    def _draw(self, now: float) -> None:
        if self._bar is not None:
            self._shown, done = now, min(self.num_timesteps, self.total)  # SB3 ends with a whole rollout
            self._bar.update(self._task, completed=done, speed=self._speed(now), reward=self._reward())

    def _speed(self, now: float) -> float:
        return (self.num_timesteps - self._first) / max(now - self._started, 1e-9)

    def _reward(self) -> str:
        recent = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        return f"{np.mean(recent):.1f}" if recent else "-"


_LABELS = {
    LambdaEquitune.method: "lambda",
    SoftEquitune.method: "gate",
    **dict.fromkeys((Equizero.method, Canonicalize.method, Product.method), "chosen"),
}
"""What the weights of elements are called, by method."""


class SymmetryCallback(EveryNSteps):
    """Writes to TensorBoard how symmetric the agent and the plain network inside it are.

    ``symmetry/equivariance_error`` (of the agent), ``symmetry/greedy_disagreement`` (how often the plain network's
    greedy action breaks the symmetry), the weight of each element as ``symmetry/lambda_<element>`` with a histogram
    (lambda) or ``symmetry/chosen_<element>`` (equizero, canonical, product), ``symmetry/gate`` with a histogram (soft),
    and a picture of one observation's orbit with action values.

    Args:
        every: environment steps between two looks.
        action_names: what the picture calls the actions.
        samples: observations looked at, drawn from the replay buffer or the last rollout.
    """

    def __init__(self, every: int, action_names: Sequence[str], samples: int = 128) -> None:
        super().__init__(every)
        self.action_names, self.samples = action_names, samples
        self.last_error = float("nan")
        self._random = np.random.default_rng(0)  # its own, so that looking does not change what is learnt

    def _on_training_end(self) -> None:
        self.act()

    def act(self) -> None:
        """Look at the agent as it is now, and write down what is seen."""
        observations = self._sample()
        if observations is None:
            return
        policy: Any = self.model.policy
        was_training = policy.training
        policy.set_training_mode(False)
        with torch.no_grad():
            self.last_error = policy.equivariance_error(observations)
            disagreement = policy.greedy_disagreement(observations, plain=True)
            self.logger.record("symmetry/equivariance_error", self.last_error, exclude=TEXT_ONLY)
            self.logger.record("symmetry/greedy_disagreement", disagreement, exclude=TEXT_ONLY)
            self._record_weights(policy, observations)
            self._record_orbit(policy, observations)
        policy.set_training_mode(was_training)
        self.logger.dump(self.num_timesteps)

    def _sample(self) -> Any:
        """Return stored observations as the network reads them, or None while there are none."""
        model: Any = self.model
        buffer = getattr(model, "replay_buffer", None) or model.rollout_buffer
        filled = buffer.buffer_size if buffer.full else buffer.pos
        if not filled:
            return None
        rows = self._random.integers(filled, size=self.samples)
        columns = self._random.integers(buffer.n_envs, size=self.samples)
        stored = buffer.observations
        flat = getattr(buffer, "generator_ready", False)  # a rollout that was learnt from has no axis of environments

        def drawn(part: Any) -> Any:
            return buffer.to_torch(part[columns * buffer.buffer_size + rows] if flat else part[rows, columns])

        return {key: drawn(part) for key, part in stored.items()} if isinstance(stored, dict) else drawn(stored)

    def _record_weights(self, policy: Any, observations: Any) -> None:
        label = _LABELS.get(policy.method)
        if label is None:
            return
        weights = policy.element_weights(observations)
        if label == "gate":
            if len(weights) > 1:  # (1 - p) / n of every element, and p of the identity beside it
                gate = weights[0] - weights[1]
                self.logger.record("symmetry/gate", float(gate.mean()), exclude=TEXT_ONLY)
                self.logger.record("symmetry/gates", gate, exclude=TEXT_ONLY)
            return
        for name, row in zip(policy.symmetry.group.names, weights, strict=True):
            self.logger.record(f"symmetry/{label}_{name}", float(row.mean()), exclude=TEXT_ONLY)
        if label == "lambda":
            self.logger.record("symmetry/lambda", weights.flatten(), exclude=TEXT_ONLY)

    def _record_orbit(self, policy: Any, observations: Any) -> None:
        if isinstance(observations, dict):
            return
        views = policy.symmetry.observation.orbit(policy.acting.movable(observations[:1]))
        values = policy.scores(views.flatten(0, 1))
        if not values.isfinite().all():
            return  # learning diverged; the curves say so
        picture = orbit_picture(
            views[:, 0].cpu().numpy(),
            values.cpu().numpy(),
            policy.symmetry.group.names,
            self.action_names,
            policy.scores_are,
        )
        self.logger.record("symmetry/orbit", Image(picture, "HWC"), exclude=TEXT_ONLY)


class CheckpointCallback(EveryNSteps):
    """Writes a checkpoint into the run's folder every so many steps and at the end."""

    def __init__(self, every: int, folder: Path) -> None:
        super().__init__(every)
        self.folder = folder

    def act(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.model, self.folder)

    def _on_training_end(self) -> None:
        self.act()


class HyperparametersCallback(BaseCallback):
    """Fills TensorBoard's HPARAMS page with the run's settings and the numbers to compare runs by."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        plain = (bool, int, float, str)
        self.settings = {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}

    def _on_training_start(self) -> None:
        metrics = ("rollout/ep_rew_mean", "eval/mean_reward", "symmetry/equivariance_error")
        self.logger.record("hparams", HParam(self.settings, dict.fromkeys(metrics, 0.0)), exclude=TEXT_ONLY)

    def _on_step(self) -> bool:
        return True
