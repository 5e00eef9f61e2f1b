"""Synthetic run folders, in the layout of a real one: scores drawn around a stated quality, no training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file

from raylora.core.seeds import generator
from raylora.metrics.classification import choose_threshold
from raylora.metrics.matrix import PRIMARY, cross_client, final
from raylora.metrics.rows import CaseRow

SITES = ("canon", "ge", "philips", "siemens")


def make_run(
    folder: Path,
    *,
    task: str = "segmentation",
    strategy: str = "fedit",
    seed: int = 0,
    quality: float = 0.85,
    validation: float | None = None,
    spread: float = 0.004,
    own_models: bool = False,
    clients: Sequence[str] = SITES,
    patients: int = 6,
    rounds: int = 5,
    data: str = "cohort",
    status: str = "finished",
    pictures: bool = False,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a run whose test score is about `quality`, moved by `spread` from seed to seed; patients are as hard in every run. `validation`:
    the quality on validation patients, if it is another one."""
    folder.mkdir(parents=True)
    shift = float(generator(seed, f"seed effect {strategy} {config}").normal(0, spread))
    scorer = _segmentation if task == "segmentation" else _disease
    noise = f"{strategy} {seed} {config}"
    models = {"frozen": quality - 0.25, "global": quality + shift}
    if own_models:
        models |= {client: quality + shift + 0.01 for client in clients}
    rows: list[CaseRow] = []
    for model, level in models.items():
        for client in clients:
            away = 0.03 if model in clients and model != client else 0.0
            for split, count in (("validation", 4), ("test", patients)):
                other = validation - quality if split == "validation" and validation is not None else 0.0
                for number in range(count):
                    patient = f"{client}_{split}_{number:02d}"
                    rows += scorer(model, client, patient, split, rounds - 1, level - away + other, noise)
        if task == "disease":
            rows.append(_threshold(rows, model, rounds - 1))
    nested = _config(task, strategy, seed, rounds, config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    pq.write_table(pa.Table.from_pydict({name: [getattr(r, name) for r in rows] for name in CaseRow._fields}), folder / "cases.parquet")
    (folder / "rounds.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in _rounds(clients, rounds, quality, strategy, seed, PRIMARY[task]))
    )
    per_round = 1_800_000 if strategy != "fedavg_full" else 28_000_000
    summary = {
        "schema": 1, "status": status, "name": nested["name"], "task": task, "strategy": strategy, "seed": seed, "rounds": rounds,
        "clients": list(clients), "final": final(rows, task=task, clients=clients, seed=seed, replicates=200),
        "cross_client": cross_client(rows, metric=PRIMARY[task], clients=clients),
        "bytes_up": per_round * rounds * len(clients), "bytes_down": 2 * per_round * rounds * len(clients),
        "adapter_sha256": {"global": hashlib.sha256(f"{strategy}{seed}".encode()).hexdigest()},
        "wall_seconds": 61.5 + 3 * seed, "virtual_seconds": None, "driver": {"node": "local", "pid": 1},
        "actors": [{"clients": [c], "node": "local", "pid": 2 + i, "cpus": 0.5, "gpus": 0, "restarts": 0} for i, c in enumerate(clients)],
        "mlflow": {"tracking_uri": "sqlite:///mlflow.db", "experiment": "raylora", "run_id": "0"},
        "numerics": {"device": "cpu", "threads": 1, "dtype": "float32", "stack": 1, "torch": "2"}, "versions": {"raylora": "0.1.0"},
        "config_sha256": hashlib.sha256(yaml.safe_dump(nested).encode()).hexdigest(),
        "data_sha256": hashlib.sha256(data.encode()).hexdigest(),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    if pictures:
        (folder / "plots").mkdir()
        save_file(_overlays(clients[0], patients), folder / "plots" / "overlays.safetensors")
    return folder


def _segmentation(model: str, client: str, patient: str, split: str, round: int, level: float, noise: str) -> list[CaseRow]:
    at = dict(round=round, split=split, model_of=model, data_of=client, patient=patient)
    hard = float(generator(0, f"hard {patient}").normal(0, 0.05))
    rng = generator(0, f"{model} {patient} {noise}")
    rows, values = [], []
    for frame in ("ED", "ES"):
        for structure, offset in (("LV", 0.05), ("MYO", -0.06), ("RV", 0.01)):
            value = float(np.clip(level + hard + offset + rng.normal(0, 0.01), 0, 1))
            values.append(value)
            rows.append(CaseRow(**at, frame=frame, structure=structure, metric="dice", value=value))
            rows.append(CaseRow(**at, frame=frame, structure=structure, metric="hd95_mm", value=40 * (1 - value)))
            rows.append(CaseRow(**at, frame=frame, structure=structure, metric="volume_true_ml", value=100.0))
            rows.append(CaseRow(**at, frame=frame, structure=structure, metric="volume_ml", value=100.0 + 60 * (1 - value)))
    rows.append(CaseRow(**at, frame="-", structure="all", metric="dice", value=float(np.mean(values))))
    rows.append(CaseRow(**at, frame="-", structure="all", metric="hd95_mm", value=40 * (1 - float(np.mean(values)))))
    rows.append(CaseRow(**at, frame="-", structure="EF", metric="lv_ef_error", value=30 * (1 - float(np.mean(values)))))
    return rows


def _disease(model: str, client: str, patient: str, split: str, round: int, level: float, noise: str) -> list[CaseRow]:
    at = dict(round=round, split=split, model_of=model, data_of=client, patient=patient, frame="-", structure="diseased")
    label = int(patient[-2:]) % 2
    hard = float(generator(0, f"hard {patient}").normal(0, 0.7))
    own = float(generator(0, f"{model} {patient} {noise}").normal(0, 0.2))
    signal = 3 * (level - 0.5) * (1 if label else -1) + hard + own
    return [
        CaseRow(**at, metric="probability", value=float(1 / (1 + np.exp(-signal)))),
        CaseRow(**at, metric="label", value=float(label)),
    ]


def _threshold(rows: Sequence[CaseRow], model: str, round: int) -> CaseRow:
    mine = [r for r in rows if r.model_of == model and r.split == "validation"]
    label, probability = ([r.value for r in mine if r.metric == metric] for metric in ("label", "probability"))
    return CaseRow(
        round, "validation", model, "-", "-", "-", "diseased", "threshold", choose_threshold(np.array(label), np.array(probability))
    )


def _config(task: str, strategy: str, seed: int, rounds: int, extra: Mapping[str, object]) -> dict[str, object]:
    config: dict[str, object] = {
        "name": f"{strategy}_{seed}", "task": task, "seed": seed,
        "data": {"dataset": "phantom", "root": None, "split_seed": 0, "crop": "centre", "allow_seen": False},
        "clients": {"by": "vendor", "held_out": []}, "model": {"name": "unet" if task == "segmentation" else "vit"},
        "lora": {"rank": 4, "alpha": 8.0, "blocks": "all"}, "strategy": {"name": strategy},
        "training": {"rounds": rounds, "lr": 1e-3}, "placement": {"cpus_per_client": 0.5}, "tracking": {"uri": None},
    }  # fmt: skip
    for key, value in extra.items():
        section, _, name = key.partition(".")
        config[section] = {**config.get(section, {}), name: value} if name else value
    return config


def _rounds(clients: Sequence[str], rounds: int, quality: float, strategy: str, seed: int, metric: str) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for t in range(rounds):
        reached = quality - 0.25 * float(np.exp(-1.2 * (t + 1)))
        weights = {}
        for i, client in enumerate(clients):
            rng = generator(seed, f"round {strategy}", t, client)
            weights[client] = float(np.exp(-0.15 * i * np.exp(-0.3 * t)) * (1 - 0.03 * rng.random()))
            value = float(np.clip(reached - 0.02 * i + rng.normal(0, 0.008), 0, 1))
            records.append({
                "kind": "client", "round": t, "client": client, "loss": float(0.9 * np.exp(-0.4 * t) + 0.05 * i + 0.02 * rng.random()),
                "seconds": 2.0, "validation": {metric: value}, "bytes_up": 1_800_000, "bytes_down": 3_600_000, "node": "local",
            })  # fmt: skip
        records.append({
            "kind": "round", "round": t, "seconds": 9.0, "bytes_up": 1_800_000 * len(clients), "bytes_down": 3_600_000 * len(clients),
            "weights": weights, "validation": {metric: reached},
        })  # fmt: skip
    return records


def _overlays(client: str, patients: int) -> dict[str, np.ndarray]:
    """Three patients, two frames: an ellipsoidal heart with a prediction a little off."""
    tensors: dict[str, np.ndarray] = {}
    for number in range(min(3, patients)):
        for frame, cavity in (("ED", 9.0), ("ES", 6.0)):
            truth, pred = _heart(cavity, 0.0, 1.0), _heart(cavity, 1.5 * number, 1.0 + 0.06 * number)
            grain = generator(number, f"overlay {frame}").standard_normal(truth.shape)
            image = 0.25 + 0.5 * (truth == 3) + 0.4 * (truth == 1) - 0.05 * (truth == 2) + 0.05 * grain
            key = f"global/{client}_test_{number:02d}/{frame}"
            tensors[f"{key}/image"] = np.clip(image, 0, 1).astype(np.float32)
            tensors[f"{key}/pred"], tensors[f"{key}/truth"] = pred, truth
    return tensors


def _heart(cavity: float, shift: float, grow: float) -> np.ndarray:
    """A label map (64, 64, 10), base at the low end."""
    x, y, z = np.indices((64, 64, 10)).astype(np.float32)
    taper = np.sqrt(np.clip(1 - ((z - 1) / 9) ** 2, 0.05, 1)) * grow
    from_lv, from_rv = np.hypot(x - 36 - shift, y - 32), np.hypot(x - 24 - shift, y - 32)
    label = np.zeros(x.shape, np.uint8)
    label[from_rv < 12 * taper], label[from_lv < 14 * taper], label[from_lv < cavity * taper] = 1, 2, 3
    label[:, :, [0, 9]] = 0
    return label
