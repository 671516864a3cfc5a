"""Measuring: what tokens keep, and what they are about."""
