"""Whole transactions on grants."""
