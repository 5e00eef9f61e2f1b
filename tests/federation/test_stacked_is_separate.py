"""Clients that share passes end where they would have ended alone: every method, both tasks, five rounds of real training.

Sizes, and so steps and last batches, differ; ranks differ where the method allows; LoRA has dropout. In float64 the two differ by rounding
alone; in float32 AdamW amplifies it, to a bound that is measured here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from small_runs import tiny

from raylora import planning
from raylora.config import Training
from raylora.core import sampling
from raylora.core.errors import InputError
from raylora.core.types import Tree
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.federation.rounds import Progress, receive, run_round
from raylora.method import make_strategy
from raylora.plan import opening
from raylora.strategies import STRATEGIES, create

ROUNDS = 5
SMALL = {
    "segmentation": {
        "model__sizes": {"channels": [2, 3, 4], "kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]], "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]]}
    },
    "disease": {},
}
RANKS = {"Canon": 1, "GE": 2, "Philips": 3, "Siemens": 2}


def after_five_rounds(prepared_folder, task: str, name: str, stack: int, dtype: str, **options: Any) -> Mapping[str, Tree]:
    """All trees that the server and the clients hold at the end."""
    mixed = create(name, {}).mixed_ranks and name != "centralised"
    values = {
        **SMALL[task],
        "strategy": {"name": name},
        "lora__rank": RANKS if mixed else 2,
        "lora__dropout": 0.2,
        "training": {
            "rounds": ROUNDS,
            "local_epochs": 1,
            "batch_size": 2 if task == "disease" else 4 if name == "feddpa" else 8,  # its two phases need a step each
            "lr": 0.01,
            "clip": 1.0,
            "dtype": dtype,
        },
        **options,
    }
    plan = planning.make_plan(tiny(prepared_folder, task, **values))
    strategy, executor = make_strategy(plan.config, len(plan.clients)), InProcess(build_host(plan.spec, plan.weights))
    progress = Progress(round=0, server=opening(strategy, plan.outline, plan.spec, plan.clients))
    progress, broadcasts = receive(progress, strategy, plan.clients, plan.weights)
    for t in range(ROUNDS):
        sampled = plan.config.sampling
        cohort = [c.id for c in sampling.cohort(plan.clients, sampled.kind, sampled.fraction, plan.config.seed, t)]
        progress, _ = run_round(progress, broadcasts, strategy, plan.clients, cohort, executor, stack=stack)
        progress, broadcasts = receive(progress, strategy, plan.clients, plan.weights)
        executor.set_base(progress.base)
    held = {f"server {key}": tree for key, tree in progress.server.trees.items()}
    held |= {f"{client} {key}": tree for client, state in progress.states.items() for key, tree in state.trees.items()}
    return {**held, "base": progress.base}


def distance(one: Mapping[str, Tree], other: Mapping[str, Tree]) -> float:
    """The largest difference of a tensor, over its norm."""
    assert one.keys() == other.keys() and all(one[key].keys() == other[key].keys() for key in one)
    found = [
        float(np.linalg.norm(a.astype(np.float64) - other[key][name]) / max(np.linalg.norm(a), 1e-30))
        for key, tree in one.items()
        for name, a in tree.items()
    ]
    return max(found, default=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"centralised"}))
def test_stacked_is_separate(prepared_folder, name, task):
    apart, together = (after_five_rounds(prepared_folder, task, name, stack, "float64") for stack in (1, 4))
    assert distance(apart, together) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"centralised"}))
def test_in_float32_rounding_stays_small(prepared_folder, name, task):
    """At most 1e-3 of each tensor's norm, at the default learning rate; the U-Net without dropout, as it is trained by default, so that its
    convolutions are merged.

    AdamW makes steps of length one of whatever a gradient is, of rounding as well: at ten times that rate SCAFFOLD's variates, whose
    difference is rounding where gradients are small, come up to 1e-2 apart (docs/speed.md)."""
    options = {"training__lr": Training().lr, **({"lora__dropout": 0.0} if task == "segmentation" else {})}
    apart, together = (after_five_rounds(prepared_folder, task, name, stack, "float32", **options) for stack in (1, 3))
    assert distance(apart, together) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedit", "feddpa", "med_duallora"])
def test_merged_convolutions_of_several_clients(prepared_folder, name):
    options = {"lora__dropout": 0.0}
    apart, together = (after_five_rounds(prepared_folder, "segmentation", name, stack, "float64", **options) for stack in (1, 4))
    assert distance(apart, together) <= 1e-9


@pytest.mark.parametrize("stack", [2, 3, 9])
def test_whatever_the_stack_and_whoever_comes(prepared_folder, stack):
    options = {"sampling": {"kind": "uniform", "fraction": 0.75}, "lora__blocks": 1}
    apart, together = (after_five_rounds(prepared_folder, "disease", "feddpa", k, "float64", **options) for k in (1, stack))
    assert distance(apart, together) <= 1e-9


def test_a_decoder_that_every_client_trains_as_it_is(prepared_folder):
    options = {"model__decoder": "full", "lora__targets": ["encoder_conv"]}
    apart, together = (after_five_rounds(prepared_folder, "segmentation", "fedit", stack, "float64", **options) for stack in (1, 4))
    assert distance(apart, together) <= 1e-9
    before = planning.make_plan(tiny(prepared_folder, "segmentation", **SMALL["segmentation"], **options)).weights
    trained = {name: value for name, value in apart["server adapter"].items() if name.startswith("upsamples.")}
    assert len(trained) == 14 and all(not np.array_equal(value, before[name]) for name, value in trained.items()), sorted(trained)


def test_what_is_trained_as_it_is_takes_no_adapter(prepared_folder):
    """Its convolutions would be sent and averaged, and never trained; and clients of a pass would train each other's."""
    with pytest.raises(InputError, match=r"lora.targets: upsamples.0.conv_block.conv1.conv.weight is trained as it is .*encoder_conv"):
        planning.make_plan(tiny(prepared_folder, model__decoder="full"))
    with pytest.raises(
        InputError, match=r"model.decoder: lora.targets places the adapters of unet \(conv, .*expected frozen or full, found lora"
    ):
        planning.make_plan(tiny(prepared_folder, model__decoder="lora"))
