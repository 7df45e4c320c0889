"""Encoded members to shards: the plan, packing, the index, and merging the parts of a build."""
