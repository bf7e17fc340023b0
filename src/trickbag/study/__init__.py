"""Studies: the difference between two recipes, measured."""
