"""Pictures and records in batches, and the one preprocessing for everything that needs one."""
