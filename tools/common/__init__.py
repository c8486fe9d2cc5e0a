"""Shared by tools.demo and tools.codec: a training loop and synthetic speech."""
