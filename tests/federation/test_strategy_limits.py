"""Limits of the strategies with real training: the conditions under which one method is another one."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import Finished

from raylora.core import lowrank

SGD = {"training__optimiser": "sgd", "training__lr": 0.5, "training__local_steps": 1}
UNIFORM = {"name": "fedit", "weights": "uniform"}


def server(run: Finished) -> dict[str, np.ndarray]:
    """The global adapter at the end, by its own names; B with its scaling."""
    tensors = load_file(run.folder / "adapters" / "global" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").removesuffix(".weight"): value.astype(np.float64) for name, value in tensors.items()}


def assert_close(run: Finished, other: Finished, tolerance: float = 2e-5) -> None:
    """Equal up to rounding, on the scale of what training moved."""
    one, two = server(run), server(other)
    moved = max(float(np.abs(value).max()) for name, value in two.items() if name.endswith("lora_B"))
    assert one.keys() == two.keys() and moved > 1e-4
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=tolerance * moved, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("task", ["segmentation", "disease"])
@pytest.mark.parametrize(
    ("strategy", "limit"),
    [
        ({"name": "fedprox", "mu": 0.0}, {}),
        ({"name": "fedavgm", "b1": 0.0, "server_lr": 1.0}, {}),
        ({"name": "fedit", "reduce": {"name": "trimmed_mean", "trim": 0.2}}, {}),  # of four clients none is trimmed
        ({"name": "feddpa", "schedule": "F", "stage_rounds": 2, "a": 1.0, "mix": 1.0}, {}),  # the first stage is the global adapter alone
        ({"name": "rolora", "period": 99}, {"strategy": {"name": "ffa_lora"}}),  # never turns
    ],
    ids=lambda value: value.get("name"),
)
def test_bit_for_bit(runs, task, strategy, limit):
    one, two = runs(task, strategy=strategy), runs(task, **limit)
    assert one.hashes["global"] == two.hashes["global"]


def test_the_conditions_matter(runs):
    plain = runs("disease").hashes["global"]
    for strategy in (
        {"name": "fedprox", "mu": 10.0},
        {"name": "fedavgm"},
        {"name": "fedit", "reduce": {"name": "trimmed_mean", "trim": 0.25}},
        {"name": "feddpa", "schedule": "F", "stage_rounds": 1},
    ):
        assert runs("disease", strategy=strategy).hashes["global"] != plain, strategy
    assert runs("disease", strategy={"name": "rolora"}).hashes != runs("disease", strategy={"name": "ffa_lora"}).hashes


def test_one_client_of_hetlora_is_fedit(runs):
    """No pruning, and one client's share of the norms is 1."""
    alone = {"clients": {"by": "iid", "count": 1}}
    assert_close(runs(**alone, strategy={"name": "hetlora"}), runs(**alone))


def test_hetlora_is_the_mean_by_norms_and_fedit_only_where_these_are_equal(runs):
    run = runs("disease", strategy={"name": "hetlora"}, training__rounds=1)
    updates = sorted(run.received, key=lambda update: update.client_id)
    for module in lowrank.pairs(updates[0].adapter):
        pairs = [lowrank.pairs(update.adapter)[module] for update in updates]
        norms = [lowrank.norm(pair) for pair in pairs]
        for side, name in enumerate(("lora_A", "lora_B")):
            by_hand = sum(w * pair[side] for w, pair in zip(norms, pairs, strict=True)) / sum(norms) * (updates[0].scaling if side else 1.0)
            np.testing.assert_allclose(server(run)[f"{module}.{name}"], by_hand, rtol=1e-4, atol=1e-7)


def test_scaffold_from_zero_variates_is_fedavg(runs):
    """SGD, one local step, everybody, equal weights, rate 1: the variates cancel in every round, not only in the first."""
    options = {**SGD, "training__rounds": 3}
    assert_close(
        runs("disease", strategy={"name": "scaffold", "weights": "uniform"}, **options), runs("disease", strategy=UNIFORM, **options)
    )
    more = {**options, "training__local_steps": 3}
    drifted = server(runs("disease", strategy={"name": "scaffold", "weights": "uniform"}, **more))
    plain = server(runs("disease", strategy=UNIFORM, **more))
    assert any(np.abs(drifted[name] - plain[name]).max() > 1e-4 for name in plain), "with more steps they correct the drift"


def test_feddpa_at_a_1_trains_the_global_adapter_as_fedit_does(runs):
    """Schedule T, equal weights: half of the steps go to the private adapter, the other half is FedIT's round (batches of all cases)."""
    whole = {"training__batch_size": 100, "training__optimiser": "sgd", "training__lr": 0.3}
    dual = runs("disease", strategy={"name": "feddpa", "a": 1.0, "weights": "uniform"}, **whole, training__local_steps=4)
    assert_close(dual, runs("disease", strategy=UNIFORM, **whole, training__local_steps=2), 1e-3)


def test_fedalt_without_the_others_and_without_a_router_is_local_training(runs):
    """In round 0 nobody has sent anything: what a client trains is what it would train alone from the same start."""
    alt, fedit = (runs("disease", strategy={"name": name, **more}) for name, more in (("fedalt", {"router": "none"}), ("fedit", {})))
    for one, two in zip(alt.received[:4], fedit.received[:4], strict=True):
        assert one.client_id == two.client_id and {n: v.tobytes() for n, v in one.adapter.items()} == {
            n: v.tobytes() for n, v in two.adapter.items()
        }
    routed = runs("disease", strategy={"name": "fedalt"})
    assert any(
        not np.array_equal(one.adapter[name], two.adapter[name])
        for one, two in zip(routed.received[:4], fedit.received[:4], strict=True)
        for name in two.adapter
    )


def test_lora_fair_becomes_fedit_as_lambda_grows(runs):
    assert_close(runs("disease", strategy={"name": "lora_fair", "lam": 1e6}), runs("disease"))


@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_privacy_without_noise_and_with_a_huge_clip_is_the_mean(runs, task):
    """Equal weights, everybody: (1 / K) sum_k u_k."""
    private = runs(task, privacy={"clip": 1e9, "sigma": 0.0})
    assert_close(private, runs(task, strategy=UNIFORM))
    assert private.summary["epsilon"] is None, "infinite"


@pytest.mark.parametrize("scheme", [{"kind": "top_k", "share": 1.0}, {"kind": "quantise", "bits": 16}], ids=lambda s: s["kind"])
@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_compression_at_full_precision_changes_nothing(runs, task, scheme):
    steps = {
        "training__optimiser": "sgd",
        "training__lr": 1.0 if task == "disease" else 0.1,
    }  # AdamW's first steps are the signs of gradients: rounding would show
    tolerance = 2e-5 if scheme["kind"] == "top_k" else 2e-3
    assert_close(runs(task, compress=scheme, **steps), runs(task, **steps), tolerance)


def test_every_reduction_of_identical_clients_is_that_client(runs):
    """One client, whatever the reduction."""
    alone = {"clients": {"by": "iid", "count": 1}, "strategy": {"name": "fedit"}}
    for reduce in ("median", {"name": "trimmed_mean", "trim": 0.3}, "geometric_median"):
        assert_close(runs("disease", **{**alone, "strategy": {"name": "fedit", "reduce": reduce}}), runs("disease", **alone))


def test_flora_of_one_client_is_its_product(runs):
    run = runs("disease", clients={"by": "iid", "count": 1}, strategy={"name": "flora"}, training__rounds=1)
    (update,) = run.received
    folder = run.folder / "adapters" / "global" / "adapter_model.safetensors"
    tensors = load_file(folder)
    for module, pair in lowrank.pairs(update.adapter).items():
        held = tensors[f"base_model.model.{module}.lora_B.weight"] @ tensors[f"base_model.model.{module}.lora_A.weight"]
        np.testing.assert_allclose(held, update.scaling * lowrank.product(pair), atol=1e-7)
