"""Reading the WAL: stream, decode, assemble, and hand whole transactions to a sink, exactly once."""
