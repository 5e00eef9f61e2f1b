"""Where every method goes on a federated problem whose solution is known."""

import numpy as np
import pytest
from linear_problem import (
    SITES,
    Descent,
    distance,
    initial,
    loss,
    model,
    pooled_gradient,
    pooled_optimum,
    run,
    server_model,
    sites_of,
)

from raylora.core import lowrank
from raylora.core.types import Client
from raylora.strategies import create, toy

INF = float("inf")


@pytest.mark.parametrize(("name", "options"), [("flora", {}), ("rate_my_lora", {"temperature": INF}), ("fedavg_full", {})])
def test_folding_reaches_the_pooled_optimum_at_any_rank(name: str, options: dict[str, object]) -> None:
    """One local step: B = 0 moves, A does not, so a round is a gradient step in the rows of a fresh A; no rank bounds the sum."""
    game = run(create(name, options), 300, Descent(rate=0.3), sites_of(2))
    assert distance(server_model(game, sites_of(2)), pooled_optimum()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedex_lora", "flexlora"])
def test_full_rank_reaches_the_pooled_optimum(name: str) -> None:
    """One local step moves both factors, so the mean of products has a term of second order in the rate: the rate must fall."""
    game = run(create(name), 1200, Descent(rate=0.5, decay=150), sites_of(6))
    assert distance(server_model(game, sites_of(6)), pooled_optimum()) < 1e-3


def test_ffa_lora_reaches_the_optimum_within_its_rows() -> None:
    strategy = create("ffa_lora")
    rows = initial(strategy)["w.lora_A"].astype(np.float64)
    found = server_model(run(strategy, 500, Descent(rate=0.5)))
    assert distance(found, pooled_optimum(rows=rows)) < 1e-3
    assert distance(found, pooled_optimum()) > 0.1  # another A would have done better


@pytest.mark.slow
def test_rolora_comes_to_rest_at_a_stationary_point_of_its_rank() -> None:
    """Rank 1, or both optima would be the same: the gradient vanishes along the rows of A and the columns of B, not altogether."""
    game = run(create("rolora"), 600, Descent(rate=0.5), sites_of(1))
    (a, b), slope = lowrank.pairs(toy.seat(game, sites_of(1)[0]).tree)["w"], pooled_gradient(server_model(game, sites_of(1)))
    assert np.linalg.norm(slope @ a.T) < 1e-3 and np.linalg.norm(b.T @ slope) < 1e-3
    assert np.linalg.norm(slope) > 0.05 and np.linalg.norm(lowrank.product((a, b))) > 0.5


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("local", {}, 1),
        ("med_duallora", {}, 1),
        ("med_duallora", {"mode": "alternating"}, 2),
        ("sdflora", {}, 1),
        ("fedsa_lora", {}, 1),
        ("feddpa", {}, 2),
        ("fedalt", {"router": "none"}, 1),
    ],
)
def test_personalised_methods_reach_each_clients_own_optimum(name: str, options: dict[str, object], steps: int) -> None:
    """One step per phase. Rank 4: a shared A needs the rows of all clients, and those of the smallest come last."""
    strategy = create(name, options)
    game = run(strategy, 1200 if name == "fedsa_lora" else 400, Descent(rate=0.4, steps=steps), sites_of(4))
    for site in sites_of(4):
        before = loss(site.id, np.zeros_like(pooled_optimum()))
        assert loss(site.id, model(toy.seat(game, site), gates=strategy.gates)) < 1e-3 * before, site.id


def test_a_shared_model_is_nobodys_own_optimum() -> None:
    """The problem is worth personalising: at the pooled optimum every client keeps some loss."""
    assert all(loss(site.id, pooled_optimum()) > 1e-2 * loss(site.id, np.zeros((5, 6))) for site in SITES)


def drift(total: int = 400, rate: float = 0.3) -> dict[str, dict[int, float]]:
    """{method: {local steps in a round: distance of the global model from the pooled optimum}} after `total` local steps at one rate."""
    methods = {"flora": 3, "fedex_lora": 6, "flexlora": 6, "fedit": 6, "fedavg_full": 3}

    def after(name: str, sites: tuple[Client, ...], steps: int) -> float:
        return distance(server_model(run(create(name), total // steps, Descent(rate, steps), sites), sites), pooled_optimum())

    return {name: {steps: after(name, sites_of(rank), steps) for steps in (1, 20)} for name, rank in methods.items()}


@pytest.mark.slow
def test_several_local_steps_drift_and_the_drift_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Exact aggregation does not cure client drift: with equally many gradient steps in all, fewer and longer rounds end farther away."""
    table = drift()
    with capsys.disabled():
        print("\ndistance from the pooled optimum after 400 local steps, in rounds of 1 and of 20:")
        for name, row in table.items():
            print(f"  {name:12}" + "".join(f"{value:10.1e}" for value in row.values()))
    for row in table.values():
        assert row[20] > 1e-2 and 3 * row[1] < row[20]
    assert table["flora"][1] < 1e-5 and table["fedavg_full"][1] < 1e-5
