"""The activity store: its schema, the sink that writes it, and the readers of its feed."""
