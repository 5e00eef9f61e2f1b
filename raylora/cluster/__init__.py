"""All of Ray: actors, resources, sweeps."""
