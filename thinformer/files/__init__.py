"""Tables in files: reading in chunks, thinning, and writing what was chosen."""
