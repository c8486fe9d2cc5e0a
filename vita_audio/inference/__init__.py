"""Conversations to text and speech with a trained model."""
