"""Finding, checking and reading image files; the training data pipeline; the built-in scenes."""
