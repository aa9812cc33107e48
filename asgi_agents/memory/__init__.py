"""Bytes that are kept, and what they weigh."""
