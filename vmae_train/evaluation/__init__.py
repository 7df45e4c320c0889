"""A model with a head and labelled shards → predictions for every video, and scores."""
