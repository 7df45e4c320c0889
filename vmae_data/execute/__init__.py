"""Who makes the shards: worker processes of this machine, or tasks of a Ray cluster."""
