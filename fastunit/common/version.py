"""The version of the installed package."""

from importlib import metadata


def version() -> str:
    """Return the version, or "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("fastunit")
    except metadata.PackageNotFoundError:
        return "unknown"
