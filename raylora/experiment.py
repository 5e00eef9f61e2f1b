"""One federated experiment from its configuration: what it needs, its rounds, its end. The only place that sees a whole Config."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from raylora import __version__
from raylora.cohort import Cohort, gather
from raylora.config import Config, dump
from raylora.core import lowrank, sampling
from raylora.core.errors import InputError
from raylora.core.types import Broadcast, Client, ClientState, State, Strategy, Tree
from raylora.data import obtain, partition
from raylora.data.damage import Damage
from raylora.data.features import FOLDER
from raylora.data.prepare import Mapper
from raylora.data.transforms import Augmentation
from raylora.dials import Dials, attacks, damages, make_dials, ranks, require_asynchronous
from raylora.federation import checkpoint, stacking
from raylora.federation.border import Checked
from raylora.federation.buffered import run_buffered
from raylora.federation.client import compose, initial_tree
from raylora.federation.host import EvalRow, Scored
from raylora.federation.lines import round_lines
from raylora.federation.rounds import Executor, Progress, receive, run_round
from raylora.federation.spec import HostSpec, ModelSpec, SiteSpec, build_model, protocol_of
from raylora.method import epsilon, make_strategy, require_cohort, require_compressible, scheme
from raylora.metrics import matrix
from raylora.metrics.classification import choose_threshold
from raylora.models import peft, zoo
from raylora.models.cinema_weights import without_decoder
from raylora.models.seen import Seen
from raylora.models.stacked import StackedModel
from raylora.models.weights import write_arrays
from raylora.tracking.record import Record, finite, write_json, write_text
from raylora.training import features
from raylora.training.local import Settings

Event = Mapping[str, Any]
PRIMARY = matrix.PRIMARY
POOL = "pooled"  # the one client of a strategy that pools all data
STOP = "stop"  # sent to a running experiment after a round: end here, without a look at the test patients
Events = Generator[Event, str | None, None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run needs and that can be known before it starts."""

    config: Config
    spec: HostSpec
    clients: tuple[Client, ...]  # those that train
    homes: tuple[str, ...]  # clients whose patients are scored in-client
    held_out: tuple[str, ...]
    weights: Mapping[str, np.ndarray]  # of the frozen backbone
    seen_cases: tuple[str, ...]  # validation, rating and test cases that the weights have seen; empty unless overridden
    data_sha256: str
    splits: Mapping[str, Mapping[str, Sequence[str]]]  # client -> part -> study ids
    left_out: Mapping[str, str]  # study id -> why it is in no client
    cohort: Cohort
    dials: Dials
    no_cache: str = ""  # why no features are kept


def make_plan(config: Config, say: obtain.Say = lambda what, done, total: None, mapper: Mapper | None = None) -> Plan:
    """Prepare the data, divide it, build the model once: whatever is wrong is found here. Raises InputError.

    `mapper` prepares what is not prepared yet.
    """
    strategy = make_strategy(config)
    backbone = model_spec(config, strategy)
    model = build_model(backbone)
    _require_ranks(config, strategy, model)
    folders = obtain.prepared(config.data, say, mapper)
    cohort = gather(config, folders)
    splits, held_out, labels = cohort.splits, cohort.held_out, cohort.diseased
    homes = tuple(client for client in splits if client not in held_out)
    rank_of = ranks(config, _ranks(config, homes))
    damaged, liars = damages(config, homes), attacks(config, homes)
    extra = config.data.rating_to_training
    sites = [
        SiteSpec(
            id=client,
            rank=rank_of.get(client, max(rank_of.values())),
            training=tuple(split.train) + (tuple(split.rating) if extra else ()),
            validation=tuple(split.validation),
            rating=() if extra else tuple(split.rating),
            test=tuple(split.test),
        )
        for client, split in splits.items()
    ]
    sites = [replace(s, damage=_harmful(s.training, damaged[s.id]), attack=liars.get(s.id)) if s.id in homes else s for s in sites]
    training = homes
    if strategy.pools_data and len(homes) > 1:  # one client is a pool already
        together = {part: tuple(i for site in sites for i in getattr(site, part)) for part in ("training", "rating")}
        harm = {study: damage for site in sites for study, damage in site.damage.items()}
        sites = [replace(site, training=(), rating=(), damage={}) for site in sites]
        sites.append(SiteSpec(id=POOL, rank=max(rank_of.values()), training=together["training"], rating=together["rating"], damage=harm))
        training = (POOL,)
    seen = _load_weights(config, model)
    weights = {name: value.detach().numpy().copy() for name, value in model.weights.items()}
    refused = cohort.seen_by(seen)
    if refused and not config.data.allow_seen:
        raise InputError(
            f"model.weights: {config.model.weights} has seen {len(refused)} validation or test cases ({refused[0]}, ...); data.allow_seen=true overrides"
        )
    spec = HostSpec(
        model=backbone,
        sets=tuple(str(folder) for folder in folders),
        sites=tuple(sites),
        diseased=labels or {},
        task=config.task,
        seed=config.seed,
        alpha=config.lora.alpha,
        max_rank=max(rank_of.values()),
        settings=_settings(config),
        gates=strategy.gates,
        compress=scheme(config),
        eval_batch=config.evaluation.batch_size,
        augmentation=Augmentation(strength=config.training.augment) if config.training.augment else None,
        threads=config.training.threads,
        device=_device(config),
    )
    cache, no_cache = _cache(config, model, spec)
    spec = replace(spec, cache=cache)
    by_site = {site.id: site for site in sites}
    clients = tuple(
        Client(id=c, num_examples=len(by_site[c].training), rank=by_site[c].rank, scaling=config.lora.alpha / by_site[c].rank)
        for c in training
    )
    dials = make_dials(config, {client: by_site[client].training for client in training}, damaged)
    _rehearse(config, model, spec, clients, dials)
    return Plan(
        config=config,
        spec=spec,
        clients=clients,
        homes=homes,
        held_out=held_out,
        weights=weights,
        seen_cases=tuple(refused),
        data_sha256=obtain.digest(folders),
        splits={client: {part: getattr(split, part) for part in partition.PARTS} for client, split in splits.items()},
        left_out=cohort.left_out,
        cohort=cohort,
        dials=dials,
        no_cache=no_cache,
    )


def _harmful(studies: Sequence[str], damage: Damage) -> dict[str, Damage]:
    return dict.fromkeys(studies, damage) if damage.harmful else {}


def opening(strategy: Strategy, model: StackedModel, spec: HostSpec, clients: Sequence[Client]) -> State:
    """The server's state before the first round."""
    first = initial_tree(model, protocol_of(spec), clients[0].id, spec.max_rank)
    private = tuple(f"{adapter}." for adapter in strategy.adapters if adapter)
    return strategy.init({name: value for name, value in first.items() if not name.startswith(private)})


def _rehearse(config: Config, model: StackedModel, spec: HostSpec, clients: Sequence[Client], dials: Dials) -> None:
    """Let the strategy speak to every client once, so that what it refuses (mixed ranks) or lacks (rating cases) is known before a run starts.

    Raises InputError.
    """
    strategy = make_strategy(config, len(clients))
    epsilon(config, 1, len(clients))
    sampling.cohort(clients, config.sampling.kind, config.sampling.fraction, config.seed, 0)
    require_cohort(config, dials.fewest(clients))
    server = opening(strategy, model, spec, clients)
    if config.sampling.buffer is not None:
        require_asynchronous(strategy, server, clients, tuple(initial_tree(model, protocol_of(spec), clients[0].id, spec.max_rank)))
    rating = {site.id: site.rating for site in spec.sites}
    for client in clients:
        task = strategy.broadcast(server, client).task
        require_compressible(config, strategy, task)
        asks = bool(task.scores) or strategy.review is not None
        if asks and not rating[client.id]:
            raise InputError(
                f"client {client.id}: no rating cases, expected one at least for strategy.name {strategy.name} (see data.fractions)"
            )


def _load_weights(config: Config, model: StackedModel) -> Seen:
    """Fill the backbone with the configured weights; what they have seen. Raises InputError."""
    if config.model.weights is None:
        return Seen()
    path = zoo.find(config.model.weights, config.model.weights_folder, config.model.name)
    if config.model.decoder == "frozen" and not model.full and model.backbone.decoder_names and without_decoder(path):
        raise InputError(f"model.decoder: {path} is a pre-training checkpoint without a decoder: expected full or lora, found frozen")
    return zoo.load_weights(model.weights, model.backbone.head_names, path)


def _adapter_targets(config: Config, network: torch.nn.Module) -> tuple[str, ...]:
    """`lora.targets` or the model's own choice, and the decoder's convolutions where the decoder's policy says so. Raises InputError."""
    targets = zoo.DEFAULT_TARGETS[config.model.name] if config.lora.targets is None else tuple(config.lora.targets)
    of_decoder = tuple(getattr(network, "decoder_targets", ()))
    if config.model.decoder != "frozen" and not network.decoder_names:
        raise InputError(f"model.decoder: {config.model.name} for {config.task} has no decoder, found {config.model.decoder}")
    if config.model.decoder == "lora":
        return tuple(dict.fromkeys((*targets, *of_decoder)))
    against = [target for target in targets if target in of_decoder]
    if against:
        raise InputError(f"lora.targets: {against[0]} is of the decoder, expected model.decoder: lora, found {config.model.decoder}")
    return targets


def model_spec(config: Config, strategy: Strategy) -> ModelSpec:
    """The backbone and what of it is trained. Raises InputError, also for images that the backbone does not take."""
    network = zoo.build(config.model.name, config.task, config.model.size, config.data.size, config.model.sizes, config.seed)
    plain: tuple[str, ...] = tuple(network.head_names) if config.model.head == "trained" else ()
    plain += tuple(network.decoder_names) if config.model.decoder == "full" else ()
    blocks = config.lora.blocks
    _require_fit(config, network)
    return ModelSpec(
        name=config.model.name,
        task=config.task,
        size=config.model.size,
        image_size=config.data.size,
        sizes=config.model.sizes,
        seed=config.seed,
        checkpointing=config.model.checkpointing,
        targets=_adapter_targets(config, network),
        blocks=tuple(blocks) if isinstance(blocks, list) else blocks,
        dropout=config.lora.dropout,
        plain=plain,
        adapters=strategy.adapters,
        router=strategy.router,
        full=strategy.trains == "all",
    )


def _require_fit(config: Config, network: torch.nn.Module) -> None:
    """Raise InputError unless the network takes an image of `data.size`: one without storage goes through it (the network's is gone then)."""
    image = torch.empty((1, zoo.CHANNELS[config.task], *config.data.size), device="meta")
    try:
        network.to("meta")(image)
    except (RuntimeError, ValueError) as error:  # too small for its strides or its norms
        said = " ".join(str(error).split())[:120]
        raise InputError(f"data.size: {config.model.name} does not take images of {config.data.size}: {said}") from None


def _require_ranks(config: Config, strategy: Strategy, model: StackedModel) -> None:
    """Raise InputError for a rank that no adapted layer can have: a product B A has at most that of its smaller side."""
    if model.full:
        return
    sides = {path: layer.base.weight.flatten(1).shape for path, layer in model.layers.items()}
    path = max(sides, key=lambda path: min(sides[path]))
    rank = config.lora.rank
    given = {"lora.rank": max([rank] if isinstance(rank, int) else rank.values() if isinstance(rank, dict) else rank, default=0)}
    given |= {f"strategy.{config.strategy.name}, adapter {name}": own for name, own in strategy.adapters.items() if own}
    for key, largest in given.items():
        if largest > min(sides[path]):
            out, into = sides[path]
            raise InputError(f"{key}: expected at most {min(out, into)}, the smaller side of {path} ({out} x {into}), found {largest}")


def _settings(config: Config) -> Settings:
    t = config.training
    return Settings(
        lr=t.lr,
        rounds=t.rounds,
        batch_size=t.batch_size,
        local_epochs=t.local_epochs,
        local_steps=t.local_steps,
        optimiser=t.optimiser,
        weight_decay=t.weight_decay,
        schedule=t.schedule,
        clip=t.clip,
        dtype=getattr(torch, t.dtype),
    )


def _cache(config: Config, model: StackedModel, spec: HostSpec) -> tuple[features.CacheSpec | None, str]:
    """Which features of the frozen prefix are kept, or why none are. Raises InputError."""
    t, m = config.training, spec.model
    channels, frames = zoo.CHANNELS[config.task], 2 if config.task == "segmentation" else 1
    found = [] if m.full or t.cache == "off" else features.cuts(model.backbone, sorted(model.names), (channels, *m.image_size))
    dtype = {"fp32": "float32", "bf16": "bfloat16"}.get(t.cache, t.dtype)
    trained = sum(len(site.training) for site in spec.sites) * (t.cached_views or 1)
    scored = sum(len(site.validation) + len(site.rating) + len(site.test) for site in spec.sites)
    cut, why = features.choose(
        t.cache,
        found,
        number_bytes=getattr(torch, dtype).itemsize,
        images=frames * (trained + scored),
        bound_bytes=int(t.cache_gb * 1e9),
        random=bool(t.augment) and t.cached_views is None,
    )
    if cut is None:
        return None, why
    return features.CacheSpec(
        folder=str(obtain.cache_folder(config.data.cache) / FOLDER),
        bound_bytes=int(t.cache_gb * 1e9),
        first=cut.first,
        stage=cut.stage,
        dtype=dtype,
        function=repr((m.name, m.task, m.size, tuple(m.image_size), sorted(m.sizes.items()))),
        views=t.cached_views,
    ), why


def _device(config: Config) -> str:
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device: cuda was asked for, torch finds none on this machine")
    wanted = config.placement.gpus_per_client > 0 and torch.cuda.is_available()
    return "cuda" if config.training.device == "cuda" or (config.training.device == "auto" and wanted) else "cpu"


def _ranks(config: Config, clients: Sequence[str]) -> dict[str, int]:
    rank = config.lora.rank
    if isinstance(rank, int):
        return dict.fromkeys(clients, rank)
    if isinstance(rank, list):
        if len(rank) != len(clients):
            raise InputError(
                f"lora.rank: expected one rank for each of the {len(clients)} clients ({', '.join(clients)}), found {len(rank)}"
            )
        return dict(zip(clients, rank, strict=True))
    if set(rank) != set(clients):
        raise InputError(f"lora.rank: expected the clients {', '.join(clients)}, found {', '.join(sorted(rank))}")
    return dict(rank)


# ---- the run


def run_experiment(
    plan: Plan, out: Path, make_executor: Callable[[Plan], Executor], *, resume: bool = False, notes: Mapping[str, Any] | None = None
) -> Events:
    """Run (or go on with) an experiment into the folder `out`, telling what happens. The last event is {"event": "done", "summary": ...}.

    Whoever answers "start" or a "round" with STOP ends it there: adapters and a summary with `status: pruned` are written, test patients are not
    scored. `make_executor` decides where clients run and nothing else. Raises RunError if a client fails for good or a loss is not finite.
    """
    started = time.time()
    threadpool_limits(1, user_api="blas")  # of the server's sums and decompositions: other counts of threads give other last bits
    config, clients = plan.config, plan.clients
    strategy = make_strategy(config, len(clients))
    model = build_model(plan.spec.model, plan.weights)
    record = Record(out)
    write_json(out / "patients.json", {"patients": plan.cohort.patients(), "left_out": dict(plan.left_out)})
    progress, rows = Progress(round=0, server=opening(strategy, model, plan.spec, clients)), 0
    checkpoints = out / "checkpoints"
    if resume:
        found, words = checkpoint.latest(checkpoints)
        progress, rows = found or (progress, rows)
        record.rewind(rows, progress.round)
        for word in words:
            yield {"event": "note", "text": word}
    answer = yield {
        "event": "start",
        "clients": [c.id for c in clients],
        "rounds": config.training.rounds,
        "round": progress.round,
        "name": config.name,
    }
    s = config.sampling
    play = run_round if s.buffer is None else partial(run_buffered, size=s.buffer, exponent=s.staleness)
    if (cache := plan.spec.cache) is not None:
        views = "" if cache.views is None else f", {cache.views} views of each sample"
        yield {"event": "note", "text": f"computed once for each image: up to {cache.stage} ({cache.dtype}{views}; in {cache.folder})"}
    executor = Checked(make_executor(plan), clients, _shapes(model, plan), config.faults.malformed)
    try:
        if config.training.stack == "auto":  # once: what was chosen is part of the run from now on
            config, words = _measured(config, executor, len(clients))
            plan = replace(plan, config=config)
            write_text(out / "config.yaml", dump(config))
            yield {"event": "note", "text": words}
        stack = int(config.training.stack)
        executor.arrange(stack)
        executor.restore(progress.states)
        progress, broadcasts = receive(progress, strategy, clients, plan.weights)
        executor.set_base(progress.base)
        while progress.round < config.training.rounds and answer != STOP:
            t, began = progress.round, time.perf_counter()
            cohort = plan.dials.cohort(clients, t)
            conditions = plan.dials.conditions(cohort, t)
            progress, report = play(progress, broadcasts, strategy, clients, cohort, executor, stack=stack, conditions=conditions)
            version = progress.base_version
            progress, broadcasts = receive(progress, strategy, clients, plan.weights)
            if progress.base_version != version:
                executor.set_base(progress.base)
            validation: dict[str, dict[str, float]] = {}
            last = progress.round == config.training.rounds
            if last or (config.evaluation.every and progress.round % config.evaluation.every == 0):
                rows = _validate(plan, strategy, model, progress, broadcasts, executor)
                record.keep_cases(t, [(t, "validation", *row) for row in rows])
                validation = _validation_scores(rows, config.task)
            lines = round_lines(report, validation, progress, time.perf_counter() - began, clock_runs=plan.dials.clock_runs)
            if config.privacy.clip is not None:
                lines[-1] = {**lines[-1], "epsilon": epsilon(config, progress.round, len(clients))}
            if report.refused:
                lines[-1] = {**lines[-1], "refused": dict(report.refused)}
            record.append(lines)
            if progress.round % config.checkpoint.every == 0 or last:
                checkpoint.save(checkpoints, progress, record.rows)
                checkpoint.prune(checkpoints, config.checkpoint.keep)
            for client, why in report.refused.items():
                yield {"event": "note", "text": f"round {t + 1}: the update of client {client} is left out: {why}"}
            answer = yield {"event": "round", "round": t, "rounds": config.training.rounds, "lines": lines}
        if progress.round < config.training.rounds:
            summary = _end_early(plan, strategy, model, progress, broadcasts, executor, record, started, notes or {})
        else:
            summary = yield from _finish(plan, strategy, model, progress, broadcasts, executor, record, started, notes or {})
    finally:
        executor.close()
    yield {"event": "done", "summary": summary}


def _kept(plan: Plan) -> dict[str, Any]:
    """What of the passes was computed once, or why nothing was. Runs that agree in it agree in their bits, whoever computed the features."""
    cache = plan.spec.cache
    return {"why": plan.no_cache} if cache is None else {"stage": cache.stage, "dtype": cache.dtype, "views": cache.views, "batch": 1}


def _shapes(model: StackedModel, plan: Plan) -> dict[str, Tree]:
    """Client -> its model's names and shapes as it starts, without values."""
    protocol = protocol_of(plan.spec)
    of_rank = {rank: initial_tree(model, protocol, plan.clients[0].id, rank) for rank in {client.rank for client in plan.clients}}
    hollow = {rank: {n: np.broadcast_to(np.float32(0), v.shape) for n, v in tree.items()} for rank, tree in of_rank.items()}
    return {client.id: hollow[client.rank] for client in plan.clients}


def _measured(config: Config, executor: Executor, clients: int) -> tuple[Config, str]:
    """The configuration with as many clients in a pass as make the shortest round here, and words about it."""
    actors, room = executor.room()
    found = stacking.measure(executor.probe, stacking.most_per_pass(clients, actors), room)
    chosen = stacking.choose(found, clients, actors, room)
    training = config.training.model_copy(update={"stack": chosen})
    return config.model_copy(update={"training": training}), stacking.in_words(found, chosen)


# ---- models to score


def _models(
    plan: Plan, strategy: Strategy, model: StackedModel, progress: Progress, broadcasts: Mapping[str, Broadcast]
) -> tuple[dict[str, Tree], Mapping[str, float]]:
    """{"global": ..., client id: ...} as each would be used now, and the gates of a client's full model. The global one is what a newcomer
    is sent, with private parts as they start. Clients whose model is the global one are left out."""
    protocol = protocol_of(plan.spec)
    largest = max(plan.clients, key=lambda c: c.rank)
    newcomer = strategy.broadcast(progress.server, replace(largest, id="newcomer")).adapter
    trees: dict[str, Tree] = {"global": compose(model, protocol, largest.id, largest.rank, None, newcomer)}
    if not strategy.pools_data:
        for client in plan.clients:
            state: ClientState | None = progress.states.get(client.id)
            tree = compose(model, protocol, client.id, client.rank, state, broadcasts[client.id].adapter)
            if not _same_model(tree, trees["global"], strategy):
                trees[client.id] = tree
    return trees, strategy.gates


def _same_model(tree: Tree, other: Tree, strategy: Strategy) -> bool:
    """Whether two trees are one function: equal, or different only in private adapters whose product is zero."""
    if strategy.router or strategy.gates or (strategy.mixed_ranks and any(tree[n].shape != other[n].shape for n in tree)):
        return False
    silent = {n.replace(".lora_B", ".lora_A") for n in tree if n.endswith(".lora_B") and not np.any(tree[n]) and not np.any(other[n])}
    return all(n in silent or np.array_equal(tree[n], other[n]) for n in tree)


def _requests(trees: Mapping[str, Tree], gates: Mapping[str, float], data_of: Mapping[str, tuple[str, ...]]) -> list[Scored]:
    """The global part alone is used as it is; a client's full model with its gates."""
    return [
        Scored(model_of=name, tree=tree, gates={} if name == "global" else gates, data_of=data_of[name])
        for name, tree in trees.items()
        if data_of.get(name)
    ]


def _validate(
    plan: Plan, strategy: Strategy, model: StackedModel, progress: Progress, broadcasts: Mapping[str, Broadcast], executor: Executor
) -> list[EvalRow]:
    """In-client validation: each client's own model on its own validation cases; the global one at all of them."""
    trees, gates = _models(plan, strategy, model, progress, broadcasts)
    rows = executor.evaluate(
        _requests(trees, gates, {name: plan.homes if name == "global" else (name,) for name in trees}), "validation", full=False
    )
    shared = [client for client in plan.homes if client not in trees]
    return rows + [(c, c, *row[2:]) for c in shared for row in rows if row[0] == "global" and row[1] == c]


def _validation_scores(rows: Sequence[EvalRow], task: str) -> dict[str, dict[str, float]]:
    """{client: {metric: value}} of each client's own model."""
    scores: dict[str, dict[str, float]] = {}
    for client in sorted({row[1] for row in rows}):
        own = [row for row in rows if row[0] == row[1] == client]
        if task == "segmentation":
            values = [row[6] for row in own if row[5] == "dice" and row[4] == "all"]
            scores[client] = {"dice": float(np.mean(values))} if values else {}
        else:
            p = {row[2]: row[6] for row in own if row[5] == "probability"}
            y = {row[2]: row[6] for row in own if row[5] == "label"}
            scores[client] = (
                {
                    "likelihood": float(np.mean([p[k] if y[k] else 1 - p[k] for k in y])),
                    "accuracy": float(np.mean([(p[k] > 0.5) == bool(y[k]) for k in y])),
                }
                if y
                else {}
            )
    return scores


# ---- the end


def _finish(
    plan: Plan,
    strategy: Strategy,
    model: StackedModel,
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    executor: Executor,
    record: Record,
    started: float,
    notes: Mapping[str, Any],
) -> Generator[Event, str | None, dict[str, Any]]:
    """Score the last round's models on the test cases, once; write adapters, cases and summary."""
    config, everyone = plan.config, (*plan.homes, *plan.held_out)
    t = config.training.rounds - 1
    yield {"event": "phase", "text": "scoring the test patients"}
    trees, gates = _models(plan, strategy, model, progress, broadcasts)
    frozen = {**initial_tree(model, protocol_of(plan.spec), plan.clients[0].id, plan.spec.max_rank)}
    everywhere = dict.fromkeys([*trees, "frozen"], everyone)
    test = executor.evaluate(_requests(trees, gates, everywhere), "test", full=True)
    executor.set_base({})
    request = [Scored(model_of="frozen", tree=frozen, data_of=everyone)]
    test += executor.evaluate(request, "test", full=True)
    validation = [row for row in executor.evaluate([replace(request[0], data_of=plan.homes)], "validation", full=False)]
    executor.set_base(progress.base)
    own = [client for client in plan.homes if client not in trees]
    test += [(c, d, *row[2:]) for c in own for d in everyone for row in test if row[0] == "global" and row[1] == d]
    record.keep_cases(t + 1, [(t, "validation", *row) for row in validation])
    final_rows: list[tuple[Any, ...]] = [(t, "test", *row) for row in sorted(test, key=lambda row: row[:6])]
    rows = record.write_cases(final_rows)
    if config.task == "disease":
        thresholds = dict.fromkeys(sorted({row[2] for row in final_rows}), 0.5) | _thresholds(rows, t)  # 0.5 without validation cases
        final_rows += [(t, "validation", name, "-", "-", "-", "diseased", "threshold", value) for name, value in thresholds.items()]
        rows = record.write_cases(final_rows)
    table = [matrix.CaseRow(*row) for row in rows]
    hashes = _write_adapters(plan, strategy, model, progress, trees, gates, record.folder / "adapters")
    clients = list(plan.homes)
    final = matrix.final(table, task=config.task, clients=clients, seed=config.seed, replicates=config.evaluation.bootstrap)
    summary = {
        "status": "finished",
        **_about(plan, progress, executor, started, notes),
        "held_out": list(plan.held_out),
        "final": final,
        "cross_client": matrix.cross_client(table, metric=PRIMARY[config.task], clients=clients),
        "adapter_sha256": hashes,
        "by_dataset": matrix.by_group(table, task=config.task, clients=clients, group_of=plan.cohort.datasets)
        if plan.cohort.several
        else None,
        "protocol": {**plan.cohort.protocol.stamped(), "rating_to_training": config.data.rating_to_training}
        if plan.cohort.protocol
        else None,
        "crop": sorted({row.crop for row in plan.cohort.rows.values()}),
        "patients": {client: {part: len(ids) for part, ids in parts.items()} for client, parts in plan.splits.items()},
        "base": {"weights": config.model.weights, "has_seen": list(plan.seen_cases)},
        "parameters": {
            "sent": sum(v.size for v in broadcasts[plan.clients[0].id].adapter.values()),
            "frozen": sum(v.size for v in plan.weights.values()),
        },
    }
    if config.task == "segmentation" and config.evaluation.overlays:
        _overlays(plan, executor, trees, gates, table, config.evaluation.overlays, record.folder)
    (record.folder / "environment.txt").write_text(environment(), encoding="utf-8")
    write_json(record.folder / "summary.json", summary)
    return finite(summary)


def _end_early(
    plan: Plan,
    strategy: Strategy,
    model: StackedModel,
    progress: Progress,
    broadcasts: Mapping[str, Broadcast],
    executor: Executor,
    record: Record,
    started: float,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """What is left of an experiment that was asked to stop after a round."""
    trees, gates = _models(plan, strategy, model, progress, broadcasts)
    hashes = _write_adapters(plan, strategy, model, progress, trees, gates, record.folder / "adapters")
    about = _about(plan, progress, executor, started, notes)
    summary = {"status": "pruned", **about, "stopped_after": progress.round, "adapter_sha256": hashes}
    (record.folder / "environment.txt").write_text(environment(), encoding="utf-8")
    write_json(record.folder / "summary.json", summary)
    return finite(summary)


def _about(plan: Plan, progress: Progress, executor: Executor, started: float, notes: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of any run, whatever its end."""
    config = plan.config
    return {
        "schema": 1,
        "name": config.name,
        "task": config.task,
        "strategy": config.strategy.name,
        "seed": config.seed,
        "rounds": config.training.rounds,
        "clients": list(plan.homes),
        "bytes_up": progress.bytes_up,
        "bytes_down": progress.bytes_down,
        "epsilon": epsilon(config, progress.round, len(plan.clients)),
        "wall_seconds": time.time() - started,
        "virtual_seconds": progress.virtual_s if plan.dials.clock_runs else None,
        "faults": plan.dials.describe(),
        "driver": {},
        "actors": executor.describe(),
        "mlflow": None,
        "numerics": {
            "device": plan.spec.device,
            "threads": config.training.threads,
            "dtype": config.training.dtype,
            "stack": config.training.stack,
            "cache": _kept(plan),
            "torch": torch.__version__,
        },
        "versions": versions(),
        "config_sha256": config.sha256(),
        "data_sha256": plan.data_sha256,
        **notes,
    }


def _thresholds(rows: Sequence[tuple[Any, ...]], t: int) -> dict[str, float]:
    """Each model's threshold from its validation cases: a client's own, or those of all clients for the global and the frozen model."""
    found: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for round, split, model_of, data_of, patient, _, _, metric, value in rows:
        if split == "validation" and round == t and metric in ("probability", "label"):
            found.setdefault(model_of, {}).setdefault((data_of, patient), {})[metric] = value
    return {
        name: choose_threshold(np.array([c["label"] for c in cases.values()]), np.array([c["probability"] for c in cases.values()]))
        for name, cases in found.items()
    }


def _write_adapters(
    plan: Plan,
    strategy: Strategy,
    model: StackedModel,
    progress: Progress,
    trees: Mapping[str, Tree],
    gates: Mapping[str, float],
    folder: Path,
) -> dict[str, str]:
    """One folder a model: everything that was added to the original base."""
    kernels = {path: tuple(layer.base.kernel_size) for path, layer in model.layers.items() if hasattr(layer.base, "kernel_size")}
    about = {"base": plan.config.model.weights or ""}
    hashes = {}
    for name in ("global", *([] if strategy.pools_data else [c.id for c in plan.clients])):
        tree = trees.get(name, trees["global"])
        plain = {n: v for n, v in tree.items() if n in model.plain}
        factors = {a: lowrank.pairs(tree, a) for a in strategy.adapters}
        scalings = {a: plan.config.lora.alpha / len(next(iter(pairs.values()))[0]) for a, pairs in factors.items()}
        if strategy.router:
            apart = {a or "own": peft.combined(tree, {}, {a: scaling}, {}) for a, scaling in scalings.items()}
            router = {n: v for n, v in tree.items() if n.startswith("router.")}
            hashes[name] = peft.write_routed(folder / name, apart, router, plain, kernels, about)
            continue
        used = {a: s for a, s in scalings.items() if name != "global" or not a or any(np.any(b) for _, b in factors[a].values())}
        pairs = peft.combined(tree, progress.folded, used, {} if name == "global" else gates)
        hashes[name] = peft.write_folder(folder / name, pairs, plain, kernels, about)
    return hashes


def _overlays(
    plan: Plan,
    executor: Executor,
    trees: Mapping[str, Tree],
    gates: Mapping[str, float],
    table: Sequence[matrix.CaseRow],
    count: int,
    folder: Path,
) -> None:
    """Images, predictions and truths of the best, median and worst test patients, for the report's pictures."""
    scores = sorted(
        {
            (r.value, r.data_of, r.patient)
            for r in table
            if r.split == "test" and r.model_of == r.data_of and r.metric == "dice" and r.structure == "all"
        }
    )
    if not scores:
        return
    chosen = sorted({round(i) for i in np.linspace(0, len(scores) - 1, count)}, reverse=True)
    arrays: dict[str, np.ndarray] = {}
    for i in chosen:
        _, client, patient = scores[i]
        name = client if client in trees else "global"
        (request,) = _requests({name: trees[name]}, gates, {name: (client,)})
        for key, value in executor.predictions(request, client, patient).items():
            arrays[f"{client}/{patient}/{key}"] = np.ascontiguousarray(value)
    (folder / "plots").mkdir(exist_ok=True)
    write_arrays(folder / "plots" / "overlays.safetensors", arrays)


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    found = {"raylora": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "numpy", "ray", "peft", "monai", "mlflow", "pyarrow", "nibabel"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def environment() -> str:
    """Every installed distribution with its version, one a line, as `pip freeze` lists them."""
    found = {(each.metadata["Name"] or "").lower(): each.version for each in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


@functools.cache
def code_sha256() -> str:
    """Of the package's own Python files, by name and content."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@functools.cache
def git_commit(folder: Path) -> str | None:
    """The commit of the code that runs, with "+" if the tree has changes; None outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
