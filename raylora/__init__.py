"""raylora: federated low-rank adaptation of cardiac MR foundation models, simulated on Ray."""

__version__ = "0.1.0"
