"""How fast things are, as ratios in one run."""
