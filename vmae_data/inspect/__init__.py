"""`vmae-shard inspect`: the contents of a data set, as a table and as a page."""
