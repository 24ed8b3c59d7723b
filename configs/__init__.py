"""The built-in configurations: demo.yaml and one per documented task."""
