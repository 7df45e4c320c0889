"""HTML pages and charts of runs and scores."""
