"""Recordings on disk: lists of them, and batches of random crops."""
