"""What runs inside pytest, and what it says."""
