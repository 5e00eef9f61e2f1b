"""On a real GPU (skipped where torch finds none): the same bits twice, stacked as separate, kept as computed, and what a CPU computes."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_runs import run, tiny

from raylora.models.attention import attention
from raylora.strategies import STRATEGIES
from raylora.training import features

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"), pytest.mark.slow]
GPU = {"training__device": "cuda"}
DISTANCE = 1e-3  # of a tensor's norm, between sums in different orders: after two rounds of two steps with AdamW
TASKS = ("segmentation", "disease")


def tree_of(finished):
    return load_file(finished.folder / "adapters" / "global" / "adapter_model.safetensors")


def apart(one, other):
    """The largest distance between tensors of one name, as a share of the norm."""
    assert one.keys() == other.keys()
    return max(float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(other[name])) for name in one)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_on_a_gpu_repeats_its_bits(name, task, prepared_folder, tmp_path):
    try:
        config = tiny(prepared_folder, task, strategy__name=name, **GPU)
        first = run(config, tmp_path / "first")
    except Exception as error:  # what a strategy refuses on a CPU it refuses here
        with pytest.raises(type(error)):
            run(tiny(prepared_folder, task, strategy__name=name), tmp_path / "cpu")
        return
    assert run(config, tmp_path / "again").hashes == first.hashes


@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_computes_what_a_cpu_computes(task, prepared_folder, tmp_path, runs):
    assert apart(tree_of(run(tiny(prepared_folder, task, **GPU), tmp_path)), tree_of(runs(task))) < DISTANCE


@pytest.mark.parametrize("task", TASKS)
def test_clients_in_one_pass_are_clients_one_after_the_other(task, prepared_folder, tmp_path):
    alone, together = (run(tiny(prepared_folder, task, training__stack=k, **GPU), tmp_path / str(k)) for k in (1, 4))
    assert apart(tree_of(together), tree_of(alone)) < DISTANCE


@pytest.mark.parametrize("room", [features.RESIDENT, 0.0])
def test_features_that_are_kept_are_those_that_are_computed(room, prepared_folder, tmp_path, monkeypatch):
    """On the device or read from the folder each time: bit for bit, at a batch size of one."""
    monkeypatch.setattr(features, "RESIDENT", room)
    alone = {"lora__blocks": 1, "training__batch_size": 1, "evaluation__batch_size": 1, "data__cache": str(tmp_path / "cache"), **GPU}
    kept, computed = (run(tiny(prepared_folder, "disease", training__cache=c, **alone), tmp_path / c) for c in ("fp32", "off"))
    assert kept.plan.spec.cache is not None and kept.hashes == computed.hashes


def test_the_stack_is_measured_on_the_gpu(prepared_folder, tmp_path):
    found = run(tiny(prepared_folder, "disease", training__stack="auto", **GPU), tmp_path)
    assert any("stack" in event.get("text", "") or "pass" in event.get("text", "") for event in found.events)


def test_attention_in_float32_is_that_of_float64():
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 100, 16, dtype=torch.float64, generator=draws) for _ in range(3))
    found = []
    for dtype, device in ((torch.float32, "cuda"), (torch.float64, "cpu")):
        own = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        value = attention(*own)
        found.append([value, *torch.autograd.grad(value.square().sum(), own)])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains(prepared_folder, tmp_path):
    found = run(tiny(prepared_folder, "disease", training__dtype="bfloat16", **GPU), tmp_path)
    assert all(np.isfinite(line["loss"]) for line in found.lines if "loss" in line)
