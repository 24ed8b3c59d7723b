"""Measures of translations: distances between sets of images, and between images of a pair."""
