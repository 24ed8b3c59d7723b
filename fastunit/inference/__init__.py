"""Translation of files by trained generators."""
