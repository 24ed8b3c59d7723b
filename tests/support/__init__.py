"""What several test files use: each helper once. Fixtures are in conftest.py files."""
