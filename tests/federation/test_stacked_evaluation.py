"""Several models on the same patients in one pass, and every model on its own: the numbers are those of one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import tiny

from raylora import planning
from raylora.core.errors import RunError
from raylora.core.types import Task
from raylora.federation.answers import Scored
from raylora.federation.build import build_host
from raylora.federation.host import Host
from raylora.federation.protocol import initial_tree
from raylora.models.stacked import StackedModel
from raylora.training.inference import rating_scores

CLIENTS = ("Canon", "GE", "Philips", "Siemens")


@pytest.fixture(scope="module", params=["segmentation", "disease"])
def host(request, prepared_folder) -> Host:
    options = {"training__dtype": "float64", "lora__blocks": 1, "evaluation__batch_size": 3, "strategy": {"name": "med_duallora"}}
    plan = planning.make_plan(tiny(prepared_folder, request.param, **options))
    return build_host(plan.spec, plan.weights)


def trees(host: Host, count: int = 5, rank: int | None = None):
    """Random models; the second has another rank."""
    found = []
    for k in range(count):
        host.protocol = replace(host.protocol, max_rank=2)
        rng = np.random.default_rng(k)
        first = initial_tree(host.model.outline, host.protocol, "GE", rank or (2 if k == 1 else 1))
        found.append({name: value + rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in first.items()})
    return found


def rows(host: Host, requests, stack: int, split: str = "test", clients=None):
    return sorted(host.evaluate(requests, split, full=False, stack=stack, clients=clients))


def test_a_cross_client_matrix_in_passes_of_several_models(host):
    every = [Scored(model_of=f"m{k}", tree=tree, data_of=CLIENTS) for k, tree in enumerate(trees(host))]
    every[3] = replace(every[3], gates={"local": 0.5})
    every += [Scored(model_of="own", tree=every[0].tree, data_of=("GE",))]
    one = rows(host, every, 1)
    assert len({row[6] for row in one if row[5] in ("dice", "probability")}) > 20, "the models differ"
    for stack in (2, 3, 9):
        found = rows(host, every, stack)
        assert [row[:6] for row in found] == [row[:6] for row in one]
        np.testing.assert_allclose([row[6] for row in found], [row[6] for row in one], atol=1e-9)


def test_whose_patients_are_looked_at_changes_no_bit(host):
    """Which models share a pass follows from the requests: two processes with half of the patients each find the same."""
    every = [Scored(model_of=f"m{k}", tree=tree, data_of=CLIENTS) for k, tree in enumerate(trees(host))]
    apart = [row for half in (CLIENTS[:2], CLIENTS[2:]) for row in rows(host, every, 2, clients=half)]
    assert sorted(apart) == rows(host, every, 2)


def test_the_common_part_of_a_pass_is_computed_once(host, monkeypatch):
    seen = []
    block = host.model.backbone.get_submodule(next(iter(host.model.layers)).rpartition(".")[0])
    block.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    monkeypatch.setattr(host.model, "prefix", None)
    first = host.model.backbone.stages()[0]
    before = []
    network = type(host.model.backbone)
    stages = network.stages

    def counted(self):
        found = stages(self)

        def run(tensors):
            before.append(len(tensors[0]))
            return first.run(tensors)

        return [replace(found[0], run=run), *found[1:]]

    monkeypatch.setattr(network, "stages", counted)
    host.model.load(trees(host, 3, rank=1), [2.0] * 3)
    channels = 1 if host.protocol.task == "segmentation" else 2
    host.model.compared(torch.rand(2, channels, 16, 16, 4, dtype=torch.float64))
    assert before == [2] and set(seen) == {6}


def test_each_model_on_its_own_patients(host):
    """Rating scores of clients that share a pass, with different numbers of cases."""
    cases = [host.sites["GE"].shard.rating, host.sites["Philips"].shard.test, host.sites["Siemens"].shard.test[:2]]
    assert len({len(own) for own in cases}) > 1
    models, p = trees(host, 3, rank=1), host.protocol
    alone = []
    for tree, own in zip(models, cases, strict=True):
        host.model.load([tree], [p.alpha])
        alone += rating_scores(host.model, [own], p.task, p.depth, p.eval_batch)
    host.model.load(models, [p.alpha] * 3)
    assert rating_scores(host.model, cases, p.task, p.depth, p.eval_batch) == pytest.approx(alone, abs=1e-9)


def test_a_stack_is_scored_in_one_pass(host, monkeypatch):
    from raylora.core.types import Broadcast

    passes = []
    call = StackedModel.__call__
    monkeypatch.setattr(StackedModel, "__call__", lambda self, *tensors: passes.append(self.clients) or call(self, *tensors))
    told = [Broadcast(adapter={}, task=Task(round=0, scores=("received",)))] * 4
    found = host.train(CLIENTS, told)
    assert passes and set(passes) == {4} and all(0 <= outcome.update.metrics["score_received"] <= 1 for outcome in found)


def test_what_is_not_a_number_is_no_prediction(host, monkeypatch):
    """Of NaN everybody would be called normal, and every voxel background: a run that has diverged would finish with a score."""
    whole = StackedModel.compared
    monkeypatch.setattr(StackedModel, "compared", lambda self, *images: whole(self, *images) * float("nan"))
    with pytest.raises(RunError, match=r"predictions are not finite numbers .*; try a smaller training.lr"):
        rows(host, [Scored(model_of="m", tree=trees(host, 1)[0], data_of=("GE",))], 1)
