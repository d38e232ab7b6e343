"""Activity over HTTP: the API, the live feed, the pages and the metrics."""
