"""The package behind the scripts: it finds, plants, runs, checks and times katas."""
