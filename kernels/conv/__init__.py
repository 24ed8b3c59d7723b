"""Convolutional blocks: pad, convolve, normalise, activate, add."""
