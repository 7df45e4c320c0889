"""The demo data sets: synthetic videos whose class shows only in their motion."""
