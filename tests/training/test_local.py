"""The local loop against torch written out by hand, and stacked clients against the same clients alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import UNET, VIT
from torch import nn

from raylora.core.errors import RunError
from raylora.core.types import Phase
from raylora.models import zoo
from raylora.models.stacked import StackedModel, adapted_modules
from raylora.training.local import Job, train
from raylora.training.losses import dice_and_cross_entropy, weighted_cross_entropy
from raylora.training.settings import Settings

ALPHA = 4.0
EVERYTHING = (Phase(trains=("*",)),)
PLAIN_SGD = Settings(lr=0.1, rounds=10, batch_size=64, local_epochs=None, local_steps=1, optimiser="sgd")


class Net(nn.Module):
    """Rows of six numbers to two classes."""

    adapter_blocks = ("fc1", "fc2")
    adapter_targets = {"fc": r"fc\d"}
    default_targets = ("fc",)
    head_names = ("head.*",)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc2(self.fc1(x).tanh()).tanh())


class Rows:
    """Random samples that note which were asked for. `bad` is the call from which on the images hold NaN."""

    def __init__(self, count: int, seed: int, shape=(6,), target=(), classes: int = 2, bad: float = math.inf) -> None:
        rng = np.random.default_rng(seed)
        self.images = rng.normal(size=(count, *shape)).astype(np.float32)
        self.targets = rng.integers(0, classes, (count, *target))
        self.weights = rng.uniform(0.5, 1.5, count).astype(np.float32) if not target else np.ones(count, np.float32)
        self.asked: list[np.ndarray] = []
        self.bad = bad

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices, rng):
        self.asked.append(np.array(indices))
        images = self.images[indices] * np.float32(np.nan if len(self.asked) > self.bad else 1)
        return images, self.targets[indices], self.weights[indices]


def toy(adapters=None, **options) -> StackedModel:
    torch.manual_seed(0)
    net = Net().double()
    return StackedModel(net, modules=adapted_modules(net, None, "all"), plain=Net.head_names, adapters=adapters, **options)


def filled(model: StackedModel, seed: int, rank: int = 2) -> dict[str, np.ndarray]:
    """A tree without zeros: every factor has a gradient."""
    rng = np.random.default_rng(seed)
    return {name: 0.5 * rng.normal(size=value.shape) for name, value in model.outline.initial(rng, rng, rank).items()}


def job(model: StackedModel, client: str = "a", count: int = 10, seed: int = 1, rank: int = 2, **options) -> Job:
    return Job(client=client, samples=Rows(count, seed), tree=filled(model, seed, rank), alpha=ALPHA, **options)


def by_hand(model: StackedModel, one: Job, extra_loss=lambda values: 0.0) -> tuple[dict, dict]:
    """(leaves, gradients) of the loss over all of a client's samples, by torch alone."""
    values = {name: torch.from_numpy(np.array(value)).requires_grad_() for name, value in one.tree.items()}
    torch.manual_seed(0)
    net = Net().double()
    x = torch.from_numpy(one.samples.images).double()
    for path in ("fc1", "fc2"):
        layer = net.get_submodule(path)
        y = layer(x)
        for adapter in model.adapters:
            a, b = (values[f"{adapter}.{path}.lora_{s}" if adapter else f"{path}.lora_{s}"] for s in "AB")
            y = y + ALPHA / len(a) * x @ a.T @ b.T
        x = y.tanh()
    logits = x @ values["head.weight"].T + values["head.bias"]
    entropy = nn.functional.cross_entropy(logits, torch.from_numpy(one.samples.targets), reduction="none")
    loss = (entropy * torch.from_numpy(one.samples.weights)).mean() + extra_loss(values)
    return values, dict(zip(values, torch.autograd.grad(loss, values.values(), allow_unused=True), strict=True))


def same(found, expected, tolerance=1e-10) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def go(model, jobs, settings=PLAIN_SGD, phases=EVERYTHING, loss=weighted_cross_entropy, round=0):
    return train(model, jobs, phases, settings, loss, seed=7, round=round)


# ---- batches


def test_epochs_are_permutations_with_a_short_last_batch():
    one = job(toy())
    (result,) = go(toy(), [one], replace(PLAIN_SGD, local_epochs=2, local_steps=None, batch_size=4))
    asked = one.samples.asked
    assert [len(part) for part in asked] == [4, 4, 2, 4, 4, 2] and result.steps == 6
    first, second = np.concatenate(asked[:3]), np.concatenate(asked[3:])
    assert sorted(first) == sorted(second) == list(range(10)) and list(first) != list(second)


def test_steps_are_full_batches_through_permutation_after_permutation():
    one = job(toy())
    (result,) = go(toy(), [one], replace(PLAIN_SGD, local_steps=6, batch_size=4))
    asked = np.concatenate(one.samples.asked)
    assert [len(part) for part in one.samples.asked] == [4] * 6 and result.steps == 6
    assert sorted(asked[:10]) == sorted(asked[10:20]) == list(range(10))


def test_a_batch_larger_than_the_client_is_the_client():
    one = job(toy(), count=3)
    go(toy(), [one], replace(PLAIN_SGD, local_steps=2, batch_size=8))
    assert [sorted(part) for part in one.samples.asked] == [[0, 1, 2]] * 2


def test_batches_follow_from_seed_round_and_client_alone():
    def order(client="a", round=0, seed=7, company=()):
        model = toy()
        one = job(model, client)
        others = [job(model, name) for name in company]
        train(
            model,
            [*others, one],
            EVERYTHING,
            replace(PLAIN_SGD, local_steps=3, batch_size=2),
            weighted_cross_entropy,
            seed=seed,
            round=round,
        )
        return np.concatenate(one.samples.asked).tolist()

    assert order() == order() == order(company=("b", "c"))
    assert len({tuple(order(*args)) for args in (("a", 0, 7), ("b", 0, 7), ("a", 1, 7), ("a", 0, 8))}) == 4


# ---- one step, by hand


@pytest.mark.parametrize("adapters", [{"": None}, {"": None, "local": 3}])
def test_a_step_of_sgd_is_the_gradient_by_hand(adapters):
    model = toy(adapters)
    one = job(model)
    values, gradients = by_hand(model, one)
    (result,) = go(model, [one])
    same(result.tree, {name: (values[name] - 0.1 * gradients[name]).detach().numpy() for name in values})


def test_the_loss_reported_is_the_mean_over_the_steps():
    model = toy()
    one = job(model)
    before = go(model, [one], replace(PLAIN_SGD, lr=1e-30))[0].metrics["loss"]
    after = go(model, go_again(one, go(model, [one])), replace(PLAIN_SGD, lr=1e-30))[0].metrics["loss"]
    both = go(model, [one], replace(PLAIN_SGD, local_steps=2))[0].metrics["loss"]
    assert before != after and both == pytest.approx((before + after) / 2, rel=1e-12)


def go_again(one: Job, results) -> list[Job]:
    return [replace(one, tree=results[0].tree)]


@pytest.mark.parametrize(
    ("terms", "extra"),
    [
        ({"prox": 0.0}, {}),
        ({"control": 1.0}, {"c": {}, "c_k": {}}),
        ({"het_prune": 0.0}, {}),
        ({"het_prune": 9.0, "het_gamma": 0.1, "het_least": 2}, {}),
        ({"orthogonal": 0.0}, {}),
    ],
)
def test_a_term_of_nothing_changes_nothing(terms, extra):
    model = toy({"": None, "local": None})
    one = job(model, extra=extra)
    settings = replace(PLAIN_SGD, local_steps=3)
    expected = go(model, [one], settings)[0].tree
    same(go(model, [one], settings, (Phase(trains=("*",), terms=terms),))[0].tree, expected, tolerance=0)


def test_prox_pulls_back_to_what_was_received():
    """Two steps by hand: the first is free of the term, the second has mu (w - w_received)."""
    model, mu = toy(), 0.7
    one = job(model)
    middle = go(model, [one])[0].tree
    values, gradients = by_hand(model, replace(one, tree=middle))
    expected = {
        name: (values[name] - 0.1 * (gradients[name] + mu * (values[name] - torch.from_numpy(one.tree[name])))).detach().numpy()
        for name in values
    }
    (result,) = go(model, [one], replace(PLAIN_SGD, local_steps=2), (Phase(trains=("*",), terms={"prox": mu}),))
    same(result.tree, expected)


def test_control_adds_c_minus_c_k():
    model = toy()
    rng = np.random.default_rng(3)
    c, c_k = ({name: rng.normal(size=value.shape).astype(np.float32) for name, value in filled(model, 0).items()} for _ in range(2))
    one = job(model, extra={"c": c, "c_k": c_k})
    plain = go(model, [replace(one, extra={})])[0].tree
    (result,) = go(model, [one], phases=(Phase(trains=("*",), terms={"control": 1.0}),))
    same(result.tree, {name: plain[name] - 0.1 * (c[name] - c_k[name]).astype(float) for name in plain})


@pytest.mark.parametrize(
    ("terms", "loss"),
    [
        ({"orthogonal": 0.3}, lambda v: 0.3 * sum((v[f"{p}.lora_A"] @ v[f"local.{p}.lora_A"].T).square().sum() for p in ("fc1", "fc2"))),
        (
            {"het_prune": 0.3, "het_gamma": 0.5, "het_least": 1},  # rank 2: the second direction of each pair is to be pruned
            lambda v: (
                0.3
                * sum(v[f"{x}{p}.lora_B"][:, 1:].norm() * v[f"{x}{p}.lora_A"][1:].norm() for p in ("fc1", "fc2") for x in ("", "local."))
            ),
        ),
    ],
)
def test_penalties_are_their_formulas(terms, loss):
    model = toy({"": None, "local": None})
    one = job(model)
    values, gradients = by_hand(model, one, loss)
    (result,) = go(model, [one], phases=(Phase(trains=("*",), terms=terms),))
    same(result.tree, {name: (values[name] - 0.1 * gradients[name]).detach().numpy() for name in values})


def test_an_unknown_term_is_refused():
    with pytest.raises(ValueError, match="proxy"):
        go(toy(), [job(toy())], phases=(Phase(trains=("*",), terms={"proxy": 1.0}),))


def test_a_shared_and_a_private_pair_train_as_the_two_concatenated():
    """One client of Med-DualLoRA is centralised LoRA with A = [A_g; A_l], B = [B_g B_l] and the same scaling alpha / r: same start, same
    streams, AdamW (element by element), its state fresh each round."""
    settings = Settings(lr=0.02, rounds=3, batch_size=4, local_epochs=2)
    dual, single = toy({"": 2, "local": 2}), toy({"": 4})
    two = job(dual)

    def joined(tree):
        pairs = {
            f"{p}.lora_{s}": np.concatenate([tree[f"{a}{p}.lora_{s}"] for a in ("", "local.")], "AB".index(s))
            for p in ("fc1", "fc2")
            for s in "AB"
        }
        return pairs | {name: value for name, value in tree.items() if name.startswith("head")}

    one = replace(two, tree=joined(two.tree), alpha=2 * ALPHA)
    before = one.tree
    for round in range(3):
        two = replace(two, tree=go(dual, [two], settings, round=round)[0].tree)
        one = replace(one, tree=go(single, [one], settings, round=round)[0].tree)
    same(one.tree, joined(two.tree), tolerance=1e-6)
    assert all(np.abs(one.tree[name] - before[name]).max() > 0.01 for name in before)


# ---- phases, rates, faults


def test_phases_share_the_steps_and_train_their_own_names():
    model = toy({"": None, "local": None})
    one = job(model)
    own, common = Phase(trains=("local.*",), share=0.75), Phase(trains=("*", "!local.*"), share=0.25)
    result = go(model, [one], replace(PLAIN_SGD, local_steps=4), (own, common))[0]
    step = go(model, [one], replace(PLAIN_SGD, local_steps=3), (replace(own, share=1.0),))
    expected = go(model, go_again(one, step), PLAIN_SGD, (replace(common, share=1.0),))[0].tree
    same(result.tree, expected)
    assert result.steps == 4 and len(one.samples.asked) == 8
    np.testing.assert_array_equal(step[0].tree["head.weight"], one.tree["head.weight"])


def test_what_is_not_trained_stays_to_the_bit():
    model = toy({"": None, "local": None})
    one = job(model)
    before = {name: value.copy() for name, value in one.tree.items()}
    tree = go(model, [one], phases=(Phase(trains=("local.*", "!*.lora_A")),))[0].tree
    changed = {name for name in tree if not np.array_equal(tree[name], before[name])}
    assert changed == {"local.fc1.lora_B", "local.fc2.lora_B"}
    same(one.tree, before, tolerance=0)


def test_the_cosine_goes_from_the_rate_towards_zero_over_the_rounds():
    settings = replace(PLAIN_SGD, schedule="cosine", lr=0.2, rounds=10)
    assert [settings.rate(t) for t in (0, 5)] == pytest.approx([0.2, 0.1]) and 0 < settings.rate(9) < 0.006
    assert replace(settings, schedule="constant").rate(9) == 0.2
    model = toy()
    one = job(model)
    half = go(model, [one], replace(settings, lr=0.2), round=5)[0].tree
    same(half, go(model, [one], replace(PLAIN_SGD, lr=0.1), round=5)[0].tree)


def test_the_first_loss_that_is_not_finite_ends_the_run_with_round_client_and_step():
    model = toy()
    jobs = [job(model, "a"), replace(job(model, "b"), samples=Rows(10, 1, bad=2))]
    with pytest.raises(RunError, match=r"^round 4, client b, step 3: the loss is nan"):
        go(model, jobs, replace(PLAIN_SGD, local_steps=5), round=3)


# ---- K clients wide


def unet() -> StackedModel:
    net = zoo.build("unet", "segmentation", "small", (8, 8, 2), UNET).double()
    return StackedModel(net, modules=adapted_modules(net, None, "all"), plain=net.head_names, adapters={"": None, "local": 2})


def vit() -> StackedModel:
    net = zoo.build("vit", "disease", "small", (8, 8, 2), {**VIT, "patch": [4, 4, 1]}).double()
    return StackedModel(net, modules=adapted_modules(net, None, 1), plain=net.head_names, adapters={"": None, "local": 2})


CASES = {
    "toy": (lambda: toy({"": None, "local": 3}), lambda n, seed: Rows(n, seed), weighted_cross_entropy),
    "dropout": (lambda: toy(dropout=0.4), lambda n, seed: Rows(n, seed), weighted_cross_entropy),
    "unet": (unet, lambda n, seed: Rows(n, seed, (1, 8, 8, 2), (8, 8, 2), 4), dice_and_cross_entropy),
    "vit": (vit, lambda n, seed: Rows(n, seed, (2, 8, 8, 2)), weighted_cross_entropy),
}


@pytest.mark.parametrize("clients", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_stacked_clients_are_the_separate_ones(case, clients):
    """Unequal sizes, ranks, steps and partial batches; AdamW with decay and a clip that acts; two phases, one with a prox term."""
    build, samples, loss = CASES[case]
    model = build()
    settings = Settings(lr=0.02, rounds=4, batch_size=3, local_epochs=2, weight_decay=0.1, clip=0.3, schedule="cosine")
    jobs = [
        Job(client=name, samples=samples(count, k), tree=filled(model, k, rank), alpha=ALPHA)
        for k, (name, count, rank) in enumerate([("a", 4, 1), ("b", 7, 3), ("c", 3, 2)][:clients])
    ]
    phases = (Phase(trains=("*",), share=0.6, terms={"prox": 0.5}), Phase(trains=("*", "!*.lora_A"), share=0.4))
    alone = [go(build(), [one], settings, phases, loss, round=2)[0] for one in jobs]
    together = go(model, jobs, settings, phases, loss, round=2)
    for one, other in zip(together, alone, strict=True):
        same(one.tree, other.tree, tolerance=1e-9)
        assert one.steps == other.steps and one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-9)
