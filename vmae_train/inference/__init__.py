"""A trained model and videos → reconstructions."""
