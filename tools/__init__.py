"""Programs for users: train, talk to, check, export and measure models."""
