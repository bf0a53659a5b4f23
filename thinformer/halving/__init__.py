"""The algorithm as data and as scalar steps, for every body: no loop over points is here."""
