"""Questions put to the store: a query language of one line, timelines and diffs, and what the rollups say."""
