"""Configurations: demo.yaml and one per documented task."""
