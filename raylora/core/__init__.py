"""Pure numpy: the vocabulary of a round, low-rank algebra, reductions, seeds, byte counts. No files, no torch, no Ray."""
