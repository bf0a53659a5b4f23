"""What every folder uses: checks of arguments, threads, a progress bar, the machine."""
