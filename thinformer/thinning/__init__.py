"""Point sets: which rows to keep, and how well they represent all."""
