"""Target ``cuda``."""
