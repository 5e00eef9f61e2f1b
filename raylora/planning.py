"""What an experiment needs, from its configuration alone: data, model, clients, and whatever is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raylora.cohort import Cohort, gather
from raylora.config import Config
from raylora.core import sampling
from raylora.core.errors import InputError
from raylora.core.types import Client, Strategy
from raylora.data import obtain, partition
from raylora.data.damage import Damage
from raylora.data.features import FOLDER
from raylora.data.manifest import read_manifest
from raylora.data.shards import require_shards
from raylora.data.transforms import augmentation
from raylora.dials import Dials, attacks, damages, make_dials, ranks, require_asynchronous
from raylora.federation import build
from raylora.federation.protocol import initial_tree
from raylora.federation.spec import HostSpec, ModelSpec, SiteSpec, protocol_of
from raylora.method import epsilon, make_strategy, require_cohort, require_compressible, scheme
from raylora.models import files, zoo
from raylora.models.arrays import read_names
from raylora.models.files import is_pretraining
from raylora.models.outline import Outline
from raylora.models.seen import Seen
from raylora.models.stacked import StackedModel
from raylora.plan import Plan, opening
from raylora.training import features
from raylora.training.local import phase_ends
from raylora.training.settings import CacheSpec, Settings

POOL = "pooled"  # the one client of a strategy that pools all data


def plan_to_run(config: Config, say: obtain.Say = lambda what, done, total: None) -> Plan:
    """`make_plan` for a run that begins now: every study of the prepared sets is there, whole by its size. Raises InputError."""
    plan = make_plan(config, say)
    for folder in map(Path, plan.spec.sets):
        require_shards(folder, {row.id: row.shard_bytes for row in read_manifest(folder).rows})
    return plan


def adapted_model(config: Config) -> tuple[Strategy, ModelSpec, StackedModel, Path | None]:
    """The strategy, its model built once, and the file with the model's weights: what can be found wrong without a look at the data.

    Raises InputError.
    """
    strategy = make_strategy(config)
    backbone = model_spec(config, strategy)
    model = build.build_model(backbone)
    _require_ranks(config, strategy, model)
    return strategy, backbone, model, _weights_file(config, model)


def make_plan(config: Config, say: obtain.Say = lambda what, done, total: None) -> Plan:
    """Prepare the data, divide it, build the model once: whatever is wrong is found here, from the manifests alone. Raises InputError."""
    strategy, backbone, model, weights_file = adapted_model(config)
    folders = obtain.prepared(config.data, say)
    cohort = gather(config, folders)
    splits, held_out, labels = cohort.splits, cohort.held_out, cohort.diseased
    homes = tuple(client for client in splits if client not in held_out)
    rank_of, damaged = ranks(config, _ranks(config, homes)), damages(config, homes)
    sites, training = _sites(config, splits, homes, rank_of, damaged), homes
    if strategy.pools_data and len(homes) > 1:  # one client is a pool already
        sites, training = _pooled(sites, max(rank_of.values())), (POOL,)
    seen = Seen() if weights_file is None else zoo.load_weights(model.weights, model.backbone.head_names, weights_file)
    weights = {name: value.detach().numpy().copy() for name, value in model.weights.items()}
    for array in weights.values():
        array.flags.writeable = False
    seen_cases = _seen_cases(config, cohort, seen, folders)
    spec = HostSpec(
        model=backbone,
        sets=tuple(str(folder) for folder in folders),
        sets_sha256=tuple(read_manifest(folder).data_sha256 for folder in folders),
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
        augmentation=augmentation(config.training.augment, config.data.spacing_mm),
        threads=config.training.threads,
        dtype=config.training.dtype,
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
    outline = replace(model.outline, plain={name: weights[name] for name in model.plain})
    _rehearse(config, outline, spec, clients, dials)
    return Plan(
        config=config,
        spec=spec,
        clients=clients,
        homes=homes,
        held_out=held_out,
        weights=weights,
        outline=outline,
        seen_cases=tuple(seen_cases),
        data_sha256=obtain.digest(folders),
        splits={client: {part: getattr(split, part) for part in partition.PARTS} for client, split in splits.items()},
        left_out=cohort.left_out,
        cohort=cohort,
        dials=dials,
        no_cache=no_cache,
        notes=(*cohort.notes(), *_unknown(config, seen)),
    )


def _sites(
    config: Config, splits: Mapping[str, partition.Split], homes: Sequence[str], rank_of: Mapping[str, int], damaged: Mapping[str, Damage]
) -> list[SiteSpec]:
    """Every client with its patients; those that train (`homes`) with what is wrong with their data, and how they lie."""
    extra, liars = config.data.rating_to_training, attacks(config, homes)
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
    return [replace(s, damage=_harmful(s.training, damaged[s.id]), attack=liars.get(s.id)) if s.id in homes else s for s in sites]


def _pooled(sites: Sequence[SiteSpec], rank: int) -> list[SiteSpec]:
    """The sites without data to train on, and one that has everybody's."""
    training, rating = (tuple(i for site in sites for i in getattr(site, part)) for part in ("training", "rating"))
    harm = {study: damage for site in sites for study, damage in site.damage.items()}
    pool = SiteSpec(id=POOL, rank=rank, training=training, rating=rating, damage=harm)
    return [*(replace(site, training=(), rating=(), damage={}) for site in sites), pool]


def _seen_cases(config: Config, cohort: Cohort, seen: Seen, folders: Sequence[Path]) -> list[str]:
    """The patients who are scored though the base weights have seen them. Raises InputError for any unless `data.allow_seen`."""
    found, weights = cohort.seen_by(seen), config.model.weights
    if again := sorted(seen.phantom_seeds.intersection(config.data.phantom_seeds)):
        if not config.data.allow_seen:
            raise InputError(
                f"data.phantom.seed: {weights} was made from the phantoms of seed {again[0]}, whose hearts are the same under every scanner: "
                "expected another seed; data.allow_seen=true overrides"
            )
        synthetic = {row.id for row in obtain.studies(obtain.of_phantoms(config.data, folders, seen.phantom_seeds))}
        found = [id for id in cohort.scored if id in synthetic or id in found]
    if found and not config.data.allow_seen:
        raise InputError(
            f"model.weights: {weights} has seen {len(found)} validation or test cases ({found[0]}, ...); data.allow_seen=true overrides"
        )
    return found


def _unknown(config: Config, seen: Seen) -> list[str]:
    """That nobody can say whom the base weights have seen."""
    if seen.told:
        return []
    return [
        f"model.weights: {config.model.weights} does not say whom it has seen: that none of the scored patients is among them is not checked"
    ]


def _harmful(studies: Sequence[str], damage: Damage) -> dict[str, Damage]:
    return dict.fromkeys(studies, damage) if damage.harmful else {}


def _rehearse(config: Config, outline: Outline, spec: HostSpec, clients: Sequence[Client], dials: Dials) -> None:
    """Let the strategy speak to every client once, so that what it refuses (mixed ranks) or lacks (rating cases) is known before a run starts.

    Raises InputError.
    """
    strategy = make_strategy(config, len(clients))
    epsilon(config, 1, len(clients))
    sampling.cohort(clients, config.sampling.kind, config.sampling.fraction, config.seed, 0)
    require_cohort(config, lambda: dials.fewest(clients))
    server = opening(strategy, outline, spec, clients)
    if config.sampling.buffer is not None:
        require_asynchronous(
            strategy, server, clients, tuple(initial_tree(outline, protocol_of(spec), clients[0].id, spec.max_rank)), config.training.rounds
        )
    rating, lacking = {site.id: site.rating for site in spec.sites}, []
    for client in clients:
        task = strategy.broadcast(server, client).task
        require_compressible(config, strategy, task)
        steps = dials.steps[client.id]
        if 0 in np.diff([0, *phase_ends(task.phases, steps)]):
            raise InputError(
                f"client {client.id}: {steps} local steps a round, too few for the {len(task.phases)} phases of strategy.name "
                f"{strategy.name}: one of them would never be trained (see training.local_steps, local_epochs, batch_size)"
            )
        if (task.scores or strategy.review is not None) and not rating[client.id]:
            lacking.append(client.id)
    if lacking:
        small = f"the third of data.fractions, {config.data.fractions[2]:g}, is too small for them"
        key = "data.rating_to_training: they are trained on" if config.data.rating_to_training else small
        patients = {site.id: sum(map(len, (site.training, site.validation, site.rating, site.test))) for site in spec.sites}
        who = f"client{'s' * (len(lacking) > 1)} {', '.join(f'{client} ({patients[client]} patients)' for client in lacking)}"
        raise InputError(f"{who}: no rating cases, expected one at least for strategy.name {strategy.name} ({key})")


def _weights_file(config: Config, model: StackedModel) -> Path | None:
    """The file with the configured weights, None for weights drawn from the seed. Raises InputError."""
    if config.model.weights is None:
        return None
    path = files.find(config.model.weights, config.model.weights_folder, config.model.name)
    names = read_names(path)
    if is_pretraining(names) and config.model.name != "cinema":
        raise InputError(
            f"model.weights: {path} is CineMA's pre-training checkpoint: expected model.name: cinema, found {config.model.name}"
        )
    head = model.backbone.head_names
    if config.model.head == "frozen" and not model.full and not set(names) & set(head):
        raise InputError(f"model.head: {path} has no head ({head[0]}): a frozen one would stay as it is drawn, expected trained")
    if config.model.decoder == "frozen" and not model.full and model.backbone.decoder_names and is_pretraining(names):
        raise InputError(f"model.decoder: {path} is a pre-training checkpoint without a decoder: expected full or lora, found frozen")
    return path


def _adapter_targets(config: Config, network: torch.nn.Module) -> tuple[str, ...]:
    """`lora.targets` or the model's own choice, and the decoder's convolutions where the decoder's policy says so. Raises InputError."""
    targets = zoo.DEFAULT_TARGETS[config.model.name] if config.lora.targets is None else tuple(config.lora.targets)
    of_decoder = tuple(getattr(network, "decoder_targets", ()))
    if config.model.decoder != "frozen" and not network.decoder_names:
        raise InputError(f"model.decoder: {config.model.name} for {config.task} has no decoder, found {config.model.decoder}")
    if config.model.decoder == "lora" and not of_decoder:
        known = ", ".join(network.adapter_targets)
        raise InputError(
            f"model.decoder: lora.targets places the adapters of {config.model.name} ({known}), expected frozen or full, found lora"
        )
    if config.model.decoder == "lora":
        return tuple(dict.fromkeys((*targets, *of_decoder)))
    against = [target for target in targets if target in of_decoder]
    if against:
        raise InputError(f"lora.targets: {against[0]} is of the decoder, expected model.decoder: lora, found {config.model.decoder}")
    return targets


def model_spec(config: Config, strategy: Strategy) -> ModelSpec:
    """The backbone and what of it is trained. Raises InputError, also for images that the backbone does not take."""
    if strategy.trains == "all" and config.model.head == "frozen":
        raise InputError(f"model.head: {config.strategy.name} trains every weight, the head's too: expected trained, found frozen")
    network = zoo.build(config.model.name, config.task, config.model.size, config.data.size, config.model.sizes, config.seed)
    plain: tuple[str, ...] = tuple(network.head_names) if config.model.head == "trained" else ()
    plain += tuple(network.decoder_names) if config.model.decoder == "full" else ()
    blocks = config.lora.blocks
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
    )


def _cache(config: Config, model: StackedModel, spec: HostSpec) -> tuple[CacheSpec | None, str]:
    """Which features of the frozen prefix are kept, or why none are. Raises InputError."""
    t, m = config.training, spec.model
    channels, frames = zoo.CHANNELS[config.task], 2 if config.task == "segmentation" else 1
    image = (channels, *m.image_size)
    found = [] if m.full or t.cache == "off" else features.cuts(model.backbone, sorted(model.outline.names), image)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}.get(t.cache, t.dtype)
    trained = sum(len(site.training) for site in spec.sites) * (t.cached_views or 1)
    scored = sum(len(site.validation) + len(site.rating) + len(site.test) for site in spec.sites)
    cut, why = features.choose(
        t.cache,
        found,
        number_bytes=getattr(torch, dtype).itemsize,
        image_bytes=math.prod(image) * np.dtype(np.float32).itemsize,
        images=frames * (trained + scored),
        bound_bytes=int(t.cache_gb * 1e9),
        random=bool(t.augment) and t.cached_views is None,
    )
    if cut is None:
        return None, why
    return CacheSpec(
        folder=str(obtain.cache_folder(config.data.cache) / FOLDER),
        bound_bytes=int(t.cache_gb * 1e9),
        first=cut.first,
        stage=cut.stage,
        dtype=dtype,
        function=repr((m.name, m.task, m.size, tuple(m.image_size), sorted(m.sizes.items()))),
        views=t.cached_views,
    ), why


def _device(config: Config) -> str:
    """What clients are asked to compute on. With a share of a GPU each, they know best what is there: their machine may not be this one."""
    wanted, shares = config.training.device, config.placement.gpus_per_client > 0
    if wanted == "cuda" and not shares:
        build.device_here(wanted)
    return "cpu" if wanted == "auto" and not shares else wanted


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
