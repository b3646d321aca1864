"""A model's answers to a task (greedy text, or the likeliest choice) and its perplexity on a text."""
