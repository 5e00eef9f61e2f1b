"""A sweep without its scheduler: which experiments there are, what is remembered of them, one trial of it. No Ray."""
