"""Peak memory of a piece of work: CUDA's own counter, or on a CPU (Linux) the peak resident set of its own process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_bytes"]


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """Bytes that ``work(*arguments)`` needs at its peak beyond what was there before.

    Args:
        work: a module-level function (on a CPU it is run in a spawned process) that returns a function without
            arguments; what happens up to its return is preparation and does not count.
        arguments: its arguments, picklable.

    Raises:
        RuntimeError: if the process ended without a result, as one that the kernel killed for its memory does.
    """
    if torch.cuda.is_available():
        run = work(*arguments)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, work, arguments))
    with _freed_at_once():
        process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that was to be measured ended with exit code {process.exitcode}") from None
    finally:
        process.join()


@contextlib.contextmanager
def _freed_at_once() -> Iterator[None]:
    """For processes started inside: large blocks go back when freed, where glibc would keep some for later."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = str(2**17)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _measure(sender: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    run = work(*arguments)
    gc.collect()
    # Linux: 5 sets the peak back to the present resident set, which imports and preparation may have exceeded before.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    sender.send(_status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
