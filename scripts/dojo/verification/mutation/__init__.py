"""Mutants of the references: made, judged, and chosen as fresh bugs."""
