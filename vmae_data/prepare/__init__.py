"""Source videos to verified shards: rows 1 to 7 of the data's way."""
