"""`vmae-shard verify`: every file, checksum, count, key and frame of a data set."""
