"""Scores of a model on a data set: row 19 of the data's way."""
