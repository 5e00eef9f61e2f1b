"""What the machinery costs: rounds of clients that return at once, many clients, many rounds, and how the cost grows.

    python -m benchmarks.overhead rounds    # 8 clients, 1.5 MB adapters, 2 actors: milliseconds a round
    python -m benchmarks.overhead clients   # 1,000 clients on 2 actors: seconds a round, memory a client beside 8 clients
    python -m benchmarks.overhead growth    # 600 rounds: memory gained in 100 of the first 300, and of the last
    python -m benchmarks.overhead curves    # rounds a second and memory against clients, rank, blocks, tokens; one picture each

Each writes benchmarks/results/overhead_<name>.json (and .png), or into --output; --small is a version for the tests. Needs a machine with
nothing else to do: half a minute each on two cores, the curves three minutes. The rounds are those of `raylora run`: the same strategy, executor, checks and
byte counts; "kept" adds the record and a checkpoint synced to the disk in every round. Clients hold synthetic samples of their own, so that
nothing but the process's own memory is counted (PSS of driver and actors); each point of the curves has processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.processes import heap_in_use, pss
from raylora.cluster import resources, session
from raylora.cluster.client_actor import ClientActor, Place, RayExecutor
from raylora.core.types import Broadcast, Client, ClientState, ClientUpdate, State, Strategy, Tree
from raylora.federation import checkpoint
from raylora.federation.answers import Outcome
from raylora.federation.border import Checked
from raylora.federation.client import Shard, Site
from raylora.federation.host import Host
from raylora.federation.protocol import Protocol, initial_tree
from raylora.federation.rounds import Progress, receive, run_round
from raylora.models.stacked import StackedModel, adapted_modules
from raylora.models.vit import ViTClassifier
from raylora.strategies import create
from raylora.tracking.record import Record
from raylora.training.settings import Settings

RESULTS = Path(__file__).parent / "results"
PATIENTS, BATCH = 4, 2  # training samples of a client, and of a step


@dataclass(frozen=True, kw_only=True)
class Work:
    """What clients do in a round: one step of a small ViT, or nothing."""

    clients: int = 8
    actors: int = 2
    stack: int = 1
    idle_mb: float | None = None  # an adapter of so many megabytes in fifty tensors comes back as it was sent
    rank: int = 4
    blocks: int = 2  # of the network, all adapted
    side: int = 16  # voxels; patches of 4 x 4 x 4: tokens grow with its square
    width: int = 48


class Noise:
    """Samples of a client."""

    def __init__(self, work: Work, number: int) -> None:
        rng = np.random.default_rng(number)
        self.images = rng.random((PATIENTS, 2, work.side, work.side, 8), np.float32)
        self.targets = rng.integers(0, 2, PATIENTS)

    def __len__(self) -> int:
        return PATIENTS

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.images[indices], self.targets[indices], np.ones(len(indices), np.float32)


class Sites(Mapping[str, Site]):
    """Clients whose samples are drawn when they are first asked for."""

    def __init__(self, work: Work) -> None:
        self.work, self.opened = work, dict[str, Site]()

    def __getitem__(self, client: str) -> Site:
        if client not in self.opened:
            shard = Shard(training=Noise(self.work, names(self.work).index(client)), patients=PATIENTS)
            self.opened[client] = Site(id=client, rank=self.work.rank, shard=shard)
        return self.opened[client]

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.work))

    def __len__(self) -> int:
        return self.work.clients


def names(work: Work) -> list[str]:
    return [f"c{i:04d}" for i in range(work.clients)]


class Idle(Host):
    """Clients that return at once what they were sent."""

    def train(self, clients: Sequence[str], broadcasts: Sequence[Broadcast]) -> list[Outcome]:
        return [
            Outcome(
                update=ClientUpdate(
                    client_id=client,
                    num_examples=PATIENTS,
                    adapter=broadcast.adapter,
                    metrics={"loss": 1.0},
                    scaling=self.protocol.alpha / self.protocol.max_rank,
                ),
                state=ClientState(round=broadcast.task.round),
                seconds=0.0,
            )
            for client, broadcast in zip(clients, broadcasts, strict=True)
        ]


def host_of(work: Work) -> Host:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ViTClassifier((work.side, work.side, 8), (4, 4, 4), work.width, work.blocks, 4)
    model = StackedModel(network, modules=adapted_modules(network, None, "all"), plain=network.head_names)
    protocol = Protocol(
        task="disease",
        seed=0,
        alpha=8.0,
        max_rank=work.rank,
        settings=Settings(lr=1e-3, rounds=1000, batch_size=BATCH, local_epochs=None, local_steps=1),
        depth=8,
        eval_batch=4,
    )
    return (Host if work.idle_mb is None else Idle)(model, protocol, Sites(work))


class Actor(ClientActor):
    """An actor of synthetic clients."""

    def open_on(self, work: Work) -> Place:
        self.host, self.gpus = host_of(work), 0.0
        return Place(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), device=self.host.device)

    def heap_in_use(self) -> int:
        return heap_in_use()


Actor.__name__ = ClientActor.__name__  # as it is called in a process list


class Executor(RayExecutor):
    """The product's executor over actors of synthetic clients."""

    def __init__(self, work: Work) -> None:
        self.work = work
        request = resources.request(
            dict.fromkeys(names(work), 1.0),
            cpus_per_client=1.0,
            gpus_per_client=0.0,
            clients_per_actor=-(-work.clients // work.actors),
            available=resources.Available(cpus=work.actors, gpus=0, where="here"),
            stack=work.stack,
        )
        super().__init__(_NoData(), {}, request, 600.0)  # type: ignore[arg-type]
        self.arrange(work.stack)

    def _start(self, index: int) -> tuple[Any, Any]:
        actor = ray.remote(num_cpus=1)(Actor).remote()
        return actor, actor.open_on.remote(self.work)


class _NoData:
    sets: tuple[str, ...] = ()


def first_tree(work: Work) -> Tree:
    if work.idle_mb is None:
        host = host_of(replace(work, clients=1))
        return initial_tree(host.model.outline, host.protocol, "c0000", work.rank)
    side = round(work.idle_mb * 1e6 / 4 / 50 / work.rank)
    rng = np.random.default_rng(0)
    return {
        f"blocks.{i}.attn.qkv.lora_{s}": rng.random((work.rank, side) if s == "A" else (side, work.rank)).astype(np.float32)
        for i in range(25)
        for s in "AB"
    }


Parties = tuple[Checked, Strategy, list[Client], State]


@contextmanager
def federation(work: Work) -> Iterator[Parties]:
    strategy = create("fedit", {}, seed=0, clients=work.clients)
    clients = [Client(id=name, num_examples=PATIENTS, rank=work.rank, scaling=8.0 / work.rank) for name in names(work)]
    executor = Executor(work)
    try:
        tree = first_tree(work)
        yield Checked(executor, clients, dict.fromkeys(names(work), tree), "stop"), strategy, clients, strategy.init(tree)
    finally:
        executor.close()


def play(work: Work, rounds: int, *, keep: Path | None = None, look: int = 0) -> dict[str, Any]:
    """Seconds of each round, and the memory of driver and actors at the end (and every `look` rounds)."""
    with federation(work) as parties:
        return play_on(parties, work, rounds, keep=keep, look=look)


def play_on(
    parties: Parties,
    work: Work,
    rounds: int,
    *,
    keep: Path | None = None,
    look: int = 0,
    each: Callable[[Sequence[float]], None] = lambda losses: None,
) -> dict[str, Any]:
    """The same with parties that are there. `keep`: a folder for the record and checkpoints; `each` is called with a round's losses.

    Each look finds the pages of driver and actors (`pss_mb`) and what is in use on their heaps (`heap_mb`)."""
    executor, strategy, clients, server = parties
    progress, broadcasts = receive(Progress(round=0, server=server), strategy, clients, {})
    cohort, record = names(work), None if keep is None else Record(keep)
    seconds, memory, heaps = [], [], []
    for t in range(rounds):
        began = time.perf_counter()
        progress, report = run_round(progress, broadcasts, strategy, clients, cohort, executor, stack=work.stack)
        progress, broadcasts = receive(progress, strategy, clients, {})
        if keep is not None and record is not None:
            record.append([{"round": t, "client": one.client, **one.metrics} for one in report.clients])
            checkpoint.save(keep / "checkpoints", progress, record.rows)
            checkpoint.prune(keep / "checkpoints", 2)
        seconds.append(time.perf_counter() - began)
        each([one.metrics["loss"] for one in report.clients])
        if look and (t + 1) % look == 0:
            memory.append(pss_mb(executor))
            heaps.append((heap_in_use() + sum(ray.get([actor.heap_in_use.remote() for actor in executor.actors]))) / 1e6)
    return {"seconds": seconds, "pss_mb": [*memory, pss_mb(executor)], "heap_mb": heaps}


def pss_mb(executor: Checked) -> float:
    """Proportional memory of the driver and its actors."""
    pids = [os.getpid(), *(place.pid for place in executor.places)]
    return sum(pss(pid) for pid in pids) / 1e6


def later(found: Mapping[str, Any], skip: int = 2) -> float:
    """The median round after the first ones."""
    return statistics.median(found["seconds"][skip:])


# ---- the campaigns


def rounds(small: bool) -> dict[str, Any]:
    """Milliseconds of a median round in which clients return at once."""
    work = Work(clients=8, idle_mb=0.1 if small else 1.5)
    count = 5 if small else 60
    with federation(work) as parties, tempfile.TemporaryDirectory() as folder:
        plain = play_on(parties, work, count)
        kept = play_on(parties, work, count, keep=Path(folder))
    return {"work": asdict(work), "rounds": count, "ms_per_round": 1000 * later(plain), "ms_per_round_kept": 1000 * later(kept)}


def clients(small: bool) -> dict[str, Any]:
    """Many clients on two actors, beside eight."""
    many, few, count = (24, 8, 3) if small else (1000, 8, 5)
    found = {n: play(Work(clients=n), count) for n in (few, many)}
    shard = Noise(Work(), 0)
    state = sum(value.nbytes for value in first_tree(Work()).values())  # what a client trains, and what the driver keeps of it
    gained = (found[many]["pss_mb"][-1] - found[few]["pss_mb"][-1]) / (many - few)
    return {
        "clients": many,
        "seconds_per_round": later(found[many], 1),
        "mb_per_client": gained,
        "shard_mb": (shard.images.nbytes + shard.targets.nbytes) / 1e6,
        "state_mb": state / 1e6,
        "pss_mb": {str(n): found[n]["pss_mb"][-1] for n in found},
    }


def growth(small: bool) -> dict[str, Any]:
    """Memory over many tiny rounds, by the slope of all looks at it, in the first half and in the second: pages, which freed pieces spread
    over while heaps are young, and what is in use on the heaps, which would grow with whatever is never given back."""
    count = 24 if small else 600
    look = count // 24
    found = play(Work(clients=4), count, look=look)

    def slopes(memory: Sequence[float]) -> dict[str, float]:
        halves = {"first": memory[:12], "second": memory[12:24]}
        return {half: float(np.polyfit(np.arange(12), part, 1)[0]) / look * 100 for half, part in halves.items()}

    pages, heaps = found["pss_mb"][:-1], found["heap_mb"]
    return {
        "rounds": count,
        "pss_mb": pages,
        "heap_mb": heaps,
        "mb_per_100_rounds_of_half": slopes(pages),
        "heap_mb_per_100_rounds_of_half": slopes(heaps),
        "ms_per_round": 1000 * later(found),
    }


def curves(small: bool) -> dict[str, Any]:
    """Rounds a second and memory as one thing grows."""
    steps: dict[str, Sequence[int]] = {
        "clients": (8, 32, 128, 512, 1024),
        "rank": (2, 4, 8, 16, 32),
        "blocks": (2, 4, 8, 12),
        "side": (8, 16, 32, 48),
    }
    if small:
        steps = {"clients": (8,)}
    table: dict[str, list[dict[str, float]]] = {}
    for key, values in steps.items():
        table[key] = []
        for value in values:
            work = replace(Work(), **{key: value})
            found = fresh(work, 3 if small else 8)
            tokens = (work.side // 4) ** 2 * 2 + 1
            table[key].append({key: value, "tokens": tokens, "rounds_per_s": 1 / later(found, 1), "pss_mb": found["pss_mb"][-1]})
    return {"curves": table}


def fresh(work: Work, count: int) -> dict[str, list[float]]:
    """`play` in a process, with a Ray, of its own: what a run of a thousand clients leaves behind is no memory of the next point."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(connected, play, work, count).result()


def connected(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns between the start and the end of a Ray of its own."""
    with session.opened(None):
        return function(*arguments)


def draw(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """One picture a curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for key, points in found["curves"].items():
        shown = "tokens" if key == "side" else key
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for axes, column, label in ((left, "rounds_per_s", "rounds a second"), (right, "pss_mb", "memory of driver and actors (MB, PSS)")):
            axes.plot([point[shown] for point in points], [point[column] for point in points], "o-")
            axes.set(xlabel=shown, ylabel=label, xscale="log", yscale="log" if axes is left else "linear")
            axes.grid(alpha=0.3)
        made.append(stem.with_name(f"{stem.name}_{shown}.png"))
        figure.savefig(made[-1], dpi=120)
        pyplot.close(figure)
    return made


CAMPAIGNS = {"rounds": rounds, "clients": clients, "growth": growth, "curves": curves}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    campaign = CAMPAIGNS[given.campaign]
    found = campaign(given.small) if campaign is curves else connected(campaign, given.small)
    about = {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__, "ray": ray.__version__}
    found = {"campaign": given.campaign, "small": given.small, **found, "machine": {**about, "processor": platform.machine()}}
    given.output.mkdir(parents=True, exist_ok=True)
    stem = given.output / f"overhead_{given.campaign}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    if "curves" in found:
        draw(found, stem)
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    from benchmarks import overhead  # Ray's workers and spawned processes find classes there, not in a `__main__` of their own

    overhead.main()
