"""From a plain description to the model, the studies and the clients of a process."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from raylora.core.errors import InputError
from raylora.data.damage import CLEAN
from raylora.data.shards import PreparedSet, PreparedStudy
from raylora.federation.client import Shard, Site
from raylora.federation.host import Host
from raylora.federation.spec import HostSpec, ModelSpec, SiteSpec, protocol_of
from raylora.models import zoo
from raylora.models.stacked import StackedModel, adapted_modules, read_only
from raylora.training.features import Cached, Prefix
from raylora.training.inference import EvalCase
from raylora.training.samples import Frames, Samples, Studies


def build_model(
    spec: ModelSpec, weights: Mapping[str, np.ndarray] | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> StackedModel:
    """The backbone with adapters in place. `weights` stand in place of those drawn from the seed, which are then never drawn; on a CPU
    they are used where they lie, never written."""
    with contextlib.nullcontext() if weights is None else torch.device("meta"):
        backbone = zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, spec.seed, draw=weights is None)
    if spec.checkpointing:
        if spec.dropout:
            raise InputError("model.checkpointing: not with lora.dropout, whose draws the backward pass would repeat differently")
        if spec.full:
            raise InputError("model.checkpointing: not with a strategy that trains every weight, which the backward pass would not find")
        zoo.recompute(backbone, spec.name)
    targets = zoo.DEFAULT_TARGETS[spec.name] if spec.targets is None else spec.targets
    modules = () if spec.full else adapted_modules(backbone, targets, spec.blocks)
    if weights is None:
        backbone = backbone.to(device=device, dtype=dtype)
    else:
        own = {name: read_only(array).to(device=device, dtype=dtype) for name, array in weights.items()}
        backbone.load_state_dict(own, assign=True)
    return StackedModel(
        backbone, modules=modules, plain=spec.plain, adapters=spec.adapters, router=spec.router, full=spec.full, dropout=spec.dropout
    )


def repeatable(device: str, threads: int) -> None:
    """From now on this process makes the same bits of the same numbers: by so many threads of a CPU; on a GPU by algorithms that add up in
    a fixed order, and with float32 that is float32 (cuDNN's convolutions would use TF32, which has 10 bits).

    To be called before the process first uses its GPU.
    """
    torch.set_num_threads(threads)
    threadpool_limits(1, user_api="blas")  # of numpy's products, as in the driver
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False
        torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms(True), which would load torch's compiler
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # what is read here has been written


def device_here(wanted: str) -> str:
    """cpu or cuda: what "auto" comes to in this process. Raises InputError for a CUDA device that is not here."""
    if wanted == "cpu":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InputError(f"training.device: cuda was asked for, torch {torch.__version__} finds none on {platform.node()}")
    return "cpu"


def build_host(spec: HostSpec, weights: Mapping[str, np.ndarray], sets: Sequence[PreparedSet] | None = None) -> Host:
    """The host of the spec's sites: builds the model once, and opens studies memory-mapped where they are needed.

    `sets`: the spec's, if their manifests have been read already. Raises InputError for a set without a file that it lists, and for a
    device that is not here.
    """
    device = device_here(spec.device)
    repeatable(device, spec.threads)
    model = build_model(spec.model, weights, device, getattr(torch, spec.dtype))
    if spec.cache is not None:
        model.prefix = Prefix(model, spec.cache)
    sets = [PreparedSet(folder) for folder in spec.sets] if sets is None else sets
    for one in sets:
        one.require_files()
    where = {id: one for one in sets for id in one.ids}
    return Host(model, protocol_of(spec), Sites(spec, where, model))


class Sites(Mapping[str, Site]):
    """The spec's clients; the studies of one are opened when it is first asked for."""

    def __init__(self, spec: HostSpec, where: Mapping[str, PreparedSet], model: StackedModel) -> None:
        self.spec, self.where, self.model = spec, where, model
        self.known = {site.id: site for site in spec.sites}
        self.opened: dict[str, Site] = {}

    def __getitem__(self, client: str) -> Site:
        if client not in self.opened:
            site = self.known[client]
            self.opened[client] = Site(
                id=site.id, rank=site.rank, shard=_shard(site, self.where, self.spec, self.model), attack=site.attack
            )
        return self.opened[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _shard(site: SiteSpec, where: Mapping[str, PreparedSet], spec: HostSpec, model: StackedModel) -> Shard:
    def cases(ids: Sequence[str]) -> tuple[EvalCase, ...]:
        return tuple(_eval_case(i, where[i].study(i), spec) for i in ids)

    depth = spec.model.image_size[2]
    studies = [site.damage.get(i, CLEAN).study(where[i].study(i)) for i in site.training]
    training: Samples
    if spec.task == "disease":
        images = [tuple(study.frames[frame].image for frame in ("ED", "ES")) for study in studies]
        training = Studies(
            images, [site.damage.get(i, CLEAN).diseased(i, spec.diseased[i]) for i in site.training], depth, spec.augmentation
        )
    else:
        frames = [frame for study in studies for _, frame in sorted(study.frames.items())]
        labelled = [(frame.image, frame.label) for frame in frames if frame.label is not None]
        training = Frames([image for image, _ in labelled], [label for _, label in labelled], depth, spec.augmentation)
    if model.prefix is not None:
        training = Cached(training, model, site.id, spec.seed)
    return Shard(
        training=training,
        patients=len(site.training),
        validation=cases(site.validation),
        rating=cases(site.rating),
        test=cases(site.test),
    )


def _eval_case(patient: str, study: PreparedStudy, spec: HostSpec) -> EvalCase:
    return EvalCase(
        patient=patient,
        images={name: frame.image for name, frame in study.frames.items()},
        labels={name: frame.label for name, frame in study.frames.items() if frame.label is not None},
        native_labels={name: frame.native_label for name, frame in study.frames.items() if frame.native_label is not None},
        geometry=study.geometry,
        diseased=spec.diseased.get(patient),
    )
