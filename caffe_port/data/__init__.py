"""Images and records in batches, and the one preprocessing for all who need one."""
