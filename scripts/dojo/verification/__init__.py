"""Proves that a kata's tests can be trusted."""
