"""What files contain, one by one or a whole tree of nets, and what works on this machine."""
