"""What equivariance costs: SB3's DQN with one network after another, side by side in one process, as ratios to plain.

    make bench                                        # tables, and benchmarks.json and benchmarks.md beside this file
    make bench ARGS="--case GridWorld --arm native --arm equitune --repeat 9"

The arms take turns within each repetition, so that a machine that slows down slows all of them; a ratio is the median
over repetitions of arm / plain, with the smallest and the largest beside it. All arms of a case learn from one replay
buffer, full from the start, at the final rate of exploration; nothing is to be learned, only timed.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, says when it starts

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tests.benchmarks.speed.arms import ARMS, PLAIN, Agent, UnavailableError
from tests.benchmarks.speed.cases import Case, make_cases
from tests.benchmarks.speed.measures import (
    Settings,
    calls_of,
    filled_buffer,
    flops,
    interleaved,
    measure_names,
    observations,
    peak_bytes,
    waiter,
)
from tests.benchmarks.speed.report import markdown, show, tables

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "escnn", "sbx-rl", "jax")


class Rate(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        return Text("-/s" if task.speed is None else f"{task.speed:.1f}/s")


def wanted(case: Case, arms: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of group and arm; the group of those without one is empty."""
    pairs = []
    for arm in (ARMS[name] for name in ARMS if name in arms):
        groups = [g for g in case.groups if g != "C1" or arm.alone] if arm.grouped else [""]
        pairs += [(g, arm.name) for g in groups if not arm.only or (case.name, g) in arm.only]
    return pairs


def measure(case: Case, device: str, arms: Sequence[str], settings: Settings, bar: Progress) -> list[dict[str, Any]]:
    """Return a row for each arm of a case: all samples, or the reason why there are none."""
    task, wait = bar.tasks[0].id, waiter(device)
    ticks = len(measure_names(settings.batches)) * (settings.repeat + 1)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    agents: dict[tuple[str, str], Agent] = {}
    for group, name in wanted(case, arms):
        bar.update(task, description=f"{case.name}: making {group} {name}")
        symmetry = case.groups[group]() if group else None
        row: dict[str, Any] = {"device": device, "case": case.name, "network": case.network, "group": group}
        rows[group, name] = row = row | {"arm": name, "order": len(symmetry.group) if symmetry else 1}
        try:
            agents[group, name] = ARMS[name].make(case, symmetry, device, settings.quick)
        except UnavailableError as error:
            row["reason"] = str(error)
            bar.update(task, total=(bar.tasks[0].total or 0) - ticks)
    buffer = filled_buffer(agents["", PLAIN])
    seen = observations(agents["", PLAIN].model.observation_space, settings.batches)
    calls = {}
    for key, agent in agents.items():
        agent.model.replay_buffer = buffer
        rows[key] |= {"parameters": agent.parameters, "flops": None, "peak_bytes": None, "samples": {}}
        if agent.in_torch:
            rows[key]["flops"] = flops(agent)
            rows[key]["peak_bytes"] = peak_bytes(agent, settings.memory_batch, device)
        calls[key] = calls_of(agent, case, settings, seen)
    for name in measure_names(settings.batches):
        bar.update(task, description=f"{case.name}: {name}")
        one = {key: each[name] for key, each in calls.items()}
        for key, samples in interleaved(one, settings, wait, lambda: bar.advance(task)).items():
            rows[key]["samples"][name] = samples
    return list(rows.values())


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    found = {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": threads, "system": platform.system()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, write benchmarks.json and benchmarks.md."""
    cases, defaults = make_cases(), Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(cases), help="only this case; may be repeated")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only this arm, beside plain")
    parser.add_argument("--repeat", type=int, default=defaults.repeat, help="repetitions, of which the spread is shown")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="what a sample takes at least")
    parser.add_argument("--batch", type=int, action="append", help="only this batch size, beside one observation")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", action="append", choices=["cpu", "cuda"], help="by default all that are there")
    parser.add_argument("--quick", action="store_true", help="run everything once or twice, tiny: measures nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where the two files go")
    chosen = parser.parse_args(arguments)
    for option, least in (("repeat", chosen.repeat), ("threads", chosen.threads), ("batch", min(chosen.batch or [1]))):
        if least < 1:
            parser.error(f"--{option} {least}: expected at least 1")
    if "cuda" in (chosen.device or ()) and not torch.cuda.is_available():
        parser.error("--device cuda: expected a GPU that torch can use")
    torch.set_num_threads(chosen.threads)
    batches = tuple(chosen.batch) if chosen.batch else defaults.batches
    settings = Settings.for_tests() if chosen.quick else Settings(chosen.repeat, chosen.seconds, batches)
    devices = chosen.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    arms = [PLAIN, *chosen.arm] if chosen.arm else list(ARMS)
    names = chosen.case or list(cases)
    ticks = len(measure_names(settings.batches)) * (settings.repeat + 1)
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        bar.add_task("", total=len(devices) * ticks * sum(len(wanted(cases[name], arms)) for name in names))
        for device in devices:
            for name in names:
                rows += measure(cases[name], device, arms, settings, bar)
    found: dict[str, Any] = {"machine": machine(chosen.threads), "settings": asdict(settings), "rows": rows}
    shown = tables(found)
    show(shown, Console())
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found | {"tables": [each._asdict() for each in shown]}, indent=1)
    (chosen.out / "benchmarks.json").write_text(text + "\n", encoding="utf-8")
    (chosen.out / "benchmarks.md").write_text(markdown(shown, found["machine"]), encoding="utf-8")


if __name__ == "__main__":
    main()
