"""Shared by every part of fastunit; imports nothing from the others."""
