"""Studies on disk: readers, preprocessing, Arrow shards, partitions, phantoms."""
