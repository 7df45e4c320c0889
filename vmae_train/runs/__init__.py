"""A run's directory: its files, metadata, log, trackers, best checkpoint and copy in a bucket."""
