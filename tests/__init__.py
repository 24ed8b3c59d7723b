"""A package, so that no installed package of this name hides tests.support."""
