"""The run of :mod:`tests.support.loops` in a loop with Accelerate."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from composer_edba.accelerate import AcceleratedSubsetLoader
from tests.support.task import LOSS, SEED, Record, Task, begin_streams, indices_of, step_of


def run_accelerate(
    settings: dict[str, Any],
    passes: int,
    task: Task,
    *,
    seed: int = SEED,
    stop_after: int | None = None,
    at_pass_end: bool = False,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> Record:
    """Train with an Accelerator; the arguments are those of :func:`tests.support.loops.run_composer`.

    ``save_to`` and ``resume_from`` are folders.
    """
    network, optimizer, schedule, data = task.parts()
    accelerator = Accelerator(cpu=True)
    model, optimizer, data = accelerator.prepare(network, optimizer, data)
    subsets = AcceleratedSubsetLoader(accelerator, data, model, LOSS, optimizer=optimizer, seed=seed, **settings)
    accelerator.register_for_checkpointing(subsets, schedule)
    steps: list[dict[str, Any]] = []
    delivered: list[int] = []
    choose = subsets._loop.choose

    def see(pool):
        delivered[:] = indices_of(pool[0])
        return choose(pool)

    subsets._loop.choose = see
    first, done = 0, 0
    begin_streams(seed, resume_from)
    if resume_from is not None:
        accelerator.load_state(str(resume_from))
        first, done = torch.load(resume_from / "where.pt")

    def record(number: int) -> Record:
        accelerator.save_state(str(save_to))
        torch.save((number, done), save_to / "where.pt")
        return Record(steps, network.state_dict(), save_to)

    for number in range(first, passes):
        task.begin_pass(subsets.sampler, number)
        for inputs, target in subsets:
            optimizer.zero_grad()
            accelerator.backward(LOSS(model(inputs), target))
            optimizer.step()
            schedule.step()
            last = subsets._loop.engine.last_selection
            steps.append(step_of(number, list(delivered), inputs, last, subsets.figures))
            done += 1
            if not at_pass_end and done == stop_after:
                return record(number)
        if at_pass_end and done == stop_after:
            return record(number + 1)
    return Record(steps, network.state_dict(), save_to)
