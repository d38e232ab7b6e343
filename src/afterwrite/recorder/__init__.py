"""What an application runs: stamps and events in its transactions, and everything else that it records."""
