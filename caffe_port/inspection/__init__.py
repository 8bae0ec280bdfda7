"""What files contain, and what works on this machine."""
