"""Tables in files: read in chunks, thinned, and written record by record.

- `formats`: one reader a format; `csv` for delimited text; `source`: what a reader gives.
- `job`: a checked request; `thin`: reads, thins and writes it.
- `comparison`: the MMD of the rows written; `report`, `plot`: what is said of them.
- `output`: files that are written completely or not at all; `messages`: names and errors as text.
"""
