"""Tables, pictures and pages, made from the files of a run and nothing else."""
