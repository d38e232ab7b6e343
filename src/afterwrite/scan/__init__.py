"""Scan: what triggers a database has, what each of them does, and which may leave the write path. Reads only."""
