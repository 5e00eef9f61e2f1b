"""Backbones, the LoRA layer, adapter files, and the zoo that builds a model by name."""
