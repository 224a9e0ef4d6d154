"""What do we learn? The model behind three verbs, the fold that makes it a function of the log, and its snapshots."""
