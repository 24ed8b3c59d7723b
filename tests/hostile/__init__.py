"""Scripts that try to break fastunit; docs/reliability.md has their figures."""
