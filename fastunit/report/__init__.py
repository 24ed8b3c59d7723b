"""Metrics, loss curves, sample grids and the HTML page of a run."""
