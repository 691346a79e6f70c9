"""`martlet sweep`: one run for each combination of some values, compared."""
