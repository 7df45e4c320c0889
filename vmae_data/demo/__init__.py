"""The motion data set: synthetic videos whose class only motion tells."""
