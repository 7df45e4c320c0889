"""`vmae-shard inspect`: what a data set holds, as a table and as a page."""
