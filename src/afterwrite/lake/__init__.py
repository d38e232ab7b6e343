"""Days that are over, in an open Delta table on object storage or in a folder, and questions that reach into it."""
