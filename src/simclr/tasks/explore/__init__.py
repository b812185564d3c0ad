"""Exploration of a collection of images by its embeddings: one task for each question."""
