"""What a kata cannot have for real: a cluster, and a crash."""
