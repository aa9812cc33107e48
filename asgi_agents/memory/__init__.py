"""Buffers of bytes, and how much memory values take."""
