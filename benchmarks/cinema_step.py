"""One LoRA step and one evaluation of the full-size CineMA classifier: time, memory, and how both split into frozen and trained part.

    python -m benchmarks.cinema_step [--threads 2] [--repeats 5] [--output benchmarks/results/cinema_step.json]

Random weights, 192 x 192 x 16 voxels, two frames, batch 1; LoRA of rank 8 on q, kv, proj, fc1, fc2 of the last two of twelve blocks, and
the heads. What the stem and the first ten blocks compute does not depend on anything trained: it is timed apart, because a run computes it
once for each image and keeps it. Expected: about 8 CPU seconds a step, two thirds of them frozen, and 1.2 GiB; the bound is 3 GiB. Seed 0.
On a machine that others use, only the CPU seconds at one thread mean anything (`other_load` says how busy it was).
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raylora.core.seeds import generator
from raylora.core.types import Phase
from raylora.models import cinema
from raylora.models.draw import draw_weights
from raylora.models.stacked import StackedModel, adapted_modules
from raylora.models.stages import first_trained, run_stages
from raylora.training.losses import weighted_cross_entropy
from raylora.training.optim import AdamW

TARGETS = ("q", "kv", "proj", "fc1", "fc2")
BLOCKS, RANK, ALPHA, OUT, BOUND_GIB = 2, 8, 8.0, 5, 3.0


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cinema_step.json")
    options = parser.parse_args()
    result = measure(options.threads, options.repeats)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(threads: int, repeats: int) -> dict:
    """The fastest of `repeats` (other work on the machine only ever adds time), after one round that is not counted."""
    other_load = os.getloadavg()[0]
    torch.set_num_threads(threads)
    sizes = {name: value for name, value in cinema.SIZES["base"].items() if not name.startswith("dec_")}
    backbone = draw_weights(cinema.classifier(**sizes, n_frames=2, out=OUT), torch.Generator().manual_seed(0))
    modules = adapted_modules(backbone, TARGETS, BLOCKS)
    model = StackedModel(backbone, modules=modules, plain=backbone.head_names)
    model.load([model.outline.initial(generator(0, "shared"), generator(0, "private"), RANK)], [ALPHA])
    trained = model.begin(Phase(trains=("*",)), set(model.parameters))
    stages = model.backbone.stages()
    first = first_trained(stages, trained)
    image = torch.randn(1, 2, *sizes["image_size"], generator=torch.Generator().manual_seed(1))
    label, weight = torch.tensor([1]), torch.ones(1, 1)
    optimiser, rate = AdamW(), torch.tensor([1e-3])

    @torch.no_grad()
    def frozen() -> tuple[torch.Tensor, ...]:
        return run_stages(stages[:first], (image,))

    def train(tensors: tuple[torch.Tensor, ...]) -> float:
        loss = weighted_cross_entropy(run_stages(stages[first:], tensors)[0], label, weight).sum()
        loss.backward()
        optimiser.step(trained, rate)
        for value in trained.values():
            value.grad = None
        return loss.item()

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        return model(image)

    tensors = frozen()
    parts = {"frozen": timed(frozen, repeats), "trained": timed(lambda: train(tensors), repeats)}
    return {
        "model": "CineMA classifier, base size, random weights",
        "lora": {"rank": RANK, "targets": TARGETS, "blocks": BLOCKS, "of": len(backbone.adapter_blocks)},
        "image": list(image.shape),
        "parameters": {"all": sum(p.numel() for p in model.weights.values()), "trained": sum(p.numel() for p in trained.values())},
        "stages": {"frozen": [stage.name for stage in stages[:first]], "trained": [stage.name for stage in stages[first:]]},
        "kept_between_mb": round(sum(4 * tensor.numel() for tensor in tensors) / 1e6, 1),
        "step": {
            **parts,
            "seconds": round(sum(part["seconds"] for part in parts.values()), 2),
            "cpu_seconds": round(sum(part["cpu_seconds"] for part in parts.values()), 2),
            "fits": {"bound_gib": BOUND_GIB, "yes": max(part["peak_gib"] for part in parts.values()) < BOUND_GIB},
        },
        "evaluation": timed(evaluate, repeats),
        "machine": {"processor": processor(), "threads": threads, "python": platform.python_version(), "torch": torch.__version__},
        "other_load": round(other_load, 1),  # runnable processes of others on the machine before the start
    }


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Wall and CPU seconds of the fastest, and the peak resident memory of the whole process meanwhile, in GiB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    times = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    wall, cpu = (round(min(column), 2) for column in zip(*times[1:], strict=True))
    return {"seconds": wall, "cpu_seconds": cpu, "peak_gib": round(int(peak.split()[1]) / 2**20, 2)}


def processor() -> str:
    """The CPU's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
