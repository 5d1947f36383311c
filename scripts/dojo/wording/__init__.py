"""What is said to a person, whatever the interface."""
