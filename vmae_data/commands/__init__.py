"""The commands of vmae-shard: what each takes, calls and prints. Everything heavy is imported when one runs."""
