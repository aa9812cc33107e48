"""The package's version, where modules below the package's top can read it."""

__version__ = "0.1.0"
