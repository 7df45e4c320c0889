"""The motion data set: synthetic videos whose class shows only in their motion."""
