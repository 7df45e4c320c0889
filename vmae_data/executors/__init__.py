"""Who runs the jobs of a build: worker processes of this machine, or tasks of a Ray cluster."""
