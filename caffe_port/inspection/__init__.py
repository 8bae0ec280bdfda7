"""Looking into files: what a net, its weights, a solver or a snapshot holds, without running anything."""
