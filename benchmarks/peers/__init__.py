"""raylora, a bare loop, Flower and pfl on the same model, data, steps and seeds: `make peers`, then `python -m benchmarks.peers W1`.

`work` is all that the bare loop and the peers share: a frozen 3-D ViT with LoRA, a client's local epoch, the folder with the data. It needs
torch and numpy and nothing of raylora, so that it runs in every environment.
"""
