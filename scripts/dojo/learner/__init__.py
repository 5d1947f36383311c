"""One learner's file of a kata, and its record."""
