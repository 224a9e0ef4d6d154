"""The process: one loop that decides and learns, one thread that commits, and what brings them up and keeps them up."""
