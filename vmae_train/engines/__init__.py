"""How the processes share a model while they train it: one file for each value of `train.engine`."""
