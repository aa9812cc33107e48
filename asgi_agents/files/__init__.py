"""Configuration from files: what protects an app, as TOML, YAML or JSON."""

from .configuration import Configuration
from .load import load

__all__ = ["Configuration", "load"]
