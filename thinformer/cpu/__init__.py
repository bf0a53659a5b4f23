"""The Numba body: compiled loops for the CPU, and how they run on threads."""
