"""What people look at: metrics, curves, sample grids and the page of a run."""
