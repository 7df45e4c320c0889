"""`vmae-shard audit`: measures, near duplicates and flags of every sample."""
