"""Scripts that make the published tables: each names its command, its seeds and what to expect in its header."""
