"""The work in Flower's simulation engine: `.peers/flower/bin/python -m benchmarks.peers.with_flower FOLDER REPORT`.

As a careful user would write it: the client app keeps the model in its worker process, so a message carries LoRA and head alone, as one
array; no evaluation; FedAvg and everything around it are Flower's own. (Flower's quickstart sends the whole model and builds it in every
call: that is two to five times as slow.) Started with `run_simulation`, since `flwr run` adds some seconds of its own.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.work import Model
from benchmarks.peers.workloads import Folder, Report


@functools.cache
def kept(path: str) -> tuple[Folder, Model]:
    """The folder and the model of this worker process, made once."""
    torch.set_num_threads(1)
    folder = Folder(Path(path))
    return folder, Model(folder)


def client_app(path: str) -> ClientApp:
    """What a client does when it is asked to train."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        folder, model = kept(path)
        client, round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
        received = torch.from_numpy(message.content["arrays"]["trained"].numpy())
        sent, loss, steps = model.train(received, folder, round, client)
        metrics = MetricRecord({"num-examples": folder.work.samples, "loss": loss, "steps": steps, "client": client})
        return Message(RecordDict({"arrays": ArrayRecord({"trained": sent}), "metrics": metrics}), reply_to=message)

    return app


class Reported(FedAvg):
    """Flower's FedAvg, which says when a round is over."""

    def __init__(self, report: Report, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.report = report

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        result = super().aggregate_train(server_round, replies)
        said = sorted((reply.content["metrics"] for reply in replies), key=lambda metrics: metrics["client"])
        self.report.round([metrics["loss"] for metrics in said], sum(metrics["steps"] for metrics in said))
        return result


def main() -> None:
    folder, report = Folder(Path(sys.argv[1])), Report(Path(sys.argv[2]))
    logging.getLogger("flwr").setLevel(logging.WARNING)
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        start = ArrayRecord({"trained": Model(folder).flat})
        Reported(report, folder.clients).start(grid=grid, initial_arrays=start, num_rounds=folder.rounds)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": folder.workers, "log_to_driver": False}}
    run_simulation(server, client_app(sys.argv[1]), folder.clients, backend_config=resources)


if __name__ == "__main__":
    from benchmarks.peers import with_flower  # under its own name, by which Flower's workers import it

    with_flower.main()
