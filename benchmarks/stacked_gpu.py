"""Clients of CineMA in one pass against one after the other, on a GPU: samples a second, peak memory, share of the chip's matrix rate.

    python -m benchmarks.stacked_gpu [--device cuda] [--size base] [--clients 1 2 4 8 16 32] [--output benchmarks/results/stacked_gpu.json]
    python -m benchmarks.stacked_gpu --draw       # the table and the picture again, from the stored figures

The classifier at its published size with random weights: 192 x 192 x 16 voxels, two frames, batch 1 a client; LoRA of rank 8 on q, kv, proj,
fc1, fc2 of the last two of twelve blocks or of all, and the heads. A measurement is a whole local round as `raylora.training.local.train`
does it, from the clients' trees to their trees, of STEPS steps: the median of REPEATS, after one that is not counted. With two blocks it is
taken twice, once with what precedes them computed in each step and once with it known (`training.cache`). The matrix rate is that of one
large product of random numbers in the same precision, measured before. One after the other, clients cost the same however many they are:
up to ALONE of them are measured. Seed 0. About three minutes on one H100.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raylora.core.seeds import generator
from raylora.core.types import Phase
from raylora.federation.build import repeatable
from raylora.federation.memory import Peak
from raylora.models import cinema
from raylora.models.draw import draw_weights
from raylora.models.stacked import StackedModel, adapted_modules
from raylora.training.features import Cached, Prefix, cuts
from raylora.training.local import Job, Result, train
from raylora.training.losses import LOSSES
from raylora.training.settings import CacheSpec, Settings

RESULT = Path(__file__).parent / "results" / "stacked_gpu.json"
TARGETS, RANK, ALPHA, CLASSES = ("q", "kv", "proj", "fc1", "fc2"), 8, 8.0, 2
STEPS, REPEATS, IMAGES, ALONE = 4, 3, 8, 4
SETTINGS = Settings(lr=1e-4, rounds=1, batch_size=1, local_steps=STEPS)
WORK = {"all blocks": ("all", False), "two blocks": (2, False), "two blocks, prefix kept": (2, True)}
LARGE = {"cuda": 8192, "cpu": 1024}  # rows and columns of the product that gives the matrix rate


class Volumes:
    """A client's four images, of eight that all clients draw from: what is in them does not change what they cost."""

    def __init__(self, images: np.ndarray, client: int) -> None:
        self.chosen = images[[(client + i) % len(images) for i in range(STEPS)]]

    def __len__(self) -> int:
        return STEPS

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.chosen[indices], np.asarray(indices) % CLASSES, np.ones(len(indices), np.float32)


def main() -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="base")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    if not options.draw:
        found = measure(options.device, options.size, options.clients)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(options.output.read_text())
    print(table(found))
    if options.draw:
        draw(found, options.output.with_suffix(".png"))


def measure(device: str, size: str, clients: Sequence[int]) -> dict[str, Any]:
    """All rows: in both precisions, for each kind of work, stacked and one after the other for each number of clients."""
    repeatable(device, torch.get_num_threads())
    sizes = {name: value for name, value in cinema.SIZES[size].items() if not name.startswith("dec_")}
    images = np.random.default_rng(0).standard_normal((IMAGES, 2, *sizes["image_size"]), np.float32)
    rates = {str(dtype).removeprefix("torch."): matrix_rate(device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    rows: list[dict[str, Any]] = []
    counted: dict[str, float] = {}  # in the first precision: what is computed twice in the other is not work
    for name, rate in rates.items():
        for work, (blocks, kept) in WORK.items():
            with tempfile.TemporaryDirectory() as folder:
                model = adapted(sizes, blocks, device, getattr(torch, name), Path(folder) if kept else None)
                if work not in counted:
                    counted[work] = flops(model, images) / 1e12
                tera = counted[work]
                for count in clients:
                    row = {"dtype": name, "work": work, "clients": count, "tflop_per_sample": tera}
                    found = row | of_clients(model, images, count)
                    for mode in ("stacked", "separate"):
                        if mode in found:
                            found[mode]["matrix_share"] = found[mode]["samples_per_s"] * tera / rate
                    rows.append(found)
                    print(json.dumps(found), flush=True)
                del model
    return {
        "model": f"CineMA classifier, {size}, random weights",
        "image": [2, *sizes["image_size"]],
        "lora": {"rank": RANK, "targets": TARGETS},
        "steps": STEPS,
        "repeats": REPEATS,
        "matrix_tflops": rates,
        "rows": rows,
        "machine": {
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
    }


def adapted(sizes: dict[str, Any], blocks: int | str, device: str, dtype: torch.dtype, kept: Path | None) -> StackedModel:
    """The classifier with adapters in its last blocks; `kept`: the folder of what precedes them."""
    backbone = draw_weights(cinema.classifier(**sizes, n_frames=2, out=CLASSES), torch.Generator().manual_seed(0))
    modules = adapted_modules(backbone, TARGETS, blocks)
    model = StackedModel(backbone.to(device, dtype), modules=modules, plain=backbone.head_names)
    if kept is not None:
        cut = cuts(backbone, sorted(model.outline.names), (2, *sizes["image_size"]))[-1]
        number = str(dtype).removeprefix("torch.")
        model.prefix = Prefix(
            model, CacheSpec(folder=str(kept), bound_bytes=1 << 34, first=cut.first, stage=cut.stage, dtype=number, function="")
        )
    return model


def of_clients(model: StackedModel, images: np.ndarray, count: int) -> dict[str, Any]:
    """One number of clients, together and one after the other, and how far their trees are apart afterwards."""
    jobs = []
    for k in range(count):
        samples: Any = Volumes(images, k)
        samples = samples if model.prefix is None else Cached(samples, model, str(k), 0)
        tree = model.outline.initial(generator(k, "shared"), generator(k, "private"), RANK)
        jobs.append(Job(client=str(k), samples=samples, tree=tree, alpha=ALPHA))

    def round_of(some: Sequence[Job]) -> list[Result]:
        return train(model, some, (Phase(trains=("*",)),), SETTINGS, LOSSES["disease"], seed=0, round=0)

    trees: dict[str, list[Result]] = {}
    found: dict[str, Any] = {}
    for mode, work in {"stacked": lambda: round_of(jobs), "separate": lambda: [round_of([job])[0] for job in jobs]}.items():
        if mode == "separate" and count > ALONE:
            continue
        try:
            found[mode], trees[mode] = timed(work, model.device.type, count)
        except torch.cuda.OutOfMemoryError as error:
            found[f"{mode}_refused"] = str(error).splitlines()[0][:120]
            torch.cuda.empty_cache()
    if len(trees) == 2:
        found["largest_difference"] = max(
            float(np.linalg.norm(a.tree[name] - b.tree[name]) / max(np.linalg.norm(b.tree[name]), 1e-12))
            for a, b in zip(trees["stacked"], trees["separate"], strict=True)
            for name in a.tree
        )
    return found


def timed(work: Callable[[], list[Result]], device: str, count: int) -> tuple[dict[str, Any], list[Result]]:
    """Samples a second (median), peak memory, and whether each repetition gave the same bits."""
    first = work()
    seconds, same = [], True
    with Peak(device) as peak:
        for _ in range(REPEATS):
            started = time.perf_counter()
            results = work()  # ends with trees on the CPU: the device is done
            seconds.append(time.perf_counter() - started)
            same = same and all(np.array_equal(a.tree[name], b.tree[name]) for a, b in zip(first, results, strict=True) for name in a.tree)
    rate = count * STEPS / statistics.median(seconds)
    return {"samples_per_s": rate, "seconds": seconds, "peak_gb": peak.bytes / 1e9, "same_bits": same}, first


def flops(model: StackedModel, images: np.ndarray) -> float:
    """Of one sample's training step, two a multiply-add, counted as torch runs it: with a known prefix without what precedes it."""
    tree = model.outline.initial(generator(0, "shared"), generator(0, "private"), RANK)
    samples: Any = Volumes(images, 0) if model.prefix is None else Cached(Volumes(images, 0), model, "0", 0)
    job = Job(client="0", samples=samples, tree=tree, alpha=ALPHA)
    with sdpa_kernel(SDPBackend.MATH):  # as matrix products, which the counter knows on every device
        train(model, [job], (Phase(trains=("*",)),), SETTINGS, LOSSES["disease"], seed=0, round=0)  # computes the prefix
        with FlopCounterMode(display=False) as counter:
            train(model, [job], (Phase(trains=("*",)),), SETTINGS, LOSSES["disease"], seed=0, round=0)
    return counter.get_total_flops() / STEPS


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Tera floating-point operations a second of a large product of random numbers: the median of nine."""
    n = LARGE[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / statistics.median(seconds[3:]) / 1e12


def table(found: dict[str, Any]) -> str:
    """One line a row: samples a second and share of the matrix rate, stacked and one after the other, their ratio, gigabytes."""
    lines = [
        f"{found['machine']['device']}, torch {found['machine']['torch']}; matrix rate "
        + ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in found["matrix_tflops"].items()),
        f"{'':8} {'':24} {'clients':>7}  {'stacked /s':>10} {'share':>6} {'GB':>6}  {'one by one /s':>13} {'share':>6} {'GB':>6}  {'ratio':>5}",
    ]
    alone: dict[tuple[str, str], float] = {}  # of the largest number of clients that was measured
    for row in found["rows"]:
        cells = []
        for mode, width in (("stacked", 10), ("separate", 13)):
            one, refused = row.get(mode), f"{mode}_refused" in row
            blank = f"{'no room' if refused else '':>{width}} {'':6} {'':6}"
            cells.append(f"{one['samples_per_s']:{width}.1f} {one['matrix_share']:6.1%} {one['peak_gb']:6.1f}" if one else blank)
        kind = row["dtype"], row["work"]
        if "separate" in row:
            alone[kind] = row["separate"]["samples_per_s"]
        ratio = f"{row['stacked']['samples_per_s'] / alone[kind]:5.2f}" if "stacked" in row and kind in alone else ""
        lines.append(f"{row['dtype']:8} {row['work']:24} {row['clients']:7}  {cells[0]}  {cells[1]}  {ratio}")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Samples a second against the number of clients in a pass, one panel a precision; dashed: one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, found["matrix_tflops"], strict=True):
        for colour, work in zip(("#4477aa", "#ee6677", "#228833"), WORK, strict=True):
            rows = [row for row in found["rows"] if row["dtype"] == name and row["work"] == work]
            for mode, style in (("stacked", "-o"), ("separate", "--")):
                points = [(row["clients"], row[mode]["samples_per_s"]) for row in rows if mode in row]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=work if mode == "stacked" else None)
        axes.set(title=name, xlabel="clients", ylabel="samples a second", xscale="log", yscale="log")
        ticks = sorted({row["clients"] for row in found["rows"]})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(f"CineMA on one {found['machine']['device']}: stacked (solid), one after the other (dashed)", fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
