"""Shards to decoded frames, in an order that is a pure function: rows 8 to 11 of the data's way."""
