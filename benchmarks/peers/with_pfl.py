"""The work in pfl: `.peers/pfl/bin/python -m benchmarks.peers.with_pfl FOLDER REPORT`, which starts one process of one thread a worker.

The model stays in its process, users are data sets in a loop, local training, weighting and sums are pfl's own (`FederatedAveraging`), sums
over processes go through torch.distributed. No evaluation: pfl's own default would score every user before and after the first round.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.work import Model
from benchmarks.peers.workloads import IDLE_LOSS, Folder, Report


def start(folder: Folder) -> None:
    """One process a worker, this one among them, as pfl's environment variables say."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    os.environ |= {"PFL_WORKER_ADDRESSES": ",".join([address] * folder.workers), "PFL_PYTORCH_DEVICE": "cpu"}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.with_pfl", *sys.argv[1:]], env={**os.environ, "PFL_WORKER_RANK": str(rank)}
        )
        for rank in range(1, folder.workers)
    ]
    os.environ["PFL_WORKER_RANK"] = "0"
    work(folder)
    if any(process.wait() for process in others):
        raise SystemExit("a worker of pfl failed")


def work(folder: Folder) -> None:
    """One worker's part."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDatasetBase
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops.selector import get_default_framework_module
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    model = Model(folder)
    network = model.network
    losses: list[torch.Tensor] = []
    loss_of = network.loss

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = loss_of(images, labels)
        losses.append(value.detach().clone())
        return value

    network.loss, network.metrics = loss, lambda *batch: {}  # type: ignore[method-assign, assignment]
    made = PyTorchModel(
        network,
        lambda parameters, lr: torch.optim.AdamW(model.parameters, lr=lr, weight_decay=0.0, fused=True),
        torch.optim.SGD(model.parameters, lr=1.0),
    )
    distributed = get_default_framework_module().distributed
    rank, world = distributed.global_rank, distributed.world_size
    mine = range(rank, folder.clients, world)
    round = 0

    class Clients(FederatedDatasetBase):
        """Every client once a round, the workers' shares as even as can be."""

        def __next__(self) -> Any:
            """Asked for by the base class; pfl takes cohorts."""

        def get_cohort(self, cohort_size: int) -> Iterator[tuple[Dataset, int]]:
            for client in mine:
                yield Dataset([torch.from_numpy(array) for array in folder.samples(round, client)], user_id=str(client)), client

    class WithoutScores(FederatedAveraging):
        def get_next_central_contexts(self, *arguments: Any, **named: Any) -> Any:
            contexts, *rest = super().get_next_central_contexts(*arguments, **named)
            return (contexts and tuple(dataclasses.replace(context, do_evaluation=False) for context in contexts), *rest)

    class Reported(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            nonlocal round
            of_clients = torch.zeros(folder.clients + 1)
            of_clients[list(mine)] = torch.stack(losses).reshape(len(mine), -1).mean(1) if losses else torch.tensor(IDLE_LOSS)
            of_clients[-1] = len(losses)
            distributed.all_reduce([of_clients])
            losses.clear()
            round += 1
            if rank == 0:
                Report(Path(sys.argv[2])).round(of_clients[:-1].tolist(), int(of_clients[-1]))
            return False, Metrics()

    WithoutScores().run(
        NNAlgorithmParams(
            central_num_iterations=folder.rounds, evaluation_frequency=folder.rounds, train_cohort_size=folder.clients, val_cohort_size=None
        ),
        SimulatedBackend(Clients(), Clients(), postprocessors=[WeightByDatapoints()]),
        made,
        NNTrainHyperParams(
            local_batch_size=folder.work.batch, local_num_epochs=0 if folder.work.idle else 1, local_learning_rate=folder.work.rate
        ),
        callbacks=[Reported()],
        send_metrics_to_platform=False,
    )


def main() -> None:
    folder = Folder(Path(sys.argv[1]))
    work(folder) if "PFL_WORKER_RANK" in os.environ else start(folder)
    sys.stdout.flush()
    os._exit(0)  # the threads of torch.distributed now and then abort a process that is done and ends by itself


if __name__ == "__main__":
    main()
