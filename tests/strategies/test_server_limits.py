"""Every method becomes a simpler one at the end of its dials, under the conditions that the test's name or text gives."""

from dataclasses import replace

import numpy as np
import pytest
from linear_problem import EQUAL, SITES, Descent, initial, model, run, server_model, sites_of

from raylora.core import compress, lowrank, reduce
from raylora.core import tree as trees
from raylora.core.privacy import dp_mean
from raylora.core.types import Client, ClientUpdate, State, Strategy, Tree
from raylora.strategies import create, toy
from raylora.strategies.compare import digest, relative

INF = float("inf")
LEARN = Descent(rate=0.3, steps=4)


def adapter(game: toy.Game) -> Tree:
    return game.state.trees["adapter"]


def assert_close(found: Tree, expected: Tree, within: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert relative(found[name], expected[name]) < within, name


def assert_same_bits(found: toy.Game, expected: toy.Game) -> None:
    assert digest(State(trees={"adapter": adapter(found)})) == digest(State(trees={"adapter": adapter(expected)}))


def arrived(strategy: Strategy, sites: tuple[Client, ...] = SITES, rounds: int = 1) -> toy.Game:
    """The federation after some rounds of seeded nudges."""
    game = toy.start(strategy, sites[0].rank)
    for _ in range(rounds):
        game = toy.play(game, sites, toy.at_random)
    return game


# --- local terms and server steps ---------------------------------------------------------------------------------------------------


def test_fedprox_without_mu_is_fedit_bit_for_bit() -> None:
    assert_same_bits(run(create("fedprox", {"mu": 0.0}), 3, LEARN), run(create("fedit"), 3, LEARN))
    strong = run(create("fedprox", {"mu": 5.0}), 3, Descent(rate=0.1, steps=4))
    assert trees.norm(trees.subtract(adapter(strong), initial(strong.strategy))) < trees.norm(
        trees.subtract(adapter(run(create("fedit"), 3, Descent(rate=0.1, steps=4))), initial(strong.strategy))
    )


def test_scaffold_is_fedit_with_sgd_one_local_step_full_participation_equal_sizes_and_rate_1() -> None:
    one_step = Descent(rate=0.3, steps=1)
    assert_close(adapter(run(create("scaffold"), 5, one_step, EQUAL)), adapter(run(create("fedit"), 5, one_step, EQUAL)))
    several = run(create("scaffold"), 5, Descent(rate=0.3, steps=4), EQUAL), run(create("fedit"), 5, LEARN, EQUAL)
    assert relative(adapter(several[0])["w.lora_B"], adapter(several[1])["w.lora_B"]) > 1e-3


def test_scaffold_controls_are_zero_sum_and_removing_them_is_fedit() -> None:
    """c is the mean of the c_k under full participation; with all variates held at zero any number of steps is FedIT."""
    learn = Descent(rate=0.3, steps=4)
    game = run(create("scaffold"), 4, learn, EQUAL)
    for name, c in game.state.trees["c"].items():
        np.testing.assert_allclose(c, np.mean([learn.controls[site.id][name] for site in EQUAL], axis=0), atol=1e-6)
    first = run(create("scaffold"), 1, Descent(rate=0.3, steps=4), EQUAL)  # all variates are zero in round 0
    assert_close(adapter(first), adapter(run(create("fedit"), 1, LEARN, EQUAL)))


def test_scaffold_counts_absent_clients() -> None:
    """c moves by |S| / N: the same cohort in a federation of six moves it half as far as in one of three."""
    alone, among = (arrived(create("scaffold", clients=count)) for count in (3, 6))
    for name, c in alone.state.trees["c"].items():
        np.testing.assert_allclose(among.state.trees["c"][name], c / 2, rtol=1e-6)


def test_fedavgm_without_momentum_at_rate_1_is_fedit_bit_for_bit() -> None:
    assert_same_bits(run(create("fedavgm", {"b1": 0.0}), 3, LEARN), run(create("fedit"), 3, LEARN))


def test_fedavgm_by_hand() -> None:
    """D = 1, then 3 from there: m = 1 in round 0, then 0.9 * 1 + 0.1 * 3 = 1.2; rate 0.5."""
    strategy = create("fedavgm", {"b1": 0.9, "server_lr": 0.5})
    state = strategy.init({"w": np.zeros(1)})
    for sent, expected in ((1.0, 0.5), (3.5, 0.5 + 0.6)):
        state = strategy.aggregate(state, [ClientUpdate(client_id="a", num_examples=1, adapter={"w": np.float32([sent])})])
        assert state.trees["adapter"]["w"][0] == pytest.approx(expected)


def test_a_server_rate_of_one_half_goes_half_way() -> None:
    whole, half = (adapter(arrived(create("scaffold", {"server_lr": rate}))) for rate in (1.0, 0.5))
    start = toy.initial_tree(create("scaffold"), SITES[0].rank)
    for name, end in whole.items():
        np.testing.assert_allclose(half[name], (start[name] + end) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_steps_without_momentum_become_fedit_as_eta_equals_tau_grows(name: str) -> None:
    expected = adapter(run(create("fedit"), 3, LEARN))["w.lora_B"]
    ends = [run(create(name, {"b1": 0.0, "server_lr": t, "tau": t}), 3, LEARN) for t in (1.0, 1e3, 1e9)]
    gaps = [relative(adapter(game)["w.lora_B"], expected) for game in ends]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-6


def test_fedadam_and_fedyogi_by_hand() -> None:
    """One coordinate, D = 0.5 twice: m = 0.05, 0.095; Adam v = 0.0025, 0.004975; Yogi v = 0.0025, 0.0025 + 0.0025."""
    for name, second in (("fedadam", 0.004975), ("fedyogi", 0.005)):
        strategy = create(name, {"server_lr": 0.1, "tau": 0.01})
        state, w = strategy.init({"w": np.zeros(1)}), 0.0
        for m, v in ((0.05, 0.0025), (0.095, second)):
            sent = ClientUpdate(client_id="a", num_examples=1, adapter={"w": np.float32([w + 0.5])})
            state = strategy.aggregate(state, [sent])
            w += 0.1 * m / (np.sqrt(v) + 0.01)
            assert state.trees["adapter"]["w"][0] == pytest.approx(w, rel=1e-5)


# --- aggregation --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedex_lora", "ffa_lora", "hetlora", "sdflora", "lora_fair"])
def test_one_client_gets_its_own_product_back(name: str) -> None:
    alone = (replace(SITES[0], scaling=1.7),)
    game = toy.start(create(name), 3, initial=initial(create(name)))
    trained = toy.seat(game, alone[0])
    expected = model(replace(trained, tree=trees.select(LEARN(trained)[0], ("*", "!local.*"))))
    assert relative(server_model(toy.play(game, alone, LEARN), alone), expected) < 1e-5


@pytest.mark.parametrize("rule", ["drop", "trend", "softmax", "peer", "shuffled"])
def test_rate_my_lora_at_infinite_temperature_is_the_mean_of_products_for_every_rule(rule: str) -> None:
    """Bit for bit FLoRA, over rounds with scores that differ."""
    rated = arrived(create("rate_my_lora", {"rule": rule, "temperature": INF}, seed=3), rounds=3)
    plain = arrived(create("flora", seed=3), rounds=3)
    assert {k: digest(State(trees={k: t})) for k, t in rated.state.trees.items()} == {
        k: digest(State(trees={k: t})) for k, t in plain.state.trees.items()
    }
    assert set(rated.state.values["weights"].values()) == {1.0}  # type: ignore[attr-defined]


def test_hetlora_is_fedit_without_pruning_at_equal_ranks_norms_and_sizes() -> None:
    game = toy.start(create("fedit"), 3)
    updates = []
    for update in toy.play(game, EQUAL, toy.at_random).updates:
        pairs = {m: (a, b / np.float32(lowrank.norm((a, b)))) for m, (a, b) in lowrank.pairs(update.adapter).items()}  # norm 1 each
        updates.append(replace(update, adapter={**update.adapter, **lowrank.named(pairs)}))
    het, fed = create("hetlora"), create("fedit")
    found, expected = (s.aggregate(s.init(game.initial), updates).trees["adapter"] for s in (het, fed))
    assert_close(found, expected)
    bigger = [replace(updates[0], adapter={n: 3 * x for n, x in updates[0].adapter.items()}), *updates[1:]]
    found, expected = (s.aggregate(s.init(game.initial), bigger).trees["adapter"] for s in (het, fed))
    assert relative(found["blocks.0.q.lora_B"], expected["blocks.0.q.lora_B"]) > 0.05


def test_lora_fair_becomes_fedit_as_lambda_grows_and_comes_nearer_to_the_mean_of_products_as_it_falls() -> None:
    def cosine(lam: float) -> float:
        game = toy.start(create("lora_fair", {"lam": lam}), 2)
        sites = sites_of(2)
        trained = [toy.at_random(toy.seat(game, site))[0] for site in sites]
        p = [site.num_examples / 6 for site in sites]
        target = lowrank.stack([lowrank.pairs(tree)["blocks.0.q"] for tree in trained], p)
        pair = lowrank.pairs(adapter(toy.play(game, sites, toy.at_random)))["blocks.0.q"]
        return lowrank.inner(target, pair) / lowrank.norm(target) / lowrank.norm(pair)

    cosines = [cosine(lam) for lam in (1e6, 0.1, 0.01, 0.0)]
    assert cosines == sorted(cosines) and cosines[-1] > cosines[0] + 0.01
    assert_close(adapter(arrived(create("lora_fair", {"lam": 1e6}), sites_of(2), 2)), adapter(arrived(create("fedit"), sites_of(2), 2)))


def test_lora_fair_without_lambda_finds_the_best_b_for_its_a() -> None:
    """The largest cosine over all B is that of the projection on the rows of A; what is left after 100 steps is below 1e-3."""
    from raylora.strategies.lora_fair import corrected

    draw = np.random.default_rng(0)
    target, (a, b) = (draw.normal(size=(6, 9)), draw.normal(size=(8, 6))), (draw.normal(size=(3, 9)), draw.normal(size=(8, 3)))
    dense = lowrank.product(target)
    best = np.linalg.norm(dense @ np.linalg.pinv(a) @ a) / np.linalg.norm(dense)
    found = lowrank.product(corrected(target, (a, b), 0.0, 100))
    assert np.vdot(found, dense) / np.linalg.norm(found) / np.linalg.norm(dense) == pytest.approx(best, abs=1e-3)


def test_fedex_lora_with_enough_residual_rank_is_exact() -> None:
    cut, whole = (arrived(create("fedex_lora", {"residual_rank": rank}), sites_of(2), 2) for rank in (6, None))
    assert relative(cut.base["blocks.0.q"], whole.base["blocks.0.q"]) < 1e-6
    one = arrived(create("fedex_lora", {"residual_rank": 1}), sites_of(2), 1)
    delta = lowrank.pairs(one.state.trees["delta"])["blocks.0.q"]
    best = lowrank.truncate(lowrank.pairs(arrived(create("fedex_lora"), sites_of(2), 1).state.trees["delta"])["blocks.0.q"], 1)
    assert delta[0].shape[0] == 1 and relative(lowrank.product(delta), lowrank.product(best)) < 1e-5


def test_rolora_that_never_turns_is_ffa_lora_bit_for_bit() -> None:
    still, frozen = run(create("rolora", {"period": 10**6}), 4, LEARN), run(create("ffa_lora"), 4, LEARN)
    np.testing.assert_array_equal(adapter(still)["w.lora_B"], adapter(frozen)["w.lora_B"])


@pytest.mark.parametrize("name", ["flexlora", "sdflora"])
def test_at_full_rank_redistribution_is_exact(name: str) -> None:
    sites = [replace(site, rank=12, scaling=s) for site, s in zip(SITES, (0.5, 2.0, 1.0), strict=True)]
    game = toy.start(create(name), 12)
    for _ in range(2):
        seats = [toy.seat(game, site) for site in sites]
        trained = [toy.global_part(replace(seat, tree=toy.at_random(seat)[0])) for seat in seats]
        game = toy.play(game, sites, toy.at_random)
        for module in toy.MODULES:
            expected = sum(site.num_examples / 6 * part[module] for site, part in zip(sites, trained, strict=True))
            assert relative(toy.global_part(toy.seat(game, sites[0]))[module], expected) < 1e-6


# --- private adapters ---------------------------------------------------------------------------------------------------------------


def test_med_duallora_without_a_local_adapter_is_fedit_bit_for_bit() -> None:
    for mode in ("joint", "alternating", "staged"):
        dual = create("med_duallora", {"local_rank": 0, "mode": mode})
        assert dual.adapters == create("fedit").adapters
        assert_same_bits(run(dual, 3, LEARN), run(create("fedit"), 3, LEARN))


def test_med_duallora_without_a_global_adapter_and_with_a_private_head_is_local_bit_for_bit() -> None:
    dual = arrived(create("med_duallora", {"global_rank": 0, "head": "private"}), rounds=3)
    alone = arrived(create("local"), rounds=3)
    assert dual.strategy.adapters == alone.strategy.adapters
    assert digest(State(trees=dual.kept)) == digest(State(trees=alone.kept))
    assert not any(update.adapter for update in dual.updates)


def test_med_duallora_keeps_globals_equal_and_locals_apart() -> None:
    game = arrived(create("med_duallora"), rounds=2)
    seats = [toy.seat(game, site) for site in SITES]
    shared, private = ([trees.select(seat.tree, p("shared")) for seat in seats] for p in (trees.shared_names, trees.private_names))
    assert len({digest(State(trees={"t": tree})) for tree in shared}) == 1
    assert len({digest(State(trees={"t": tree})) for tree in private}) == 3


def test_med_duallora_stages() -> None:
    strategy = create("med_duallora", {"mode": "staged", "stage_rounds": 2})
    task = [strategy.broadcast(State(values={"round": r}, trees={"adapter": {}}), SITES[0]).task for r in range(3)]
    assert [t.phases[0].trains == trees.shared_names("shared") for t in task] == [True, True, False]
    assert [bool(t.uploads) for t in task] == [True, True, False]


def test_feddpa_at_a_1_is_fedit_on_the_global_adapter_with_the_steps_of_its_phase() -> None:
    dual = run(create("feddpa", {"a": 1.0}), 3, Descent(rate=0.3, steps=8))
    assert_same_bits(dual, run(create("fedit"), 3, Descent(rate=0.3, steps=4)))
    mixed = run(create("feddpa", {"a": 0.5}), 3, Descent(rate=0.3, steps=8))
    assert relative(adapter(mixed)["w.lora_B"], adapter(dual)["w.lora_B"]) > 1e-2


def test_fedalt_without_others_and_without_a_router_is_local_from_the_same_start() -> None:
    alone = SITES[:1]
    own, lone = create("fedalt", {"router": "none"}), create("local")
    start = trees.freeze({f"local.{name}": array for name, array in initial(own).items() if not name.startswith("rest.")})
    found, expected = run(own, 3, LEARN, alone), run(lone, 3, LEARN, alone, start)
    np.testing.assert_array_equal(model(toy.seat(found, alone[0])), model(toy.seat(expected, alone[0])))


def test_fedalt_sends_everyone_the_mean_of_the_others() -> None:
    """Sizes 3, 1, 2: client a gets (1 b + 2 c) / 3; a newcomer the mean of all; its own pair is never overwritten."""
    game = arrived(create("fedalt"), rounds=2)
    sent = {update.client_id: update.adapter["blocks.0.q.lora_B"] for update in game.updates}
    seat = toy.seat(game, SITES[0])
    np.testing.assert_allclose(seat.tree["rest.blocks.0.q.lora_B"], (sent["b"] + 2 * sent["c"]) / 3, rtol=1e-5)
    np.testing.assert_array_equal(seat.tree["blocks.0.q.lora_B"], sent["a"])
    new = toy.seat(game, replace(SITES[0], id="new")).tree["rest.blocks.0.q.lora_B"]
    np.testing.assert_allclose(new, (3 * sent["a"] + sent["b"] + 2 * sent["c"]) / 6, rtol=1e-5)


def test_fedalt_trains_neither_the_others_nor_a_missing_router() -> None:
    strategy = create("fedalt")
    tree = toy.initial_tree(strategy, 2)
    (phase,) = toy.seat(toy.start(strategy, 2), replace(SITES[0], rank=2)).broadcast.task.phases
    trained = trees.match(tree, phase.trains)
    assert not any(name.startswith("rest.") for name in trained)
    assert any(name.startswith("router.") for name in trained) and "head.weight" in trained


def test_centralised_is_fedit_with_one_client() -> None:
    strategy = create("centralised")
    assert strategy.pools_data
    assert_same_bits(run(strategy, 3, LEARN, SITES[:1]), run(create("fedit"), 3, LEARN, SITES[:1]))


# --- reductions, privacy, compression -----------------------------------------------------------------------------------------------

FACTORS = ["fedit", "ffa_lora", "fedsa_lora", "rolora", "fedprox", "fedavgm", "feddpa", "med_duallora", "fedalt", "fedavg_full"]


@pytest.mark.parametrize("name", FACTORS)
def test_trimmed_mean_with_nothing_trimmed_is_the_mean(name: str) -> None:
    trimmed, plain = (arrived(create(name, options), sites_of(3), 2) for options in ({"reduce": reduce.trimmed_mean(0.0)}, {}))
    assert digest(trimmed.state) == digest(plain.state)


@pytest.mark.parametrize("name", [*(name for name in FACTORS if name != "fedalt"), "fedadam", "fedyogi"])  # fedalt refuses noise
def test_private_mean_without_noise_and_with_a_huge_clip_is_the_mean_at_equal_sizes(name: str) -> None:
    private, plain = (arrived(create(name, options), EQUAL, 2) for options in ({"reduce": dp_mean(1e9, 0.0)}, {}))
    assert_close(adapter(private), adapter(plain))


def test_every_round_draws_its_own_noise() -> None:
    """Clients that do not move: what the server does is the noise of the round."""
    noisy = dp_mean(2.0, 0.7, seed=5)
    strategy = create("fedit", {"reduce": noisy})
    state, still = strategy.init({"w": np.zeros(3)}), {"w": np.zeros(3, np.float32)}
    for round in range(2):
        before = state.trees["adapter"]["w"]
        state = strategy.aggregate(state, [ClientUpdate(client_id="a", num_examples=1, adapter={"w": before})])
        np.testing.assert_allclose(state.trees["adapter"]["w"] - before, noisy.at(round)([still], [1])["w"], rtol=1e-4)


ON_COORDINATES = [{"name": "median"}, {"name": "trimmed_mean", "trim": 0.2}]
BY_WEIGHTS = [{"name": "krum", "f": 1}, {"name": "multi_krum", "f": 1, "m": 2}, {"name": "geometric_median"}]
ROBUST = [(name, robust) for name in ("fedit", "ffa_lora") for robust in ON_COORDINATES + BY_WEIGHTS]
ROBUST += [(name, robust) for name in ("flora", "flexlora", "sdflora") for robust in BY_WEIGHTS]


@pytest.mark.parametrize(("name", "robust"), ROBUST)
def test_robust_reductions_of_identical_updates_give_that_update(name: str, robust: dict[str, object]) -> None:
    strategy, plain = create(name, {"reduce": robust}), create(name)
    game = toy.start(plain, 3)
    (update,) = toy.play(game, SITES[:1], toy.at_random).updates
    same = [replace(update, client_id=str(k), num_examples=k + 1) for k in range(5)]
    found = toy.seat(replace(game, state=strategy.aggregate(game.state, same)), SITES[0])
    expected = toy.seat(replace(game, state=plain.aggregate(game.state, [update])), SITES[0])
    for module, dense in toy.global_part(expected).items():
        assert relative(toy.global_part(found)[module], dense) < 1e-5


@pytest.mark.parametrize("name", ["fedit", "flora", "flexlora"])
def test_compression_at_full_precision_changes_nothing(name: str) -> None:
    """top-k of everything, through the server: what it makes of the decoded updates is what it makes of the updates."""
    strategy = create(name)
    game = arrived(strategy, rounds=1)
    after = toy.play(game, SITES, toy.at_random)
    decoded = []
    for update in after.updates:
        received = toy.seat(game, SITES["abc".index(update.client_id)]).tree
        full = compress.compressed(update, received, {}, compress.top_k(1.0), np.random.default_rng(0))
        decoded.append(full.update)
    seats = [toy.seat(replace(after, state=strategy.aggregate(game.state, sent)), SITES[0]) for sent in (after.updates, decoded)]
    for module, dense in toy.global_part(seats[0]).items():
        assert relative(toy.global_part(seats[1])[module], dense) < 1e-5
