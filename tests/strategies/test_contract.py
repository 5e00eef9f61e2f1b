"""The contract matrix over the whole registry, and each of its properties seen to fail on a strategy that breaks it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from raylora.core import lowrank
from raylora.core import tree as trees
from raylora.core.types import Broadcast, Phase, State, Strategy, Task
from raylora.strategies import STRATEGIES, check, create
from raylora.strategies.contract import PROPERTIES
from raylora.strategies.fedit import fedit

VARIANTS: list[tuple[str, dict[str, object]]] = [
    *[(name, {"weights": "uniform"}) for name in ("fedit", "flora", "flexlora", "fedex_lora", "med_duallora", "feddpa")],
    *[(name, {"head": "private"}) for name in STRATEGIES if name not in ("local", "centralised", "fedavg_full", "scaffold")],
    *[("rate_my_lora", {"rule": rule}) for rule in ("trend", "softmax", "peer", "shuffled")],
    *[("rate_my_lora", {"rule": rule, "temperature": float("inf")}) for rule in ("drop", "peer")],
    *[("med_duallora", {"mode": mode}) for mode in ("alternating", "staged")],
    ("med_duallora", {"local_rank": 0}),
    ("med_duallora", {"global_rank": 0, "head": "private"}),
    ("med_duallora", {"local_rank": 3}),
    ("fedsa_lora", {"share": "B"}),
    ("rolora", {"first": "A", "period": 2}),
    ("feddpa", {"schedule": "F"}),
    ("fedalt", {"router": "none"}),
    ("fedalt", {"router": "shared"}),
    ("hetlora", {"gamma": 0.5, "lam": 0.1}),
    ("fedex_lora", {"residual_rank": 1}),
]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_registry_keeps_to_the_contract(name: str) -> None:
    assert check(STRATEGIES[name]) == []


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_option_keeps_to_the_contract(name: str, options: dict[str, object]) -> None:
    uniform = options.get("weights") == "uniform"  # the two properties below are about sizes
    failed = check(lambda: create(name, options))
    assert [line for line in failed if not (uniform and line.startswith(("product", "zero weight")))] == []
    assert not uniform or any(line.startswith("zero weight") for line in failed)


@pytest.mark.parametrize("name", [name for name, factory in STRATEGIES.items() if factory().exempt])
def test_no_exemption_is_stale(name: str) -> None:
    """A property that a strategy is exempt from does fail on it."""
    failed = check(lambda: replace(STRATEGIES[name](), exempt={}))
    assert [line.split(":")[0] for line in failed] == list(STRATEGIES[name]().exempt)


def test_claims_of_the_papers() -> None:
    """Issue by issue, who is exact and who is not: the matrix holds each to its claim, this holds the claims to the papers."""
    claims = {name: factory().product for name, factory in STRATEGIES.items()}
    assert {name for name, claim in claims.items() if claim == "exact"} == {"flora", "fedex_lora", "ffa_lora", "rolora"}
    assert {name for name, claim in claims.items() if claim == "best"} == {"flexlora", "sdflora"}
    assert {"fedit", "hetlora", "lora_fair"} <= {name for name, claim in claims.items() if claim == "inexact"}
    assert create("rate_my_lora", {"temperature": float("inf")}).product == "exact"


def test_it_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    script = (
        "import json, sys\n"
        "from raylora.strategies import STRATEGIES, check\n"
        "failed = [check(STRATEGIES[name]) for name in ('flexlora', 'fedalt', 'rate_my_lora')]  # an SVD, a router, a fold\n"
        "heavy = {'torch', 'ray', 'monai', 'mlflow', 'pandas', 'scipy', 'sklearn', 'dp_accounting'} & set(sys.modules)\n"
        "print(json.dumps([sum(failed, []), sorted(heavy)]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    assert json.loads(result.stdout) == [[], []]


# --- strategies that break one property each ------------------------------------------------------------------------------------------


def good() -> Strategy:
    return fedit()


def breaking(**changed: Callable[..., object]) -> Callable[[], Strategy]:
    """FedIT with some of its functions wrapped: each gets the original and its arguments."""

    def factory() -> Strategy:
        strategy = good()
        return replace(strategy, **{key: partial(change, getattr(strategy, key)) for key, change in changed.items()})

    return factory


def scaled_twice(old, state, updates):
    return old(state, [replace(u, adapter=trees.freeze({n: 2 * x for n, x in u.adapter.items()})) for u in updates])


def in_order_of_arrival(old, state, updates):
    total = np.float32(0)
    for update in updates:  # float32, unsorted
        total = total + np.float32(update.num_examples / 3) * update.adapter["head.weight"].astype(np.float32)
    after = old(state, updates)
    return replace(after, trees={"adapter": {**after.trees["adapter"], "head.weight": total}})


def counting_calls(calls=[]):  # noqa: B006  hidden state is the point
    def aggregate(old, state, updates):
        calls.append(1)
        after = old(state, updates)
        return replace(after, values={**after.values, "calls": len(calls)})

    return aggregate


def in_place(old, state, updates):
    for update in updates:
        for array in update.adapter.values():
            if array.flags.writeable:
                array += 1
    return old(state, updates)


def dead_rows(old, state, client):
    sent = old(state, client)
    dead = {n: x * ([[1], [0]] if n.endswith("A") else [[1, 0]] if n.endswith("B") else 1) for n, x in sent.adapter.items()}
    return replace(sent, adapter=trees.freeze(dead))


def everything_uploaded() -> Strategy:
    everything = Task(round=0, phases=(Phase(trains=("*",)),), uploads=("*",))

    def broadcast(state: State, client: object) -> Broadcast:
        return Broadcast(adapter=state.trees["adapter"], task=replace(everything, round=state.round))

    def aggregate(state, updates):
        first = min(updates, key=lambda u: u.client_id)
        return State(trees={"adapter": first.adapter}, values={"round": state.round + 1})

    return Strategy(
        init=lambda tree: State(trees={"adapter": trees.freeze(tree)}, values={"round": 0}),
        broadcast=broadcast,
        aggregate=aggregate,
        adapters={"": None, "local": None},
        mixed_ranks=False,
    )


def integer_keys(old, state, updates):
    after = old(state, updates)
    return replace(after, values={**after.values, "sizes": {k: u.num_examples for k, u in enumerate(updates)}})


def uniform() -> Strategy:
    return fedit(weights="uniform")


def raw_sizes(old, state, updates):
    after = old(state, updates)
    total = sum(u.num_examples for u in updates)
    return replace(after, trees={"adapter": trees.freeze({n: x * total / 6 for n, x in after.trees["adapter"].items()})})


def forgetting_the_head(old, state, client):
    sent = old(state, client)
    return replace(sent, adapter={n: x for n, x in sent.adapter.items() if not n.startswith("head")})


def stale_for_newcomers(old, state, client):
    sent = old(state, client)
    return sent if client.id in ("a", "b") else replace(sent, adapter=trees.zeros(sent.adapter))


BROKEN: dict[str, tuple[Callable[[], Strategy], str]] = {
    "own product": (breaking(aggregate=scaled_twice), "changed by"),
    "product": (lambda: replace(good(), product="exact"), "away from sum p_k"),
    "order": (breaking(aggregate=in_order_of_arrival), "depends on the order"),
    "repeatable": (breaking(aggregate=counting_calls()), "twice give different states"),
    "untouched": (breaking(aggregate=in_place), "changed an update"),
    "alive": (breaking(broadcast=dead_rows), "has a dead direction"),
    "private": (everything_uploaded, "the server sends local."),
    "reload": (breaking(aggregate=integer_keys), "do not survive JSON"),
    "zero weight": (uniform, "moved by a client without patients"),
    "scale-free": (breaking(aggregate=raw_sizes), "every size was multiplied"),
    "names": (breaking(broadcast=forgetting_the_head), "did not come back"),
    "late client": (breaking(broadcast=stale_for_newcomers), "is stale by"),
    "mixed ranks": (lambda: replace(good(), mixed_ranks=True), "ranks 1, 2, 4 are refused"),
}


def test_the_strategy_they_are_made_from_is_whole() -> None:
    assert check(good) == [] and check(breaking()) == []


@pytest.mark.parametrize("key", PROPERTIES)
def test_each_property_is_seen_to_fail(key: str) -> None:
    factory, words = BROKEN[key]
    (failed,) = [line for line in check(factory) if line.startswith(f"{key}: ")]
    assert words in failed


@pytest.mark.parametrize(
    ("claim", "words"), [("best", "at its best rank"), ("inexact", "declared inexact"), ("perfect", "expected a claim of exact")]
)
def test_false_claims_about_products(claim: str, words: str) -> None:
    name = "flora" if claim != "best" else "fedit"
    assert any(words in line for line in check(lambda: replace(STRATEGIES[name](), product=claim)))


def test_exemptions_need_a_property_and_a_reason() -> None:
    failed = check(lambda: replace(good(), exempt={"speed": "slow", "order": ""}))
    assert failed == ["speed: exempt, but no such property", "order: exempt, but without a reason"]


def test_an_exception_is_a_sentence_too() -> None:
    def crash(old, state, updates):
        raise KeyError("momentum")

    assert "order: raised KeyError: 'momentum'" in check(breaking(aggregate=crash))


def test_best_rank_is_checked_against_the_dense_matrix() -> None:
    """FlexLoRA with the singular values in the wrong order is caught."""

    def shuffled(old, state, updates):
        after = old(state, updates)
        pairs = lowrank.pairs(after.trees["adapter"])
        turned = {module: (a[::-1], b) for module, (a, b) in pairs.items()}
        return replace(after, trees={**after.trees, "adapter": trees.freeze(lowrank.named(turned))})

    flexlora = STRATEGIES["flexlora"]()
    broken = replace(flexlora, aggregate=lambda state, updates: shuffled(flexlora.aggregate, state, updates))
    assert any(line.startswith("product:") for line in check(lambda: broken))
