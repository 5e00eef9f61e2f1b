"""The experiment's configuration: typed sections, read from YAML files that may lie over one another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from raylora.core.errors import InputError
from raylora.core.values import merged, override, read_yaml
from raylora.schema import (
    Batch,
    Checked,
    Count,
    Kept,
    NonNegative,
    Number,
    Part,
    PartOrNone,
    Positive,
    Section,
    Seed,
    Share,
    Size,
    Spacing,
    Strength,
    Threads,
    Unbounded,
    Whole,
    numbers,
    validated,
)

OF_MANY = {"space": ("sweep", "sweep"), "dials": ("stress campaign", "stress")}  # a key that only files of many experiments have
Vendor = Literal["Siemens", "Philips", "GE", "Canon"]


class Phantom(Section):
    """The cohort that `dataset: phantom` makes on demand."""

    patients: Annotated[Count, Field(le=100_000)] = 100
    layout: Literal["acdc", "mnms", "mnms2"] = "mnms"
    seed: Seed = 0
    shift: Strength = 1.0  # strength of the vendors' differences in appearance
    severity: Strength = 1.0  # factor on how far disease is from normal
    vendors: Annotated[list[Vendor], Field(min_length=1)] | None = None  # default: all that the layout has


class Source(Section):
    """One data set of several."""

    dataset: Literal["phantom", "acdc", "mnms", "mnms2"]
    root: str | None = None  # a download, or a prepared folder; phantoms are made on demand
    phantom: Phantom | None = None  # the cohort of a phantom source; default: data.phantom

    @model_validator(mode="after")
    def _made_or_found(self) -> Source:
        if self.dataset == "phantom" and self.root is not None:
            raise ValueError(f"root is for downloads, phantoms are made on demand, found {self.root!r}")
        if self.dataset != "phantom" and self.phantom is not None:
            raise ValueError(f"phantom is for the data set phantom, found it with {self.dataset}")
        return self


class Data(Section):
    """Where studies come from and how they are divided."""

    dataset: Literal["phantom", "acdc", "mnms", "mnms2"] | Annotated[list[Source], Field(min_length=1)] = "phantom"
    root: str | None = None  # a download (prepared once into a cache) or a prepared folder; of several data sets: the folder they lie in
    cache: str | None = None  # where prepared data are kept; default: RAYLORA_CACHE or ~/.cache/raylora
    split: Literal["federated", "official"] = "federated"
    split_seed: Seed = 0
    fractions: tuple[Part, Part, PartOrNone, Part] = (0.6, 0.1, 0.1, 0.2)  # training, validation, rating, test patients
    spacing_mm: tuple[Spacing, Spacing, Spacing] = (1.5, 1.5, 10.0)
    size: tuple[Size, Size, Size] = (128, 128, 16)  # voxels of the crop; z is padded with zeros up to this count
    crop: Literal["centre", "motion", "label"] = "centre"  # of the image; of what moves between ED and ES; of the ED label's LV (an oracle)
    protocol: Literal["cmr-fed-v1"] | None = None  # clients and split as a shipped protocol says; its hash stands in every table
    rating_to_training: bool = False  # train on the rating cases too (the fair comparison for methods that do not rate)
    allow_seen: bool = False  # evaluate on cases that the base weights have seen (marked in every table)
    phantom: Phantom = Phantom()

    @model_validator(mode="after")
    def _root_of_something(self) -> Data:
        given = self.dataset if isinstance(self.dataset, list) else [Source(dataset=self.dataset)]
        if self.root is not None and all(source.dataset == "phantom" or source.root is not None for source in given):
            raise ValueError(
                f"root is for downloads that have none of their own, here there are none (phantoms are made on demand), found {self.root!r}"
            )
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The data sets; of several, those without a `root` lie in the folder `root` under their own names."""
        if not isinstance(self.dataset, list):
            return (Source(dataset=self.dataset, root=self.root),)
        inside: dict[str, str] = {
            s.dataset: f"{self.root}/{s.dataset}" for s in self.dataset if self.root is not None and s.dataset != "phantom"
        }
        return tuple(s if s.root is not None else s.model_copy(update={"root": inside.get(s.dataset)}) for s in self.dataset)

    @property
    def phantom_seeds(self) -> tuple[int, ...]:
        """Of the synthetic cohorts among the data sets."""
        return tuple(sorted({(source.phantom or self.phantom).seed for source in self.sources if source.dataset == "phantom"}))


class Clients(Section):
    """How studies become clients."""

    by: Literal["vendor", "centre", "pathology", "iid", "dirichlet"] = "vendor"
    count: Count | None = None  # for iid and dirichlet
    alpha: Positive = 0.5  # of `by: dirichlet`, over groups
    sizes: Unbounded = math.inf  # of the Dirichlet over how many patients each of `by: iid` has; inf: equally many
    held_out: list[str] = []  # ids that never train and are evaluated as unseen
    unseen: list[Literal["acdc", "mnms", "mnms2"]] = []  # data sets that never train: each of their vendors is a held-out client

    @model_validator(mode="after")
    def _a_count(self) -> Clients:
        if self.count is not None and self.by not in ("iid", "dirichlet"):
            raise ValueError(
                f"count is for by: iid and dirichlet; the data say how many clients there are by {self.by}, found {self.count}"
            )
        return self


class Model(Section):
    """The frozen backbone."""

    name: Literal["unet", "vit", "cinema"] = "unet"
    weights: str | None = (
        None  # a path, a name in the weights folder, CineMA's published name, shipped weights; nothing: random, from `seed`
    )
    weights_folder: str | None = None  # where names are looked for; default: RAYLORA_WEIGHTS
    size: Literal["small", "paper", "base", "w1", "w2"] = "small"  # w1, w2: the benchmark's, see benchmarks/peers
    sizes: dict[str, Any] = {}  # constructor arguments over the named size
    head: Literal["trained", "frozen"] = "trained"
    decoder: Literal["frozen", "full", "lora"] = "frozen"  # of a segmenter; full: beside lora.targets that leave it out; lora: CineMA's
    checkpointing: bool = False  # recompute activations in the backward pass instead of keeping them


class Lora(Section):
    """The adapters."""

    rank: Count | list[Count] | dict[str, Count] = 4  # one, one per client in id order, or by client id
    alpha: Positive = 8.0  # scaling = alpha / rank
    targets: list[str] | None = None  # short names of the model's layers; default: the model's own choice
    blocks: Literal["all"] | Count | list[Whole] = "all"  # all, the last K, or a list of zero-based numbers
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0


class StrategyConfig(BaseModel):
    """A registered name or `package.module:factory`; everything else is an option of that strategy."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "fedit"

    @model_validator(mode="before")
    @classmethod
    def _something(cls, values: Any) -> Any:
        if values == {}:
            raise ValueError("expected a name, found nothing")
        if isinstance(values, str):  # strategy=fedprox
            return {"name": values}
        if not isinstance(values, Mapping):
            return values
        return {key: value if key == "name" else numbers(value) for key, value in values.items()}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Training(Section):
    """Rounds and the local loop."""

    rounds: Annotated[Count, Field(le=100_000)] = 10
    local_epochs: Count | None = None
    local_steps: Count | None = None
    batch_size: Batch = 4
    lr: Positive = 1e-3
    optimiser: Literal["adamw", "sgd"] = "adamw"  # its state starts afresh in each phase of each round
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine"] = "constant"  # over the rounds
    clip: Positive | None = None  # of each client's gradient norm
    augment: Share = 0.0  # strength; 0: none
    threads: Threads = 1  # of torch in each actor; changes bits
    stack: Count | Literal["auto"] = 1  # clients trained in one pass; auto: measured once, written to the run's config.yaml
    cache: Kept = "auto"  # what precedes the first trained stage; auto: as computed, where it pays
    cached_views: Count | None = None  # with augment: so many random views of each sample are kept, and training draws from them
    cache_gb: Annotated[Positive, Field(le=1e6)] = 20.0  # of all kept features, in data.cache; the oldest make room
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if isinstance(values, dict):
            if values.get("local_epochs") is not None and values.get("local_steps") is not None:
                raise ValueError("give local_epochs or local_steps, not both")
            if values.get("local_epochs") is None and values.get("local_steps") is None:
                return {**values, "local_epochs": 1}
        return values

    @model_validator(mode="after")
    def _views_of_something(self) -> Training:
        if self.cached_views is not None and not self.augment:
            raise ValueError("cached_views are of training.augment, which is 0")
        if self.cached_views is not None and self.cache == "off":
            raise ValueError("cached_views are kept by training.cache, which is off")
        if self.cache in ("fp32", "bf16") and self.augment and self.cached_views is None:
            raise ValueError(f"cache {self.cache} with random augmentation needs cached_views, how many views of a sample are kept")
        return self


class Sampling(Section):
    """Which clients are asked in a round, and whose answers the server waits for."""

    kind: Literal["all", "uniform", "size", "poisson"] = "all"  # poisson: each by itself, as privacy accounting assumes
    fraction: Annotated[Number, Field(gt=0, le=1)] = 1.0
    wait_for: Annotated[Number, Field(gt=0, le=1)] = 1.0  # the share of those asked whose answers end the round; below 1: over-selection
    deadline_s: Unbounded = math.inf  # virtual seconds of a round; what has not arrived by then is lost
    buffer: Count | None = None  # asynchronous rounds: the server goes on whenever so many answers have arrived
    staleness: NonNegative = 0.5  # a of the weight (1 + versions missed)^-a of an answer in the buffer

    @model_validator(mode="after")
    def _a_draw(self) -> Sampling:
        if self.kind == "all" and self.fraction < 1:
            raise ValueError("a fraction below 1 needs kind uniform, size or poisson")
        return self


class Evaluation(Section):
    """Validation while training; the test is always and only after the last round."""

    every: Whole = 1  # rounds between validations; 0: only after the last
    batch_size: Batch = 4
    bootstrap: Annotated[Count, Field(le=100_000)] = 2000  # resamplings of an interval
    overlays: Whole = 3  # test patients drawn in the report: best, median, worst


class Placement(Section):
    """Where clients run. It never changes a number."""

    cpus_per_client: Positive = 1.0
    gpus_per_client: NonNegative = 0.0
    clients_per_actor: Count | Literal["auto"] = 1
    timeout_s: Positive = 3600.0  # of one client's work in one round


class Tracking(Section):
    """MLflow. Best effort: it never ends or slows a run."""

    uri: str | None = "sqlite:///mlflow.db"  # null: no MLflow
    experiment: str = "raylora"
    client_runs: Whole = 16  # up to so many clients have runs of their own


class Checkpoint(Section):
    every: Count = 1  # rounds
    keep: Count | Literal["all"] = 2


class Faults(Section):
    """Simulated misbehaviour, neutral by default: drawn before a round from (seed, round, client), or once from (seed, client)."""

    # Training data; who is scored stays as it is.
    label_noise: Share = 0.0  # chance that a patient's class is wrong; that a voxel takes the label of a neighbour
    contour_mm: NonNegative = 0.0  # spread over the clients of how much farther out or in their annotators draw every contour
    missing_structure: Share = 0.0  # of the clients: their annotators leave out one structure
    missing_frames: Share = 0.0  # chance that a study lacks one of its frames
    missing_slices: Share = 0.0  # chance of each slice

    # Taking part.
    dropout: Share = 0.0  # chance that a client that was asked never answers
    late_s: NonNegative = 0.0  # mean of the exponential delay before a client starts
    slow: Share = 0.0  # chance that a client computes slowly in a round
    slow_factor: Annotated[Number, Field(ge=1)] = 10.0  # so many times longer
    joins: Share = 0.0  # of the clients: they come later, before a round drawn uniformly
    leaves: Share = 0.0  # of the clients: they go for good, likewise

    # Devices, as network.speed_spread draws them.
    rank_halvings: Whole = 0  # the weakest class of devices: so many times; the best class: never

    # Byzantine clients.
    byzantine: Share = 0.0  # of the clients, the same in all rounds
    attack: Literal["negate", "gaussian", "label_flip", "stale", "collude"] = "negate"
    strength: NonNegative = 1.0  # factor on the movement that they claim

    # Whoever sends something else than what was asked for, simulated or not.
    malformed: Literal["stop", "exclude"] = "stop"  # end the run; leave the update out, with a word


# One for all, or by client id (others keep the neutral value).
Speed = Positive | dict[str, Positive]
Bandwidth = Unbounded | dict[str, Unbounded]


class Network(Section):
    """Lines and devices on the virtual clock, neutral by default: messages and steps take no time."""

    up_mbit: Bandwidth = math.inf  # Mbit/s; of the median client where there is a spread
    down_mbit: Bandwidth = math.inf
    spread: NonNegative = 0.0  # log-normal, over the clients' lines
    latency_s: NonNegative = 0.0  # of one message
    outage: Share = 0.0  # chance that a client's line is down when it wants to answer
    outage_s: NonNegative = 60.0  # so long
    step_s: NonNegative = 0.0  # one local step on a device of speed 1
    speed: Speed = 1.0
    speed_spread: NonNegative = 0.0  # log-normal, over the clients' devices


class Privacy(Section):
    """Client-level differential privacy of what the server makes of the updates; off without a clip."""

    clip: Positive | None = None  # S: the norm that what a client moves in a round is cut to
    sigma: Annotated[NonNegative, Field(le=1e6)] = 0.0  # z: the noise's standard deviation over S
    delta: Annotated[Number, Field(gt=0, lt=1)] = 1e-5  # of the epsilon that is logged; below 1 / clients
    accountant: Literal["rdp", "pld"] = "rdp"  # quick; or tighter, not for sampling.kind uniform


class Compress(Section):
    """Lossy compression of the movements that clients send; none by default."""

    kind: Literal["none", "quantise", "top_k"] = "none"  # stochastic rounding; the largest elements, the others remembered
    bits: Annotated[Count, Field(le=16)] = 8  # of quantise, an element
    share: Annotated[Number, Field(gt=0, le=1)] = 0.1  # of top_k: of the elements


class Config(Section):
    """One federated experiment."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    task: Literal["segmentation", "disease"] = "segmentation"
    seed: Seed = 0
    data: Data = Data()
    clients: Clients = Clients()
    model: Model = Model()
    lora: Lora = Lora()
    strategy: StrategyConfig = StrategyConfig(name="fedit")
    training: Training = Training(local_epochs=1)
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    placement: Placement = Placement()
    faults: Faults = Faults()
    network: Network = Network()
    privacy: Privacy = Privacy()
    compress: Compress = Compress()
    tracking: Tracking = Tracking()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def clock_runs(self) -> bool:
        """Whether anything takes virtual time."""
        f, n = self.faults, self.network
        return bool(n.step_s or n.latency_s or n.outage or f.late_s) or any(rate != math.inf for rate in (n.up_mbit, n.down_mbit))

    def sha256(self) -> str:
        """Of what decides the numbers, and of where data and weights are found: everything but the name, placement, tracking, checkpoints."""
        return digest(decisive(self.as_dict()))


def decisive(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an experiment's values that decide its numbers."""
    return {key: value for key, value in values.items() if key not in ("name", "placement", "tracking", "checkpoint")}


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


class Pretrain(Section):
    """The making of a small foundation model: supervised for segmentation, masked auto-encoding for disease."""

    name: str = Field(default="foundation", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    task: Literal["segmentation", "disease"] = "segmentation"
    seed: Seed = 0
    data: Data = Data()
    model: Model = Model()
    steps: Count = 1000
    batch_size: Batch = 4
    lr: Positive = 2e-3  # warmed up over the first twentieth of the steps, then a half cosine to zero
    weight_decay: NonNegative = 0.01
    augment: Share = 0.0
    mask: Annotated[Number, Field(gt=0, lt=1)] = 0.75  # share of the patches that masked auto-encoding hides
    threads: Threads = 2
    half: bool = True  # store the weights as float16


def load_pretrain(path: Path, overrides: Sequence[str] = ()) -> Pretrain:
    """Read a YAML file of `raylora pretrain`, apply ``KEY=VALUE`` overrides and check every key (it has no `base`). Raises InputError."""
    return validated(Pretrain, override(read_yaml(path), overrides), str(path))


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``KEY=VALUE`` overrides and check every key. Raises InputError.

    A key `base` names another file, relative to this one, that this one is laid over.
    """
    return from_mapping(read_yaml(path), path, overrides)


def from_mapping(values: Mapping[str, Any], path: Path, overrides: Sequence[str] = ()) -> Config:
    """As `load`, for values that stand in the file `path`: a `base` is relative to it."""
    for key, (what, command) in OF_MANY.items():
        if key in values:
            raise InputError(f"{path}: {key}: this is the file of a {what}, not of an experiment: `raylora {command} {path}` runs it")
    return from_dict(_laid_over_base(override(values, overrides), path), origin=str(path))


def load_around(schema: type[Checked], path: Path, overrides: Sequence[str] = ()) -> Checked:
    """Read a file of many experiments (a sweep, a stress campaign), whose key `base` is the one that they vary: in place, or as its path.

    An override whose first word is a key of the file's goes there (``seeds=[0,1]``), every other one to the base (``training.rounds=4``).
    Raises InputError.
    """
    own = [item for item in overrides if item.partition("=")[0].split(".")[0].strip() in schema.model_fields]
    rest = [item for item in overrides if item not in own]
    values = override(read_yaml(path), own)
    base = values.get("base")
    if isinstance(base, str):
        config = load((path.parent / base).resolve(), rest)
    elif isinstance(base, dict):
        config = from_mapping(base, path, rest)
    else:
        found = repr(base) if "base" in values else "nothing (`raylora run` is for the file of one experiment)"
        raise InputError(f"{path}: base: expected the path of an experiment's YAML file, or an experiment, found {found}")
    return validated(schema, {**values, "base": config.as_dict()}, str(path))


def _laid_over_base(values: Mapping[str, Any], path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values over those of the file that their key `base` names, section by section."""
    own = {key: value for key, value in values.items() if key != "base"}
    if values.get("base") is None:
        return own
    if not isinstance(values["base"], str):
        raise InputError(f"{path}: base: expected the path of another YAML file, found {values['base']!r}")
    below, seen = (path.parent / values["base"]).resolve(), (*above, path.resolve())
    if below in seen:
        raise InputError(f"{path}: base: {values['base']} is laid over this file itself")
    return merged(_laid_over_base(read_yaml(below), below, seen), own)


def one_length(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted changes of a resolved configuration, which has one of these two keys (by default `local_epochs: 1`): the other takes its place."""
    epochs, steps = "training.local_epochs", "training.local_steps"
    given = [key for key in (epochs, steps) if changes.get(key) is not None]
    return {**dict.fromkeys({epochs, steps} - changes.keys() if given else ()), **changes}


def from_dict(values: Mapping[str, Any], origin: str = "config") -> Config:
    """Check plain values against the schema. Raises InputError naming the key, what was expected and what was found."""
    return validated(Config, values, origin)


def dump(config: Section) -> str:
    """The resolved values as YAML that reads back to the same."""
    return yaml.safe_dump(_plain(config.as_dict()), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
