"""Losses, each a plain function of tensors."""
