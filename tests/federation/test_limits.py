"""Every method's limits: where its equations become another method's, so do its numbers."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import Finished

from raylora.core import lowrank
from raylora.federation import checkpoint

RULES = ("drop", "trend", "softmax", "peer", "shuffled")


@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_med_duallora_without_a_local_adapter_is_fedit(runs, task):
    dual = runs(task, strategy={"name": "med_duallora", "local_rank": 0})
    fedit = runs(task)
    assert dual.hashes == fedit.hashes
    assert (dual.folder / "cases.parquet").read_bytes() == (fedit.folder / "cases.parquet").read_bytes()


@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_med_duallora_without_a_global_adapter_and_with_a_private_head_is_local(runs, task):
    dual = runs(task, strategy={"name": "med_duallora", "global_rank": 0, "head": "private"})
    local = runs(task, strategy={"name": "local"})
    assert dual.hashes == local.hashes and len(set(local.hashes.values())) == 5
    assert local.summary["bytes_down"] == 0


def test_fedit_with_one_client_is_centralised_on_its_data(runs):
    alone = {"clients": {"by": "iid", "count": 1}}
    fedit, pooled = runs(**alone), runs(**alone, strategy={"name": "centralised"})
    assert fedit.hashes["global"] == pooled.hashes["global"]
    assert fedit.summary["final"] == pooled.summary["final"]


def test_centralised_trains_on_everybody_s_training_patients(runs):
    pooled = runs(strategy={"name": "centralised"})
    (client,) = pooled.plan.clients
    (site,) = [site for site in pooled.plan.spec.sites if site.training]
    assert site.id == client.id and client.num_examples == 16
    assert sorted(site.training) == sorted(i for split in pooled.plan.splits.values() for i in split["train"])
    assert pooled.summary["clients"] == ["Canon", "GE", "Philips", "Siemens"]


@pytest.mark.parametrize("rule", RULES)
def test_an_infinite_temperature_is_the_size_weighted_mean_of_products(runs, rule):
    run = runs("disease", strategy={"name": "rate_my_lora", "rule": rule, "temperature": "inf"})
    assert run.hashes == runs("disease", strategy={"name": "flora"}).hashes  # whose products are that mean by construction
    folded = first_fold(run)
    updates = [u for u in run.received if u.adapter][:4]
    total = sum(u.num_examples for u in updates)
    for module, pair in folded.items():
        products = [u.num_examples / total * u.scaling * lowrank.product(lowrank.pairs(u.adapter)[module]) for u in updates]
        np.testing.assert_allclose(lowrank.product(pair), sum(products), rtol=1e-5, atol=1e-9)
    assert {line["client"]: 1.0 for line in run.lines if line["kind"] == "client"} == run.lines[-1]["weights"]


def test_a_finite_temperature_is_another_result(runs):
    hashes = {
        runs("disease", strategy={"name": "rate_my_lora", "rule": rule, "temperature": 0.01}).hashes["global"]
        for rule in ("softmax", "peer")
    }
    assert len(hashes | {runs("disease", strategy={"name": "flora"}).hashes["global"]}) == 3


def first_fold(run: Finished) -> dict[str, lowrank.Pair]:
    """{module: pair} that the clients were told to fold before the second round."""
    return lowrank.pairs(next(b.base_delta for _, b in run.sent if b.base_version == 1))


def test_after_a_round_of_med_duallora_global_factors_are_everybody_s_and_local_ones_nobody_else_s(runs):
    run = runs("disease", strategy={"name": "med_duallora"})
    (progress, _), _ = checkpoint.latest(run.folder / "checkpoints")
    private = [state.trees["private"] for state in progress.states.values()]
    assert len(private) == 4
    for name in private[0]:
        assert name.startswith("local."), "only the private adapter stays at a client"
        assert len({tree[name].tobytes() for tree in private}) == 4, name
    for t in range(2):
        sent = [b.adapter for _, b in run.sent if b.task.round == t]
        assert len(sent) == 4 and all(
            {n: v.tobytes() for n, v in tree.items()} == {n: v.tobytes() for n, v in sent[0].items()} for tree in sent
        )
    heads = [load_file(run.folder / "adapters" / c / "head.safetensors") for c in ("GE", "Canon")]
    np.testing.assert_array_equal(heads[0]["classification_head.weight"], heads[1]["classification_head.weight"])


def test_private_heads_differ_and_local_adapters_are_never_reset(runs):
    run = runs("disease", strategy={"name": "med_duallora", "head": "private"}, training__rounds=3)
    heads = [
        load_file(run.folder / "adapters" / c / "head.safetensors")["classification_head.weight"].tobytes() for c in run.summary["clients"]
    ]
    assert len(set(heads)) == 4
    (early, _), (late, _) = (checkpoint.load(path) for path in sorted((run.folder / "checkpoints").glob("round_*")))
    name = "local.blocks.0.attn.qkv.lora_B"
    step = late.states["GE"].trees["private"][name] - early.states["GE"].trees["private"][name]
    assert 0 < np.linalg.norm(step) < np.linalg.norm(late.states["GE"].trees["private"][name]) * 1.5
