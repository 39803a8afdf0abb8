"""Where data comes from and goes to: the lake, the event log, the store's bulk writes."""
