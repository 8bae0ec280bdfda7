"""What each layer type takes, makes and keeps, without torch: one record per type."""
