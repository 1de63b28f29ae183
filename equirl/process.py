"""How the process of a command runs: its threads, its smallest numbers, and what ends it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from equirl.errors import UserError


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """Let a run that is told to end, as by kill, a cluster or a container, save itself as at Ctrl-C."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where alone signals can be received
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Let the CPU take numbers below 1e-38 for 0: Adam's averages of idle weights decay there, and slow every step."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def use_threads(count: int) -> None:
    """Let torch use so many threads: on small networks one is faster than several, and far faster on a busy machine."""
    import torch

    most = max(os.cpu_count() or 1, 256)  # far more end in a crash
    if not (count == -1 or 1 <= count <= most):
        raise UserError(f"--num-threads {count}: expected a whole number from 1 to {most}, or -1 for all")
    if count > 0:
        torch.set_num_threads(count)
