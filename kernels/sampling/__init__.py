"""Reparameterised sampling and its noise."""
