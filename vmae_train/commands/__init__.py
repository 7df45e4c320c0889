"""The commands of vmae-train: what each takes, calls and prints. Everything heavy is imported when one runs."""
