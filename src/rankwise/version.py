"""The version of this package, where what lies below its top can read it."""

__version__ = "0.1.0"
