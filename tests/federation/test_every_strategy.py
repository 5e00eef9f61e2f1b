"""Every registered strategy end to end with real training: both tasks, convolutions and linear layers, partial participation, mixed ranks;
and what it leaves behind is what was scored."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from small_runs import Finished, tiny

from raylora import planning
from raylora.core import lowrank
from raylora.core.errors import InputError
from raylora.federation.build import build_host
from raylora.models import zoo
from raylora.models.stacked import StackedModel
from raylora.strategies import STRATEGIES
from raylora.training.inference import evaluate

PARTIAL = {"sampling": {"kind": "uniform", "fraction": 0.5}, "training__rounds": 3, "training__local_steps": 2, "evaluation__every": 0}
"""Two of four clients a round: Philips and Siemens, GE and Philips, ..."""
MIXED = {"local", "fedavg_full", "flora", "hetlora", "flexlora", "sdflora", "rate_my_lora"}
RANKS = {"Canon": 1, "GE": 2, "Philips": 3, "Siemens": 4}


def partial(runs, name: str, task: str, **options) -> Finished:
    return runs(task, strategy={"name": name, **options}, **PARTIAL)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_ends_under_partial_participation(runs, name, task):
    run = partial(runs, name, task)
    cohort = 1 if name == "centralised" else 2
    assert run.summary["status"] == "finished" and len(run.lines) == 3 * (cohort + 1)
    primary = run.summary["final"][{"segmentation": "dice", "disease": "balanced_accuracy"}[task]]
    valued = [client for client, value in primary["per_client"].items() if value is not None]  # of disease, one that has both classes
    assert primary["n"] == sum(len(run.plan.splits[client]["test"]) for client in valued) > 0
    own = {"global"} if name == "centralised" else {"global", "Canon", "GE", "Philips", "Siemens"}
    assert run.hashes.keys() == own
    if name != "local":
        assert len({update.adapter and next(iter(update.adapter.values())).tobytes() for update in run.received}) > 1, "they train"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STRATEGIES, "fedalt without a router", "feddpa in stages"])
def test_an_adapter_folder_holds_everything_that_was_scored(runs, name):
    """The original network plus the product of the file's pairs plus the head gives the probabilities in cases.parquet."""
    variants = {"fedalt without a router": {"router": "none"}, "feddpa in stages": {"schedule": "F"}}
    run = partial(runs, name.split()[0], "disease", **variants.get(name, {}))
    rows = [row for row in pq.read_table(run.folder / "cases.parquet").to_pylist() if row["split"] == "test"]
    host = build_host(run.plan.spec, run.plan.weights)
    for model in run.hashes:
        folder = run.folder / "adapters" / model
        if name == "fedalt":  # a router mixes: no product
            kinds = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
            assert kinds == {"own/adapter_model.safetensors", "rest/adapter_model.safetensors", "router.safetensors", "head.safetensors"}
            assert json.loads((folder / "own" / "adapter_config.json").read_text())["peft_type"] == "LORA"
            continue
        home = "GE" if model == "global" else model
        merged = as_merged(run, folder)
        (rows_of_it,) = evaluate(merged, host.sites[home].shard.test, "disease", 4, 4, full=False)
        found = {row[0]: row[4] for row in rows_of_it if row[3] == "probability"}
        scored = {r["patient"]: r["value"] for r in rows if (r["model_of"], r["data_of"], r["metric"]) == (model, home, "probability")}
        assert found.keys() == scored.keys() and len(scored) > 0
        np.testing.assert_allclose([found[p] for p in scored], list(scored.values()), atol=2e-5)


def as_merged(run: Finished, folder) -> StackedModel:
    """The plain network with the folder's products added and its head in place."""
    m = run.plan.spec.model
    weights = dict(run.plan.weights)
    if (folder / "adapter_model.safetensors").exists():
        prefix, tensors = "base_model.model.", load_file(folder / "adapter_model.safetensors")
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                module = key.removeprefix(prefix).removesuffix(".lora_A.weight")
                weights[f"{module}.weight"] = weights[f"{module}.weight"] + tensors[f"{prefix}{module}.lora_B.weight"] @ a
    if (folder / "head.safetensors").exists():
        weights |= load_file(folder / "head.safetensors")
    model = StackedModel(zoo.build(m.name, m.task, m.size, m.image_size, m.sizes, m.seed), modules=())
    model.set_base(weights)
    model.load([{}], [1.0])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize("name", sorted(MIXED))
def test_ranks_by_client(runs, name, task):
    run = runs(task, strategy={"name": name}, lora__rank=RANKS, evaluation__every=0)
    for update in run.received:
        if lowrank.rank_of(update.adapter):
            assert lowrank.rank_of(update.adapter) == RANKS[update.client_id]
            assert update.scaling == pytest.approx(2.0 / RANKS[update.client_id])
    if name == "local":
        ranks = {c: load_file(run.folder / "adapters" / c / "adapter_model.safetensors") for c in RANKS}
        assert {c: next(len(v) for k, v in tree.items() if "lora_A" in k) for c, tree in ranks.items()} == RANKS
    one_model = {"fedavg_full": 1, "flora": 1, "rate_my_lora": 1, "flexlora": 4, "hetlora": 4}  # the largest rank's model is the global one
    assert len(set(run.hashes.values())) == one_model.get(name, 5)


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - MIXED - {"centralised"}))
def test_one_rank_is_asked_for_before_the_run(prepared_folder, name):
    with pytest.raises(InputError, match=rf"^strategy.name {name}: expected one lora.rank for all clients") as refused:
        planning.make_plan(tiny(prepared_folder, "disease", strategy={"name": name}, lora__rank=RANKS))
    assert "\n" not in str(refused.value)


def test_a_pruned_client_trains_and_reports_the_scaling_of_its_new_rank(runs):
    """HetLoRA whose penalty shrinks the tail: rank 4 becomes 2, and alpha / rank follows."""
    pruning = {"name": "hetlora", "gamma": 0.5, "lam": 0.3}
    run = runs("disease", strategy=pruning, lora__rank=4, training__rounds=4, training__optimiser="sgd")
    seen = [(lowrank.rank_of(u.adapter), u.scaling) for u in run.received if u.client_id == "GE"]
    assert seen == [(4, 0.5), (4, 0.5), (2, 1.0), (2, 1.0)]


def test_what_rolora_calls_global_is_what_everybody_has(runs):
    """Clients keep the factor that they hold already; a newcomer is sent both, and so is whoever scores the global model."""
    run = runs("disease", strategy={"name": "rolora"}, training__rounds=2)
    assert len(set(run.hashes.values())) == 1


def test_a_newcomer_to_fedalt_has_the_mean_of_all_clients(runs):
    run = runs("disease", strategy={"name": "fedalt", "router": "shared"})
    last = [update for update in run.received][-4:]
    rest = load_file(run.folder / "adapters" / "global" / "rest" / "adapter_model.safetensors")
    module = "blocks.0.attn.qkv"
    mean = sum(u.num_examples * u.adapter[f"{module}.lora_A"] for u in last) / sum(u.num_examples for u in last)
    np.testing.assert_allclose(rest[f"base_model.model.{module}.lora_A.weight"], mean, rtol=1e-5)
    routers = [load_file(run.folder / "adapters" / c / "router.safetensors") for c in ("GE", "Canon")]
    assert all(np.array_equal(routers[0][name], routers[1][name]) for name in routers[0]), "a shared router is averaged"
    private = runs("disease", strategy={"name": "fedalt"})
    routers = [load_file(private.folder / "adapters" / c / "router.safetensors") for c in ("GE", "Canon")]
    assert any(not np.array_equal(routers[0][name], routers[1][name]) for name in routers[0])
