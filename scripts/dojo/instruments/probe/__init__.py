"""Shows what happens inside a model as it runs, with no code of the model's own."""
