"""Every byte that crosses, counted by hand from the tiny U-Net's layers, the ranks and the rounds."""

import pytest
from small_runs import Finished

CONVOLUTIONS = [(9, 4), (36, 4), (36, 6), (54, 6), (162, 8), (216, 8), (324, 6), (162, 6), (72, 4), (36, 4)]
"""(inputs times kernel, outputs) of the ten convolutions that take LoRA: two a level, channels 4, 6, 8, 6, 4."""
FACTORS = sum(inputs + outputs for inputs, outputs in CONVOLUTIONS)  # of rank 1
HEAD = 4 * 4 + 4
NORMS = 2 * sum(outputs for _, outputs in CONVOLUTIONS)
UPSAMPLING = 4 * (8 * 6 + 6 * 4)  # 2 x 2 x 1 transposed convolutions
EVERY_WEIGHT = sum(inputs * outputs for inputs, outputs in CONVOLUTIONS) + NORMS + UPSAMPLING + HEAD
CLIENTS, ROUNDS = 4, 2


def folds(rank: int) -> int:
    """Elements of a fold of this stacked rank: never wider than the layer's smaller side."""
    return sum(min(rank, inputs, outputs) * (inputs + outputs) for inputs, outputs in CONVOLUTIONS)


@pytest.mark.parametrize(
    ("strategy", "up", "down"),  # elements, and numbers beside them, of one client in one round
    [
        ("fedit", (FACTORS + HEAD, 2), FACTORS + HEAD),  # numbers: the count of patients and the loss
        ({"name": "med_duallora"}, (FACTORS + HEAD, 2), FACTORS + HEAD),
        ({"name": "med_duallora", "head": "private"}, (FACTORS, 2), FACTORS),
        ("local", (0, 2), 0),
        ("scaffold", (2 * (FACTORS + HEAD), 2), 2 * (FACTORS + HEAD)),
        ("fedavg_full", (EVERY_WEIGHT, 2), EVERY_WEIGHT),
    ],
)
def test_rounds_that_are_all_alike(runs, strategy, up, down):
    run = runs(strategy=strategy if isinstance(strategy, dict) else {"name": strategy})
    assert run.summary["bytes_up"] == ROUNDS * CLIENTS * (4 * up[0] + 8 * up[1])
    assert run.summary["bytes_down"] == ROUNDS * CLIENTS * 4 * down


def test_rate_my_lora_sends_the_stacked_folds_and_its_scores(runs):
    run = runs(strategy={"name": "rate_my_lora"})
    assert run.summary["bytes_up"] == ROUNDS * CLIENTS * (4 * (FACTORS + HEAD) + 8 * 4)  # patients, loss and two scores
    assert run.summary["bytes_down"] == CLIENTS * 4 * (2 * (FACTORS + HEAD) + folds(4))  # nothing to fold in the first round


def test_peers_are_shown_to_each_other_and_send_back_a_score_each(runs):
    run = runs(strategy={"name": "rate_my_lora", "rule": "peer"})
    assert run.summary["bytes_up"] == ROUNDS * CLIENTS * (4 * (FACTORS + HEAD) + 8 * 2 + 8 * (1 + 3))
    assert run.summary["bytes_down"] == CLIENTS * 4 * (2 * (FACTORS + HEAD) + folds(4) + 2 * 3 * (FACTORS + HEAD))


def test_who_missed_rounds_is_sent_what_he_missed(runs):
    run = runs(strategy={"name": "rate_my_lora"}, sampling={"kind": "uniform", "fraction": 0.5}, training__rounds=5)
    cohorts = [[line["client"] for line in run.lines if line["kind"] == "client" and line["round"] == t] for t in range(5)]
    assert all(len(cohort) == 2 for cohort in cohorts) and len({tuple(c) for c in cohorts}) > 2
    have = dict.fromkeys(run.summary["clients"], 0)
    down = 0
    for t, cohort in enumerate(cohorts):  # before round t there have been t folds, each of rank 2
        for client in cohort:
            down += 4 * (FACTORS + HEAD + folds(2 * (t - have[client])))
            have[client] = t
    assert run.summary["bytes_down"] == down


def test_the_totals_are_the_sums_of_the_record(runs):
    for run in (runs(), runs(strategy={"name": "rate_my_lora", "rule": "peer"})):
        for way in ("bytes_up", "bytes_down"):
            by_client = sum(line[way] for line in run.lines if line["kind"] == "client")
            assert by_client == sum(line[way] for line in run.lines if line["kind"] == "round") == run.summary[way] > 0


def names(run: Finished) -> tuple[set[str], set[str]]:
    """Everything named in a message: (server to client, client to server)."""
    down = {name for _, b in run.sent for tree in (b.adapter, b.base_delta, *b.extra.values()) for name in tree}
    up = {name for update in run.received for tree in (update.adapter, *update.extra.values()) for name in tree}
    return down, up


def test_private_names_are_in_no_message(runs):
    shared_head, private_head = runs(strategy={"name": "med_duallora"}), runs(strategy={"name": "med_duallora", "head": "private"})
    assert names(shared_head) == names(runs())
    factors = {name for name in names(runs())[0] if ".lora_" in name}
    assert names(private_head) == (factors, factors) and len(factors) == 20
    assert names(runs(strategy={"name": "local"})) == (set(), set())
    dpa = names(runs("disease", strategy={"name": "feddpa"}))
    assert not any(name.startswith("local.") for way in dpa for name in way)
