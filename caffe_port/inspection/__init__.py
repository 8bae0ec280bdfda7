"""What files hold, and what this machine can run."""
