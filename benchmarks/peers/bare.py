"""The two loops that one would write without a simulator: `python -m benchmarks.peers.bare FOLDER REPORT processes|threads`.

processes: every worker is a process of one thread with its own share of the clients; sums go over pipes. threads: one process, one client
after the other, as many threads as workers. Which is better depends on the work, so the benchmark measures both.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.work import Model
from benchmarks.peers.workloads import Folder, Report


def share(model: Model, folder: Folder, received: torch.Tensor, round: int, mine: range) -> tuple[torch.Tensor, list[float], int]:
    """Some of the clients of a round: their sum in float64, their losses, their steps."""
    total, losses, steps = torch.zeros(len(received), dtype=torch.float64), [], 0
    for client in mine:
        sent, loss, done = model.train(received, folder, round, client)
        total += sent
        losses.append(loss)
        steps += done
    return total, losses, steps


def serve(pipe: Any, model: Model, folder: Folder, mine: range) -> None:
    """A worker process: it is sent the trained tensor, round after round."""
    for round in range(folder.rounds):
        total, losses, steps = share(model, folder, torch.from_numpy(pipe.recv()), round, mine)
        pipe.send((total.numpy(), losses, steps))


def main() -> None:
    folder, report, kind = Folder(Path(sys.argv[1])), Report(Path(sys.argv[2])), sys.argv[3]
    workers = min(folder.workers, folder.clients) if kind == "processes" else 1
    torch.set_num_threads(1 if kind == "processes" else folder.workers)
    model = Model(folder)
    context = multiprocessing.get_context("fork")
    others = []
    for worker in range(1, workers):
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, model, folder, range(worker, folder.clients, workers)), daemon=True).start()
        others.append(here)
    state = model.flat.clone()
    for round in range(folder.rounds):
        for pipe in others:
            pipe.send(state.numpy())
        total, losses, steps = share(model, folder, state, round, range(0, folder.clients, workers))
        every = {client: loss for client, loss in zip(range(0, folder.clients, workers), losses, strict=True)}
        for worker, pipe in enumerate(others, start=1):
            theirs, losses, done = pipe.recv()
            total += torch.from_numpy(theirs)
            steps += done
            every |= dict(zip(range(worker, folder.clients, workers), losses, strict=True))
        state = (total / folder.clients).float()
        report.round([every[client] for client in range(folder.clients)], steps)


if __name__ == "__main__":
    main()
