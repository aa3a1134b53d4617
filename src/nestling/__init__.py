"""Nestling: raise your own ChatGPT."""

__version__ = "0.1.0"
