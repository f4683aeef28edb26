"""The version, in its only place: packaging metadata and the compiled part read it from here."""

__version__ = "0.1.0"
