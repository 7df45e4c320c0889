"""`vmae-shard doctor`: what works on this machine."""
