"""Activity that comes from legacy logs, and activity that leaves as files."""
