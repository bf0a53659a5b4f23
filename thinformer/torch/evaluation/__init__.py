"""Models of transformers with exact and with thinned attention: reading, recording, comparing."""
