"""What every layer uses: checks of arguments, threads, progress on a terminal, the machine."""
