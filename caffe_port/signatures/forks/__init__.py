"""The records of the types that forks added."""
