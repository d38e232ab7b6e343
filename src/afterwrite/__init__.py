"""afterwrite: activity logging that leaves the write path, and a way out of audit triggers that loses nothing."""

__version__ = "0.1.0"
