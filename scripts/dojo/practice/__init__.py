"""Practice sessions: what they consist of, and how they go."""
