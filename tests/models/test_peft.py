"""Adapter folders: peft's own loader puts them on the original backbone, and the model is the one that was trained."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_runs import Finished
from torch import nn

from raylora.federation import checkpoint
from raylora.federation.build import build_model
from raylora.federation.protocol import compose
from raylora.federation.rounds import receive
from raylora.federation.spec import protocol_of
from raylora.models import peft as ours
from raylora.models import zoo
from raylora.strategies import create

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PeftModel

RUNS = {
    "fedit": {"strategy": {"name": "fedit"}},
    "rate_my_lora": {"strategy": {"name": "rate_my_lora", "temperature": 0.5}, "training__rounds": 3},
    "med_duallora": {"strategy": {"name": "med_duallora", "local_rank": 2, "head": "private"}, "lora__rank": 2, "training__lr": 0.2},
    "feddpa": {"strategy": {"name": "feddpa", "mix": 0.3}},
    "mixed ranks": {"strategy": {"name": "flexlora"}, "lora__rank": [1, 2, 3, 1]},
    "last block": {"strategy": {"name": "fedit"}, "lora__blocks": 1},
}


def original(run: Finished) -> nn.Module:
    """The backbone as it was before anything was added."""
    spec = run.plan.spec.model
    network = zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, spec.seed)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in run.plan.weights.items()}, strict=False)
    return network.eval()


def by_peft(run: Finished, name: str) -> nn.Module:
    """The original backbone with the folder's head, and the folder's adapter put on it by `PeftModel.from_pretrained`."""
    folder = run.folder / "adapters" / name
    network = original(run)
    head = {key: torch.from_numpy(value) for key, value in load_file(folder / "head.safetensors").items()}
    assert not network.load_state_dict(head, strict=False).unexpected_keys
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft only warns of missing keys
        return PeftModel.from_pretrained(network, str(folder)).eval()


def by_us(run: Finished, name: str):
    """The same model as the run itself would use it, from its last checkpoint."""
    plan, strategy = run.plan, create(run.config.strategy.name, run.config.strategy.options, seed=run.config.seed, clients=4)
    (progress, _), _ = checkpoint.latest(run.folder / "checkpoints")
    progress, broadcasts = receive(progress, strategy, plan.clients, plan.weights)
    model, protocol = build_model(plan.spec.model, plan.weights), protocol_of(plan.spec)
    model.set_base(progress.base)
    client = next(c for c in plan.clients if c.id == name) if name != "global" else max(plan.clients, key=lambda c: c.rank)
    state = progress.states[name] if name != "global" else None
    model.load([compose(model.outline, protocol, client.id, client.rank, state, broadcasts[client.id].adapter)], [protocol.alpha])
    model.gate(strategy.gates if name != "global" else {})
    return model


def images(run: Finished) -> torch.Tensor:
    spec = run.plan.spec.model
    return torch.rand(2, zoo.CHANNELS[spec.task], *spec.image_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("case", RUNS)
def test_peft_opens_every_folder_and_gives_the_same_logits(runs, task, case):
    run = runs(task, **RUNS[case])
    x = images(run)
    with torch.no_grad():
        frozen = original(run)(x)
        for name in ("global", "Siemens"):
            expected = by_us(run, name)(x)
            torch.testing.assert_close(by_peft(run, name)(x), expected, rtol=1e-4, atol=1e-5)
            assert (expected - frozen).abs().max() > 1e-4, "nothing was learnt: the test shows nothing"


def test_the_hash_is_over_everything_in_the_folder(runs):
    for run in (runs(), runs("disease", strategy={"name": "fedavg_full"})):
        for name, expected in run.hashes.items():
            tensors = {}
            for file in (run.folder / "adapters" / name).glob("*.safetensors"):
                tensors |= load_file(file)
            assert tensors and ours.hash_of(tensors) == expected
    assert len(tensors) == len(run.plan.weights), "full fine-tuning: all trained weights"


def test_the_hash_sees_names_shapes_and_every_value():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(1, np.float32)}
    others = [
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"] + np.float32(1e-6)},
        {"c": tensors["a"], "b": tensors["b"]},
        {"a": tensors["a"]},
    ]
    assert len({ours.hash_of(value) for value in (tensors, *others)}) == 5
    assert ours.hash_of(tensors) == ours.hash_of({"b": tensors["b"].astype(np.float64), "a": tensors["a"].copy()})


def test_it_covers_what_was_folded_into_the_base(runs):
    """After three rounds of folding the pair that is left is fresh; what the files hold is the sum of the folds."""
    run = runs("disease", strategy={"name": "rate_my_lora", "temperature": 0.5}, training__rounds=3)
    (progress, _), _ = checkpoint.latest(run.folder / "checkpoints")
    assert progress.base_version == 3 and progress.folded
    tensors = load_file(run.folder / "adapters" / "global" / "adapter_model.safetensors")
    for name, base in progress.base.items():
        module = name.removesuffix(".weight")
        a, b = (tensors[f"{ours.PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        np.testing.assert_allclose(b @ a, base - run.plan.weights[name], atol=2e-6)
        assert np.abs(b @ a).max() > 1e-3


def test_one_pair_a_layer_of_unit_scale(runs):
    """Two adapters with gates and scalings, and a fold: their sum by numpy."""
    rng = np.random.default_rng(0)
    tree = {f"{p}m.lora_{s}": rng.normal(size=(r, 6) if s == "A" else (5, r)) for p, r in (("", 2), ("local.", 1)) for s in "AB"}
    folded = {f"m.lora_{s}": rng.normal(size=(2, 6) if s == "A" else (5, 2)) for s in "AB"}
    ((a, b),) = ours.combined(tree, folded, {"": 3.0, "local": 0.5}, {"local": 0.25}).values()
    dense = (
        3 * tree["m.lora_B"] @ tree["m.lora_A"]
        + 0.125 * tree["local.m.lora_B"] @ tree["local.m.lora_A"]
        + folded["m.lora_B"] @ folded["m.lora_A"]
    )
    np.testing.assert_allclose(b @ a, dense, rtol=1e-5, atol=1e-5)
    assert len(a) == 5 and a.dtype == b.dtype == np.float32


def test_the_configuration_says_what_peft_needs(runs):
    folder = runs(lora__rank=[1, 2, 3, 1], strategy={"name": "flexlora"}).folder / "adapters" / "global"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 and config["peft_type"] == "LORA" and len(config["target_modules"]) == 10
    assert config["rank_pattern"] == config["alpha_pattern"]
