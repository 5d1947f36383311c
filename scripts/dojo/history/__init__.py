"""The learner's history: all that is SQL."""
