"""One module an experiment; ``config()`` returns it."""
