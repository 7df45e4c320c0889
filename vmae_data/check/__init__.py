"""Looking at shards that are there: what they hold, and whether all of it is right."""
