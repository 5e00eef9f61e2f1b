"""What adapters give away: membership inference against a federation, with and without differential privacy.

    make audit                                          # five minutes on two quiet cores
    python -m benchmarks.audit --patients 48 --rounds 2 --seeds 1

Disease detection on phantoms, clients without rating or tuned settings, trained long enough to overfit. The attacker has a model and a
patient's images and diagnosis, and says whether the patient was trained on. Two attackers: the server sees what each client uploads in the
last round (asked about that client's patients); anybody sees the shared model at the end. Two scores: the model's loss on the patient, and
that loss less the loss of a reference model, which another federation learnt on other patients (difficulty calibration, Watson et al. 2022,
arXiv 2111.08440). Members are training patients, the others test patients of the same client. Reported: AUC with a 95 % interval over
patients, and the true positives at 1 % false positives (0.01 would be guessing), over all seeds.

Differential privacy is the configuration's: client-level, added by the server to what it sums. It can protect the shared model; it cannot
protect an upload from the server. Writes benchmarks/results/audit.json. What to expect: uploads give away more than the shared model, and
noise that stops the second costs most of the accuracy with so few clients.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raylora import config as configuration
from raylora import experiment, planning
from raylora.config import Config
from raylora.core.types import Tree
from raylora.federation import checkpoint
from raylora.federation.answers import Scored
from raylora.federation.build import build_host, build_model
from raylora.federation.executor import InProcess
from raylora.federation.host import Host
from raylora.federation.protocol import compose
from raylora.federation.spec import protocol_of
from raylora.method import make_strategy

FALSE_POSITIVES = 0.01
REPLICATES = 1000
PRIVACY: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "weak": {"clip": 0.5, "sigma": 0.1, "delta": 0.01},
    "strong": {"clip": 0.5, "sigma": 1.0, "delta": 0.01},
}


def settings(patients: int, rounds: int, seed: int, privacy: str, cohort: int) -> Config:
    """One federation. `cohort` is the seed of its patients."""
    return configuration.from_dict(
        {
            "name": f"audit-{privacy}-{seed}",
            "task": "disease",
            "seed": seed,
            "data": {
                "dataset": "phantom",
                "phantom": {"patients": patients, "seed": cohort},
                "fractions": [0.45, 0.05, 0.0, 0.5],
                "spacing_mm": [4.5, 4.5, 10.0],
                "size": [32, 32, 8],
            },
            "clients": {"by": "iid", "count": 8},
            "model": {"name": "vit", "sizes": {"patch": [8, 8, 2], "width": 48, "depth": 3, "heads": 4}},
            "lora": {"rank": 8, "alpha": 16.0},
            "training": {"rounds": rounds, "local_epochs": 4, "batch_size": 4, "lr": 0.005},
            "privacy": dict(PRIVACY[privacy]),
            "evaluation": {"every": 0, "bootstrap": 50, "overlays": 0},
            "tracking": {"uri": None},
        }
    )


class Watching(InProcess):
    """The server's eyes: what each client uploaded last."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.uploads: dict[str, Tree] = {}

    def train(self, stacks: Any) -> Any:
        for outcome in super().train(stacks):
            self.uploads[outcome.update.client_id] = outcome.update.adapter
            yield outcome


def federation(config: Config, out: Path) -> tuple[planning.Plan, dict[str, Tree], Tree, dict[str, Any]]:
    """(plan, what each client uploaded last, the shared model, summary)."""
    plan = planning.make_plan(config)
    watching: list[Watching] = []

    def executor(plan: planning.Plan) -> Watching:
        watching.append(Watching(build_host(plan.spec, plan.weights)))
        return watching[-1]

    out.mkdir(parents=True)
    *_, last = experiment.run_experiment(plan, out, executor)
    found, _ = checkpoint.latest(out / "checkpoints")
    assert found is not None
    shared = make_strategy(config, len(plan.clients)).broadcast(found[0].server, plan.clients[0]).adapter
    return plan, watching[0].uploads, shared, dict(last["summary"])


def losses(plan: planning.Plan, models: Mapping[str, tuple[Tree, tuple[str, ...]]]) -> dict[str, dict[str, float]]:
    """{model: {patient: -log p(diagnosis)}} of each model (what it adds, whose patients) on training and test patients."""
    sites = tuple(replace(site, training=(), validation=(), test=(*site.training, *site.test)) for site in plan.spec.sites)
    host = build_host(replace(plan.spec, sites=sites), plan.weights)
    model, protocol = build_model(plan.spec.model, plan.weights), protocol_of(plan.spec)
    found: dict[str, dict[str, float]] = {}
    for name, (adapter, clients) in models.items():
        tree = compose(model.outline, protocol, plan.clients[0].id, plan.clients[0].rank, None, adapter)
        rows = host.evaluate([Scored(model_of=name, tree=tree, data_of=clients)], "test", full=True)
        by: dict[str, dict[str, float]] = {"probability": {}, "label": {}}
        for _, _, patient, _, _, metric, value in rows:
            by.setdefault(metric, {})[patient] = value
        found[name] = {
            patient: -float(np.log(np.clip(p if by["label"][patient] else 1 - p, 1e-12, 1.0))) for patient, p in by["probability"].items()
        }
    return found


def measured(members: np.ndarray, others: np.ndarray, draw: np.random.Generator) -> dict[str, Any]:
    """AUC and true positives at 1 % false positives of scores that are higher for members."""

    def auc(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean(a[:, None] > b) + 0.5 * np.mean(a[:, None] == b))

    drawn = [auc(draw.choice(members, len(members)), draw.choice(others, len(others))) for _ in range(REPLICATES)]
    allowed = int(FALSE_POSITIVES * len(others))
    threshold = np.sort(others)[::-1][allowed]  # `allowed` others lie above it
    return {
        "auc": round(auc(members, others), 4),
        "ci95": [round(float(v), 4) for v in np.percentile(drawn, [2.5, 97.5])],
        "tpr_at_1_percent_fpr": round(float(np.mean(members > threshold)), 4),
        "members": len(members),
        "others": len(others),
    }


def audit(patients: int, rounds: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Every privacy setting, over all seeds."""
    scores: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    about: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        reference = federation(settings(patients, rounds, seed, "none", cohort=1000 + seed), folder / f"reference-{seed}")[2]
        for privacy in PRIVACY:
            plan, uploads, shared, summary = federation(
                settings(patients, rounds, seed, privacy, cohort=seed), folder / f"{privacy}-{seed}"
            )
            homes = plan.homes
            models = {
                "shared": (shared, homes),
                "reference": (reference, homes),
                **{f"of {c}": (tree, (c,)) for c, tree in uploads.items()},
            }
            found = losses(plan, models)
            members = {patient for site in plan.spec.sites for patient in site.training}
            seen = {"shared model": found["shared"], "uploads": {p: v for c in uploads for p, v in found[f"of {c}"].items()}}
            for target, values in seen.items():
                for attack in ("loss", "calibrated loss"):
                    inside, outside = scores.setdefault((privacy, target, attack), ([], []))
                    for patient, loss in sorted(values.items()):
                        score = -loss + (found["reference"][patient] if attack == "calibrated loss" else 0.0)
                        (inside if patient in members else outside).append(score)
            final = summary["final"]["auc"]
            row = about.setdefault(privacy, {"epsilon": summary["epsilon"], "test_auc": [], **PRIVACY[privacy]})
            row["test_auc"].append(None if final["pooled"] is None else round(final["pooled"], 4))
    draw = np.random.default_rng(0)
    attacks = [
        {"privacy": privacy, "target": target, "score": attack, **measured(np.array(a), np.array(b), draw)}
        for (privacy, target, attack), (a, b) in scores.items()
    ]
    return {"patients": patients, "rounds": rounds, "seeds": seeds, "clients": 8, "privacy": about, "attacks": attacks}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "audit.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raylora-audit-") as folder:
        found = audit(options.patients, options.rounds, options.seeds, Path(folder))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{'privacy':8} {'target':14} {'score':16} AUC [95 %]               TPR at 1 % FPR")
    for row in found["attacks"]:
        low, high = row["ci95"]
        print(
            f"{row['privacy']:8} {row['target']:14} {row['score']:16} {row['auc']:.3f} [{low:.3f}, {high:.3f}]  {row['tpr_at_1_percent_fpr']:.3f}"
        )


if __name__ == "__main__":
    main()
