"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raylora.core.values import flat
from raylora.report.block import Block
from raylora.report.groups import value_text
from raylora.report.marks import stamped
from raylora.report.scores import Score
from raylora.report.table import (
    LOWER,
    Cell,
    Estimate,
    Table,
    decimal,
    estimate,
    p_value,
    seconds,
    signed,
    size,
    whole,
    without_interval,
    words,
)
from raylora.report.words import lower_is_better, metric_words

MOST_PAIRS = 15  # on a terminal
ITSELF = "itself, other seeds"


def block_tables(block: Block) -> list[Table]:
    """All tables of one block, in reading order."""
    made = [scores_table(block), winners_table(block), pairs_table(block)]
    if block.task == "disease":
        made.append(decisions_table(block))
    made += [exploratory_table(block), clients_table(block), settings_table(block), runs_table(block)]
    return [stamped(table, block.marks) for table in made]


def terminal_tables(block: Block) -> list[Table]:
    """What a terminal shows: the scores, winners where something was chosen, and the pairs (of many, those of the chosen configuration)."""
    made = [scores_table(block)]
    if any(w.tried > 1 for w in block.winners):
        made.append(winners_table(block))
    if not block.pairs:
        return [stamped(table, block.marks) for table in made]
    pairs = pairs_table(block)
    if len(block.pairs) > MOST_PAIRS:
        chosen = {block.chosen.score.label if block.chosen else block.a_a.baseline}
        kept = tuple(row for row in pairs.rows if row[1] == ITSELF or {row[0], row[1]} & chosen)
        pairs = replace(pairs, title=f"Pairs with {', '.join(chosen)} (all {len(block.pairs)}: on the page)", rows=kept)
    return [stamped(table, block.marks) for table in (*made, pairs)]


def scores_table(block: Block) -> Table:
    """Score and cost of each configuration, the frozen model first."""
    metric = metric_words(block.metric)
    held_out = any(s.held_out.value is not None for s in _all(block))
    columns = [
        words("Configuration"),
        whole("Seeds"),
        decimal("Validation", essential=False),
        estimate("In-client [95 %]"),
        estimate("Cross-client [95 %]", brief="Cross-client"),
        *([estimate("Held-out sites [95 %]", brief="Held-out")] if held_out else []),
        whole("n"),
        size("Bytes"),
        seconds("Time"),
        estimate("Global part alone [95 %]", essential=False),
        size("Up", essential=False),
        size("Down", essential=False),
    ]
    rows: list[tuple[Cell, ...]] = []
    for s in _all(block):
        unseen = [s.held_out] if held_out else []
        cost = (s.bytes_total, s.seconds, s.shared, s.bytes_up, s.bytes_down)
        scored = (s.validation.value, s.in_client, s.cross_client)
        rows.append((s.label, len(s.seeds) or None, *scored, *unseen, s.in_client.n, *cost))
    note = (
        f"{metric} is the primary metric: means over seeds, clients and a client's test patients (n in all). In-client: each client's own "
        "model at home; cross-client: the others' models, private parts included, on its patients. Bytes: of a whole run, up and down."
    ) + without_interval(cell for row in rows for cell in row)
    return Table(f"{metric} and cost", tuple(columns), tuple(rows), note, marked=_best(block))


def winners_table(block: Block) -> Table:
    """What validation patients chose, for each strategy."""
    columns = (words("Strategy"), whole("Tried"), words("Chosen on validation"), decimal("Validation"), estimate("Test, in-client [95 %]"))
    rows = tuple((w.strategy, w.tried, w.score.label, w.score.validation.value, w.score.in_client) for w in block.winners)
    marked = frozenset(i for i, w in enumerate(block.winners) if w.overall)
    note = "The validation score of the best of many is too good; the test score, which chose nothing, is the one to quote."
    return Table("Winners", columns, rows, note, marked)


def pairs_table(block: Block) -> Table:
    """Every pair, and the baseline against itself in the first row."""
    columns = (
        words("A"),
        words("B"),
        signed("A - B [95 %]"),
        p_value("p", essential=False),
        p_value("p, Holm"),
        decimal("Effect", 2, essential=False),
        decimal("A/A limit", essential=False),
        words("Verdict"),
        whole("n", essential=False),
        words("Test", essential=False),
    )
    a_a = block.a_a
    shown = "not available" if a_a.resolvable is None else f"limit {a_a.resolvable:.3f}"
    rows: list[tuple[Cell, ...]] = [
        (a_a.baseline, ITSELF, a_a.largest, None, None, None, a_a.resolvable, shown, None, "A/A"),
    ]
    chosen = block.chosen.score.label if block.chosen else ""
    for p in sorted(block.pairs, key=lambda p: chosen not in (p.a, p.b)):
        low, high = p.ci95 or (None, None)
        difference = Estimate(p.difference, low, high, p.n)
        rows.append((p.a, p.b, difference, p.p_value, p.p_holm, p.effect, p.resolvable, p.verdict, p.n, p.test))
    note = (
        f"{metric_words(block.metric)} on the same test patients, averaged over seeds first; intervals draw patients within clients, then "
        "seeds. Effect: matched-pairs rank-biserial correlation, -1 to 1. A - B weighs clients alike, p (of Dice) and effect weigh patients alike: "
        "they may point different ways. A/A limit: what the baseline differs by under other seeds."
    )
    return Table("Pairs", columns, tuple(rows), note)


def decisions_table(block: Block) -> Table:
    """DeLong for the AUC and McNemar for the decisions of each pair; exploratory."""
    columns = (words("A"), words("B"), signed("AUC, A - B [95 %]"), p_value("p, DeLong"), p_value("p, McNemar"))
    rows = []
    for p in block.pairs:
        low, high = (p.auc.ci95 or (None, None)) if p.auc else (None, None)
        difference = Estimate(p.auc.difference, low, high, p.n) if p.auc else None
        rows.append((p.a, p.b, difference, p.auc.p_value if p.auc else None, p.mcnemar_p))
    note = (
        "Exploratory, not corrected. DeLong: means over seeds and clients, variances of clients added; n/a where a client has one patient "
        "of a class. McNemar (exact): decisions at 0.5 of the first seed that both have."
    )
    return Table("AUC and decisions", columns, tuple(rows), note)


def exploratory_table(block: Block) -> Table:
    """Every other metric."""
    names = sorted({name for s in _all(block) for name in s.exploratory}, key=lambda n: list(_all(block)[0].exploratory).index(n))
    columns = (words("Configuration"), *(estimate(metric_words(name, arrow=True)) for name in names))
    rows = tuple((s.label, *(s.exploratory.get(name) for name in names)) for s in _all(block))
    note = "Exploratory: in-client on test patients, with 95 % intervals, not tested."
    note += without_interval(cell for row in rows for cell in row)
    note += f" {LOWER}" if any(lower_is_better(name) for name in names) else ""
    return Table("Other metrics", columns, rows, note)


def clients_table(block: Block) -> Table:
    """The primary metric of each client."""
    clients = list(dict.fromkeys(client for s in _all(block) for client in s.per_client))
    columns = (words("Configuration"), *(decimal(client) for client in clients))
    rows = tuple((s.label, *(s.per_client.get(client) for client in clients)) for s in _all(block))
    return Table(f"{metric_words(block.metric)} by client", columns, rows, "In-client on test patients, means over seeds.")


def settings_table(block: Block) -> Table:
    """What differs between the configurations."""
    keys = [key for key in block.varied if key != "strategy.name"]
    columns = (words("Configuration"), words("Seeds"), *(words(key) for key in keys))
    rows = []
    for s in block.scores:
        rows.append((s.label, ", ".join(map(str, s.seeds)), *(value_text(s.settings.get(key)) for key in keys)))
    return Table("What differs", columns, tuple(rows))


def common_settings(block: Block) -> str:
    """What all finished runs were configured with alike, a key a line."""
    finished = [flat(run.config) for run in block.runs if run.finished]
    same = {key: value for key, value in finished[0].items() if all(key in other and other[key] == value for other in finished)}
    return "".join(f"{key}: {value_text(value)}\n" for key, value in same.items())


def runs_table(block: Block) -> Table:
    """The folders behind it all."""
    columns = (words("Run"), words("Strategy"), whole("Seed"), words("Status"), words("Configuration hash"))
    rows = []
    for run in block.runs:
        sha256 = str(run.summary.get("config_sha256", ""))
        rows.append((run.name, run.strategy, run.seed, str(run.summary["status"]), sha256[:12]))
    return Table("Runs", columns, tuple(rows))


def _all(block: Block) -> Sequence[Score]:
    return [*([block.frozen] if block.frozen else []), *block.scores]


def _best(block: Block) -> frozenset[int]:
    """The row of the configuration that validation chose; test patients choose nothing."""
    return frozenset(i for i, s in enumerate(_all(block)) if block.chosen and s is block.chosen.score)
