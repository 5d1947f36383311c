"""What makes a run visible. Imports torch, numpy and the standard library alone, but a worker."""
