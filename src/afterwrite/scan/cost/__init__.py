"""What triggers cost: seen in the server's statistics, probed in a transaction that is undone, rehearsed on a copy."""
