"""The folder that a workload's systems read: volumes, orders and starting weights for the peers, the same as a prepared data set for raylora.

What raylora draws itself (the backbone, the first adapters, the order of the samples) is asked of raylora and written down, so the peers
start where it starts. Made once before anything is timed, as a download is prepared once.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.peers.settings import SPACING, client_id, config
from benchmarks.peers.workloads import CHANNELS, SEED, WORKLOADS, volume_of
from raylora import planning
from raylora.core.seeds import generator
from raylora.data import manifest, shards
from raylora.data.grid import Geometry
from raylora.data.manifest import Manifest, PrepareOptions, Row, Source
from raylora.data.preprocess import PreparedFrame
from raylora.method import make_strategy
from raylora.plan import opening


def write(path: Path, workload: str, clients: int, rounds: int, workers: int) -> None:
    """Make the folder."""
    work = WORKLOADS[workload]
    path.mkdir(parents=True)
    distinct = min(work.distinct or clients * work.samples, clients * work.samples)
    rng = generator(SEED, "volumes")
    volumes = rng.random((distinct, CHANNELS, *work.image), dtype=np.float32)
    np.save(path / "volumes.npy", volumes)
    _write_prepared(path / "prepared", workload, clients, volumes)
    order = [
        [generator(SEED, "batches", round, client_id(client)).permutation(work.samples) for client in range(clients)]
        for round in range(rounds)
    ]
    np.save(path / "order.npy", np.array(order))
    plan = planning.make_plan(config(path, workload, rounds))
    first = opening(make_strategy(plan.config), plan.outline, plan.spec, plan.clients).trees["adapter"]
    np.savez(path / "start.npz", **{**plan.weights, **first})  # type: ignore[arg-type]
    (path / "about.json").write_text(json.dumps({"workload": workload, "clients": clients, "rounds": rounds, "workers": workers}))


def _write_prepared(folder: Path, workload: str, clients: int, volumes: np.ndarray) -> None:
    """The volumes as raylora keeps prepared studies. Clients that share a volume have links to one shard."""
    work = WORKLOADS[workload]
    (folder / shards.STUDIES).mkdir(parents=True)
    geometry = Geometry(
        native_shape=work.image,
        native_spacing_mm=SPACING,
        affine=tuple(tuple(row) for row in np.diag([*SPACING, 1.0]).tolist()),
        spacing_mm=SPACING,
        start=(0, 0, 0),
        shape=work.image,
    )
    rows: list[Row] = []
    made: dict[int, Row] = {}
    for client in range(clients):
        for sample in range(work.samples + 1):  # the last one is the test patient
            volume = int(volume_of(work, client, sample, len(volumes)))
            row = Row(
                id=f"{client_id(client)}-{sample:02d}",
                dataset="acdc",
                split="training" if sample < work.samples else "testing",
                vendor="",
                centre=client_id(client),
                scanner="",
                group=("NOR", "DCM")[sample % 2],
                labelled=True,
                ed=None,
                es=None,
                crop="centre",
                cut_voxels=0,
                fingerprint="",
                geometry=geometry,
                sources=(Source(path=f"volumes.npy/{volume}", bytes=volumes[volume].nbytes, mtime_ns=0, sha256=f"{volume:064x}"),),
                key="",
                shard_bytes=0,
                shard_sha256="",
            )
            shard = shards.shard_path(folder, row.id)
            if volume in made:
                first = made[volume]
                os.link(shards.shard_path(folder, first.id), shard)
                rows.append(replace(row, shard_bytes=first.shard_bytes, shard_sha256=first.shard_sha256))
            else:
                frames = {
                    name: PreparedFrame(image=volumes[volume, i], label=None, native_label=None) for i, name in enumerate(("ED", "ES"))
                }
                made[volume] = shards.write_shard(shard, row, frames)
                rows.append(made[volume])
    options = PrepareOptions(spacing_mm=SPACING, size=work.image)
    text = manifest.to_json(Manifest(options=options, rows=tuple(sorted(rows, key=lambda row: row.id))))
    manifest.write_atomically(folder / manifest.NAME, text.encode())


def shorten(path: Path, other: Path, rounds: int) -> None:
    """The same folder with fewer rounds, by links."""
    other.mkdir()
    for name in ("volumes.npy", "order.npy", "start.npz", "prepared"):
        (other / name).symlink_to(path / name)
    about = json.loads((path / "about.json").read_text())
    (other / "about.json").write_text(json.dumps({**about, "rounds": rounds}))
