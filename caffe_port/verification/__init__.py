"""The comparison: a net beside a reference, layer by layer."""
