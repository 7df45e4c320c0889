"""Which source videos there are: folders, listings, annotation files, classes and exclusions."""
