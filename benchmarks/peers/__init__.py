"""raylora, a bare loop, Flower and pfl on the same model, data, steps and seeds: `make peers`, then `python -m benchmarks.peers W1`.

`workloads` (numpy) and `work` (torch: a frozen 3-D ViT with LoRA, a client's local epoch) are all that the bare loop and the peers share, and
need nothing of raylora, so that they run in every environment.
"""
